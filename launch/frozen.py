"""A run's frozen encoder, on the ranks of an evaluation, and the views of images that it is evaluated on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_ssl.build import build_engine, centre_view, extractor
from dist_ssl.checkpoint.damage import DamagedError, MissingError
from dist_ssl.checkpoint.index import read
from dist_ssl.checkpoint.read_on_all import read_on_all
from dist_ssl.config.long_work import LongWork, unseen_work
from dist_ssl.core.draws import Draws, Ints
from dist_ssl.data.images.views import Augmentation, of_views
from dist_ssl.data.storage.manifest import Split
from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, ConfigError
from dist_ssl.evaluate.features import Extractor, subset
from dist_ssl.evaluate.inputs import DrawnViews, Inputs
from dist_ssl.evaluate.linear import Say, quiet
from dist_ssl.evaluate.linear_recipes import FAST, LinearRecipe
from dist_ssl.evaluate.probe_keys import Probing
from dist_ssl.parts import Parts, parts, probing
from dist_ssl.protocols.engine import Engine, State

DDP = {"_target_": "dist_ssl.engines.ddp.DDP"}
"""The engine of an evaluation: it reads the checkpoints of every engine."""


class RetiredError(CheckpointError):
    """The run has removed a checkpoint before it was read."""


@dataclass(frozen=True)
class Frozen:
    """An encoder that is not trained, and the keys of its evaluation: those of the probe, and `patches` of an image.

    `recipe`: protocol of the linear classifier; `say`: shows the lines of a long evaluation, `work` how far it is.
    """

    parts: Parts
    engine: Engine
    world: World
    node: Probing
    patches: int
    recipe: LinearRecipe = FAST
    say: Say = quiet
    work: LongWork = field(default_factory=unseen_work)

    @classmethod
    def load(
        cls,
        config: Mapping[str, Any],
        checkpoint: Path,
        patches: int,
        *,
        world: World | None = None,
        recipe: LinearRecipe = FAST,
        say: Say = quiet,
        work: LongWork | None = None,
    ) -> "Frozen":
        """Return the encoder of a checkpoint, of which only the weights are read. Raises UserError on every rank."""
        config = {**config, "engine": DDP}
        world = world or World(device=own_device(0))
        found = parts(config, world, 1)
        engine = build_engine(config, found, world)

        def wants(name: str, shape: tuple[int, ...]) -> range | None:
            """Request no moments of the optimizer."""
            return engine.wants(name, shape) if name.startswith("model/") else range(0)

        def weights() -> State:
            """Return the weights that this rank needs. Raises MissingError where the run has removed the checkpoint."""
            try:
                return read(checkpoint, wants)[1]
            except DamagedError as error:
                raise error if checkpoint.exists() else MissingError(str(error)) from error

        try:
            state = read_on_all(world, weights)
        except DamagedError as error:
            raise _unread(checkpoint, error) from error
        engine.load({name: value for name, value in state.items() if name.startswith("model/")})
        return cls(found, engine, world, probing(config), patches, recipe, say, work or unseen_work())

    def labelled(self) -> tuple[Split, Split]:
        """Return the training split and the held-out one. Raises ConfigError where they or their labels are missing.

        In a mixture the training split is that of the source that the held-out one is of.
        """
        held = self.held_out()
        if held is self.parts.train:
            named = self.parts.data.val
            what = "There is no held-out split." if named is None else f"data.val={named} is trained on: not held out."
            raise ConfigError(what, "Name one: data.val=..., or use protocol=unlabelled.")
        for split in (self.parts.reference, held):
            if not split.labelled:
                raise ConfigError(f"The split '{split.name}' has no labels.", "Use protocol=unlabelled.")
        return self.parts.reference, held

    def held_out(self) -> Split:
        """Return the held-out split, or the training split where there is none."""
        p = self.parts
        return p.train if p.data.val is None else p.dataset.split(p.data.val)

    def neighbours_of(self, held: Split) -> Split:
        """Return the training images that held-out ones are compared with: in a mixture those of the same source."""
        return held if held is self.parts.train else self.parts.reference

    def chosen(self, split: Split, most: int) -> Ints:
        """Return the numbers of at most `most` samples of a split, ascending, always the same."""
        return subset(len(split.samples), most, self.parts.run.seed)

    @contextmanager
    def reading(self, split: Split, count: int, inputs: Inputs | None = None) -> Iterator[Extractor]:
        """Yield the extractor of the features of `count` images of a split; `inputs`: by default their centres."""
        seen = inputs or centre_view(self.parts, self.node)
        own = extractor(self.parts, split, seen, self.world, None, scattered=count < len(split.samples))
        with self.counting(f"images of '{split.name}'", count) as own.passed:
            try:
                yield own
            finally:
                own.loader.close()

    @contextmanager
    def counting(self, what: str, count: int) -> Iterator[Callable[[int], None]]:
        """Yield what counts images, of `count` in all, for the person who waits."""
        task = self.work.add_task(what, total=count)
        try:
            yield partial(self.work.advance, task)
        finally:
            self.work.remove_task(task)

    def features(
        self, split: Split, most: int, inputs: Inputs | None = None, *, views: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the features of at most `most` images of a split, and their labels.

        `inputs`: by default the centres of the images; `views`: return those of every view, [N, views, D].
        """
        numbers = self.chosen(split, most)
        with self.reading(split, len(numbers), inputs) as own:
            found, labels = (own.views if views else own.features)(self.engine, numbers, self.node.branch)
        return self.finite(found, split), labels

    def finite(self, features: Tensor, split: Split) -> Tensor:
        """Return the features of images of a split. Raises CheckpointError where some are not finite."""
        if broken := int((~features.isfinite()).flatten(1).any(1).sum()):
            raise CheckpointError(
                f"The features of {broken} of {len(features)} images of '{split.name}' are not finite.",
                "The encoder has diverged: name an earlier checkpoint.",
            )
        return features

    def drawn(self, count: int, slots: int) -> DrawnViews:
        """Return `count` views of an image, drawn as in the last epoch: by its first `slots` recipes in turn.

        The draws are those of the epoch after the last one: the images have not been seen like this.
        """
        p = self.parts
        plan = p.schedule.plan(p.run.all_epochs - 1)
        strength = plan.magnitude, plan.scale, plan.fixed
        recipes = [recipe.at(*strength) for recipe in of_views(p.recipes, max(plan.views, slots), 0)[:slots]]
        return self.views([recipes[slot % slots] for slot in range(count)], plan.image_size, p.run.all_epochs)

    def views(self, recipes: list[Augmentation], side: int, epoch: int) -> DrawnViews:
        """Return a view of `side` px for each recipe, by the draws of an epoch after those of the run."""
        centre = centre_view(self.parts, self.node)
        return DrawnViews(
            centre.colours,
            centre.dtype,
            recipes=recipes,
            side=side,
            draws=Draws(self.parts.run.seed, epoch),
            rules=centre.cutter.rules,
        )

    def both(self, inputs: Inputs | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features and labels of the training split, then those of the held-out one. Raises ConfigError."""
        train, held = self.labelled()
        bank, queries = self.features(train, self.node.bank, inputs), self.features(held, self.node.queries, inputs)
        return *bank, *queries


def _unread(checkpoint: Path, error: DamagedError) -> CheckpointError:
    """Return the error for a checkpoint that could not be read."""
    if isinstance(error, MissingError):
        return RetiredError(
            f"{checkpoint} has been removed, or a part of it ({error}).", "Evaluate a newer one, or raise keep_last."
        )
    return CheckpointError(f"{checkpoint} is damaged ({error}).", "Name another one: checkpoint=...")
