"""The parts of a run that are alike on all ranks, built from a resolved config and checked against each other.

`_target_` names the class of a part; the other keys of its node are the keyword arguments of its constructor, checked
against its annotations. Derived values (learning rate, dtype, ...) are computed here and in `build.py`, nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dist_ssl.checkpoint.folder_names import INITIAL
from dist_ssl.checkpoint.initial_weights import start_from
from dist_ssl.config.bounds import RGB
from dist_ssl.config.encoder_node import make_encoder
from dist_ssl.config.instantiate import accepted_by, fit, instantiate, keywords, resolve, shared_keywords
from dist_ssl.config.run_keys import Config, Run, top_level
from dist_ssl.core.candidates import check_candidates
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.data.data_keys import Data
from dist_ssl.data.epoch_views import Difficulty
from dist_ssl.data.images.views import OF_COLOURS, Augmentation, check_fixed, checked, of_views
from dist_ssl.data.order.source_shares import check_batch
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.distributed.norm_groups import check_groups
from dist_ssl.distributed.world import World
from dist_ssl.engines.virtual import check_number
from dist_ssl.evaluate.probe_keys import Probing
from dist_ssl.metrics.table import check_keys
from dist_ssl.models.patches import check_side, check_support
from dist_ssl.optim.recipes import OptimizerRecipe
from dist_ssl.protocols.method import Method
from dist_ssl.protocols.schedule import EpochPlanner, Schedule
from dist_ssl.runtime.coordinator import check_plan


@dataclass(frozen=True)
class Parts:
    """The parts of a run that a config describes, before any of them is placed on a rank."""

    run: Run
    data: Data
    access: Access
    dataset: manifest.Manifest
    train: manifest.Split
    recipes: list[Augmentation]
    difficulty: Difficulty
    optimizer: OptimizerRecipe
    method: Method
    schedule: Schedule
    timeline: Timeline
    check: Callable[[EpochPlan], None]
    """Raises ConfigError where an epoch of a plan does not fit the other parts."""
    virtual_ranks: int | None
    """Number of virtual ranks in bitwise mode; None outside of it."""

    @property
    def reference(self) -> manifest.Split:
        """Return the training split whose labels the held-out split shares: in a mixture, that of its own source."""
        return self.dataset.companion or self.train


def parts(config: Config, world: World, ranks: int, folder: Path | None = None) -> Parts:
    """Build the parts that are alike on all ranks, and check that they fit together.

    `folder`: the run folder, whose initial weights the encoder gets if it has any; None: random weights, for all that
    is not a start of the run. Raises ConfigError, DataError, CheckpointError.
    """
    run, data = top_level(config), Data(**keywords(Data, config["data"], "data"))
    access = data.access(run.ranks_per_node or 1)
    dataset = data.open(access)
    train = dataset.split(data.train)
    check_plan(run.lanes, run.batch_size, ranks, len(train.samples))
    virtual = virtual_ranks(config, run.batch_size, ranks)
    torch.manual_seed(run.seed)
    encoder = make_encoder(config["encoder"], data.rules.channels)
    if folder is not None and run.init is not None:
        start_from(encoder, folder / INITIAL, run.init_sha256)  # before a method copies the encoder for its teacher
    method = make_method(config, encoder, len(train.samples), world if virtual is None else World(device=world.device))
    optimizer = instantiate(config["optim"], "optim")
    schedule, timeline = make_schedule(config, run, optimizer, method, len(train.samples))
    check_keys(schedule.hyperparameters(Progress(epochs=run.all_epochs)).values)
    named = {f"views.{name}": view for name, view in sorted(config["views"].items())}
    recipes = [checked(Augmentation(**keywords(Augmentation, view, place)), place) for place, view in named.items()]
    recipes = [recipe.of_channels(data.rules.channels) for recipe in recipes]
    offered = {"multiple": getattr(encoder, "multiple_of", 1), "channels": data.rules.channels}
    offered["pixel_bytes"] = data.rules.dtype.itemsize
    difficulty = instantiate(config["difficulty"], "difficulty", offered=offered)
    probed = probing(config)
    probed.check(method, averaged=run.ema is not None)
    check_side(encoder, probed.sides(schedule.plan(run.all_epochs - 1).image_size)[1], "probe.crop")
    check = epoch_check(config, train, method, recipes, ranks)
    for plan in reversed(schedule.distinct_plans(run.all_epochs)):  # the last has the values of the config itself
        check(plan)
    own = (recipes, difficulty, optimizer, method, schedule, timeline, check, virtual)
    return Parts(run, data, access, dataset, train, *own)


def left_out(config: Config, channels: int) -> list[str]:
    """Return a remark about the keys of views that have no effect on images of this number of channels."""
    named = [key for key in OF_COLOURS if any(view.get(key) for view in config["views"].values())]
    if channels == RGB or not named:
        return []
    return [f"Left out of the views, as it needs red, green and blue: {', '.join(named)}. The images have {channels}."]


def epoch_check(
    config: Config, train: manifest.Split, method: Method, recipes: list[Augmentation], ranks: int
) -> Callable[[EpochPlan], None]:
    """Return the function that raises ConfigError where an epoch of a plan does not fit the other parts of the run."""

    def check_epoch(plan: EpochPlan) -> None:
        check_plan(plan.lanes, plan.batch_size, ranks, len(train.samples))
        check_batch(train, plan.batch_size)
        virtual = virtual_ranks(config, plan.batch_size, ranks)
        over, accumulate = (ranks, config["engine"].get("accumulate", 1)) if virtual is None else (1, virtual)
        possible = [n for n in range(1, plan.lanes + 1) if plan.lanes % n == 0] if virtual is None else []
        check_groups(method, plan.batch_size, over, accumulate, possible)
        check_support(method.encoder, plan.tokens)
        method.check(plan)
        check_candidates(plan)
        check_side(method.encoder, plan.image_size, "schedule.image_size", plan.tokens)
        check_side(method.encoder, plan.local_size or None, "schedule.local_size", plan.tokens)
        of_views(recipes, plan.views, plan.local_views)
        check_fixed(plan.fixed)

    return check_epoch


def make_schedule(
    config: Config, run: Run, optimizer: OptimizerRecipe, method: Method, num_samples: int
) -> tuple[Schedule, Timeline]:
    """Compose the two halves of the schedule, which share the keys of one node. Raises ConfigError."""
    node = dict(config["schedule"])
    halves = [resolve(node.pop(half, None), f"schedule.{half}") for half in ("planner", "curves")]
    shape = {"views": method.num_views, "local_views": method.local_views, "cycles": run.cycles}
    shape |= {"batch_size": run.batch_size, "lanes": run.lanes, "multiple": getattr(method.encoder, "multiple_of", 1)}
    own = shared_keywords(halves, node, "schedule", {*shape, "curves", "timeline"})
    planner: EpochPlanner = halves[0](**own[0], **accepted_by(halves[0], shape))
    timeline = Timeline.of(map(planner.plan, range(run.all_epochs)), num_samples, run.cycles)
    curves = {**optimizer.curves(run.batch_size), **method.curves}
    return Schedule(planner, halves[1](**own[1], curves=curves, timeline=timeline)), timeline


def make_method(config: Config, encoder: nn.Module, num_samples: int, world: World) -> Method:
    """Return the method around the encoder, wrapped in the auxiliary task if there is one."""
    offered = {"num_samples": num_samples}
    method: Method = instantiate(config["method"], "method", offered=offered, encoder=encoder, world=world)
    return instantiate(config["aux"], "aux", method=method, world=world) if config["aux"] else method


def virtual_ranks(config: Config, batch_size: int, ranks: int) -> int | None:
    """Return the number of virtual ranks in bitwise mode, None outside of it. Raises ConfigError."""
    node = config["engine"]
    number: int | None = fit(node.get("virtual_ranks"), int | None, "engine.virtual_ranks")
    check_number(fit(node.get("bitwise", False), bool, "engine.bitwise"), number, batch_size, ranks)
    return number


def probing(config: Config) -> Probing:
    """Return the keys of the probe. Raises ConfigError where one has a wrong type."""
    return Probing(**keywords(Probing, config["probe"], "probe"))
