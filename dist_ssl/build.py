"""The composition root: a resolved config in, a `Job` out. The only module of the package that sees a config.

`_target_` names the class of a part; the other keys of its node are the keyword arguments of its constructor, checked
against its annotations. Derived values (learning rate, dtype, ...) are computed here and nowhere else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.config.instantiate import accepted_by, fit, instantiate, keywords, resolve, shared_keywords
from dist_ssl.config.meta_device import META, on_meta_device
from dist_ssl.config.precision import PRECISIONS
from dist_ssl.config.run_keys import Config, Run, top_level
from dist_ssl.core.candidates import check_candidates
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.data.data_keys import Data
from dist_ssl.data.epoch_views import Colours, Difficulty
from dist_ssl.data.images.views import Augmentation, check_fixed, checked, of_views
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.order.ledger import Ledger
from dist_ssl.data.order.quarantine import Quarantine
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.norm_groups import check_groups
from dist_ssl.distributed.rendezvous import own_addresses
from dist_ssl.distributed.world import World
from dist_ssl.engines.virtual import check_number
from dist_ssl.evaluate.features import Extractor, subset
from dist_ssl.evaluate.inputs import CentreView, Inputs
from dist_ssl.evaluate.knn import KNN, NoProbe
from dist_ssl.evaluate.probe_keys import Probing
from dist_ssl.metrics.goodput import Goodput
from dist_ssl.metrics.meter import Meter
from dist_ssl.metrics.sinks import JsonLines, Prometheus, Status, TextFile
from dist_ssl.metrics.table import check_keys
from dist_ssl.metrics.trackers.detached import trackers
from dist_ssl.models.patches import check_side, check_support
from dist_ssl.optim.recipes import OptimizerRecipe
from dist_ssl.protocols.engine import Engine
from dist_ssl.protocols.method import Method
from dist_ssl.protocols.probe import Probe
from dist_ssl.protocols.schedule import EpochPlanner, Schedule
from dist_ssl.protocols.sink import Sink
from dist_ssl.runtime.agreement import Agreement
from dist_ssl.runtime.epoch_planner import Coordinator, check_plan
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job


@dataclass(frozen=True)
class Place:
    """The run folder and number of an attempt. `newest`: returns whether no newer attempt has started; `restarts`:
    the number of earlier attempts, by the cause for which there was another one."""

    folder: Path
    attempt: int
    newest: Callable[[], bool]
    restarts: Mapping[str, int] = field(default_factory=dict)


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


def parts(config: Config, world: World, ranks: int) -> Parts:
    """Build the parts that are alike on all ranks, and check that they fit together. Raises ConfigError, DataError."""
    run, data = top_level(config), Data(**keywords(Data, config["data"], "data"))
    access = data.access(run.ranks_per_node or 1)
    dataset = data.open(access)
    train = dataset.split(data.train)
    check_plan(run.lanes, run.batch_size, ranks, len(train.samples))
    virtual = virtual_ranks(config, run.batch_size, ranks)
    torch.manual_seed(run.seed)
    encoder = instantiate(config["encoder"], "encoder")
    method = make_method(config, encoder, len(train.samples), world if virtual is None else World(device=world.device))
    optimizer = instantiate(config["optim"], "optim")
    schedule, timeline = make_schedule(config, run, optimizer, method, len(train.samples))
    check_keys(schedule.hyperparameters(Progress(epochs=run.all_epochs)).values)
    named = {f"views.{name}": view for name, view in sorted(config["views"].items())}
    recipes = [checked(Augmentation(**keywords(Augmentation, view, place)), place) for place, view in named.items()]
    sides = {"multiple": getattr(encoder, "multiple_of", 1)}
    difficulty = instantiate(config["difficulty"], "difficulty", offered=sides)
    probed = probing(config)
    probed.check(method, averaged=run.ema is not None)
    check_side(encoder, probed.sides(schedule.plan(run.all_epochs - 1).image_size)[1], "probe.crop")
    check = epoch_check(config, len(train.samples), method, recipes, ranks)
    for plan in schedule.distinct_plans(run.all_epochs):
        check(plan)
    own = (recipes, difficulty, optimizer, method, schedule, timeline, check, virtual)
    return Parts(run, data, access, dataset, train, *own)


def epoch_check(
    config: Config, num_samples: int, method: Method, recipes: list[Augmentation], ranks: int
) -> Callable[[EpochPlan], None]:
    """Return the function that raises ConfigError where an epoch of a plan does not fit the other parts of the run."""

    def check_epoch(plan: EpochPlan) -> None:
        check_plan(plan.lanes, plan.batch_size, ranks, num_samples)
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
    number: int | None = fit(config["engine"].get("virtual_ranks"), int | None, "engine.virtual_ranks")
    check_number(fit(config["engine"].get("bitwise", False), bool, "engine.bitwise"), number, batch_size, ranks)
    return number


def check(config: Config, ranks: int) -> str:
    """Check everything that can be checked before a run starts, on the meta device; return the data's identity."""
    with on_meta_device():
        found = parts(config, World(), ranks)
        build_engine(config, found, World(device=META))
    found.access.check(found.train, -(-found.run.lanes // found.run.nodes), found.run.window)
    if found.data.val is not None:
        replace(found.access, cache=None).check(val := found.dataset.split(found.data.val), 1, 1)
        manifest.check_probed(found.train, val)
    for key, kind in (("port", int), ("bind", str | None), ("textfile", str | None)):
        fit(config["metrics"][key], kind, f"metrics.{key}")
    trackers(config["tracker"], Path())
    return found.dataset.identity


def build_engine(config: Config, p: Parts, world: World) -> Engine:
    """Return the engine that wraps the method on this rank."""
    own = PRECISIONS[p.run.precision]
    given: dict[str, Any] = {"dtype": own.dtype, "compute": own.compute, "tf32": own.tf32, "ema": p.run.ema}
    engine: Engine = instantiate(config["engine"], "engine", method=p.method, recipe=p.optimizer, world=world, **given)
    return engine


def build(config: Config, world: World, signals: Signals, place: Place) -> Job:
    """Return the job of one rank."""
    p = parts(config, world, world.size)
    process, kept = p.data.process(world.device), sinks(config, p, place) if world.rank == 0 else []
    return Job(
        fresh=Progress(epochs=p.run.all_epochs, attempt=place.attempt),
        engine=(engine := build_engine(config, p, world)),
        stream=stream(p, world, process, engine),
        schedule=p.schedule,
        coordinator=Coordinator(p.schedule, world=world, record=place.folder / "plan.jsonl", check=p.check),
        checkpoint=Checkpoint(
            place.folder / "checkpoints",
            world,
            keep_last=p.run.keep_last,
            keep_every=p.run.keep_every,
            attempt=place.attempt,
            newest=place.newest,
        ),
        agreement=Agreement(world, signals, p.run.save_every, p.run.keep_every),
        probe=probe(config, p, world, process),
        meter=Meter(world, kept, p.timeline.total, Goodput.of(place.folder, place.restarts)),
        ledger=Ledger(place.folder / "ledger", place.attempt, world),
        quarantine=Quarantine(
            place.folder / "quarantine.jsonl", p.train, world=world, attempt=place.attempt, max_bad=p.data.max_bad
        ),
        log_every=p.run.log_every,
    )


def stream(p: Parts, world: World, process: LoaderProcess | None, engine: Engine) -> Stream:
    """Return the stream of this rank's training batches, for an engine."""
    own = PRECISIONS[p.run.precision]
    return Stream(
        p.data.loader(p.train, p.access, p.run.decode_threads, process),
        p.recipes,
        Colours(p.data.mean, p.data.std),
        world=world,
        seed=p.run.seed,
        window=p.run.window,
        dtype=own.views if world.device.type == "cuda" else own.dtype,
        max_pixels=p.data.max_pixels,
        parts=(p.virtual_ranks or world.size) // world.size,
        difficulty=p.difficulty,
        clock=engine.clock,
    )


def probing(config: Config) -> Probing:
    """Return the keys of the probe. Raises ConfigError where one has a wrong type."""
    return Probing(**keywords(Probing, config["probe"], "probe"))


def last_side(p: Parts) -> int:
    """Return the side of the global views of the last epoch, px."""
    return p.schedule.plan(p.run.all_epochs - 1).image_size


def centre_view(p: Parts, node: Probing) -> CentreView:
    """Return the view of an image that the keys of the probe describe."""
    resize, crop = node.sides(last_side(p))
    colours, most = Colours(p.data.mean, p.data.std), p.data.max_pixels
    return CentreView(colours, PRECISIONS[p.run.precision].dtype, resize=resize, crop=crop, max_pixels=most)


def extractor(
    p: Parts,
    split: manifest.Split,
    inputs: Inputs,
    world: World,
    process: LoaderProcess | None,
    *,
    scattered: bool = True,
) -> Extractor:
    """Return the extractor of features of a split's images; `scattered`: of few images of many shards."""
    loader = p.data.loader(split, p.access, p.run.decode_threads, process, scattered=scattered)
    return Extractor(loader, inputs, world=world)


def probe(config: Config, p: Parts, world: World, process: LoaderProcess | None) -> Probe:
    """Return the kNN probe if there is a held-out split and both splits have labels, else a probe that does nothing."""
    val = p.dataset.split(p.data.val) if p.data.val is not None else None
    if val is None or not (p.train.labelled and val.labelled):
        return NoProbe()
    node = probing(config)
    seen = centre_view(p, node)
    return KNN(
        (extractor(p, p.train, seen, world, process), subset(len(p.train.samples), node.bank, p.run.seed)),
        (extractor(p, val, seen, world, process), subset(len(val.samples), node.queries, p.run.seed)),
        every=node.every,
        k=node.k,
        temperature=node.temperature,
        branch=node.branch,
    )


def sinks(config: Config, p: Parts, place: Place) -> list[Sink]:
    """Return the sinks of rank 0, which receive the run's metrics; no other rank has any."""
    name, targets = place.folder.name, place.folder.parent / "targets"
    node, checkpoints = config["metrics"], place.folder / "checkpoints"
    labels = {"run": name, "method": config["method"]["_target_"].split(".")[-2]}
    return [
        JsonLines(place.folder / "metrics.jsonl"),
        Status(place.folder / "status.json", p.timeline.total, p.timeline.steps),
        Prometheus(labels, own_addresses()[0], node["port"], targets / f"{name}.json", checkpoints, bind=node["bind"]),
        *([TextFile(Path(node["textfile"]) / f"{name}.prom", labels, checkpoints)] if node["textfile"] else []),
        *trackers(config["tracker"], place.folder),
    ]
