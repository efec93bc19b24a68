"""What is drawn for a case of the campaign: a run, and what happens to it."""

import random
from dataclasses import dataclass, field
from functools import cached_property

from tests.chaos.disturbances import INTERRUPTIONS, MOMENTS, WEIGHTS, Moment

STEPS = 20
"""Weight updates of every case."""
NARROW = {"hidden": 16, "dim": 8, "narrow": 8, "outputs": 16, "prototypes": 12, "slots": 24, "patches": 3}
METHODS = {
    **dict.fromkeys(("byol", "fast_moco", "mocov3", "simclr", "simsiam", "single_branch"), ("hidden", "dim")),
    "dino": ("hidden", "narrow", "outputs"),
    "emp_ssl": ("hidden", "dim", "patches"),
    "mocov2": ("hidden", "dim", "slots"),
    "swav": ("hidden", "dim", "prototypes"),
    "vicreg": ("dim",),
    "mocov3 aux=rotation": ("hidden", "dim"),
}
FSDP = ("engine=fsdp", "engine.block_parameters=100")
SGD = ("optim=sgd", "optim.base_lr=0.01")
"""With which a run under DeepSpeed, in single precision, stays near one on other ranks."""


@dataclass(frozen=True)
class Event:
    """An interruption, what becomes of the files then, where the run goes, and on how many nodes it is resumed."""

    kind: str
    moment: Moment
    damage: str
    moved: str
    nodes: int

    def __str__(self) -> str:
        said = [f"{self.kind} at {self.moment}", *([self.damage] if self.damage != "nothing" else []), self.moved]
        return ", ".join(filter(None, said)) + f" -> {self.nodes}"


@dataclass
class Case:
    """All that is drawn for one case, by its seed and number alone."""

    seed: int
    number: int
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = chance = random.Random(f"{self.seed} {self.number}")
        self.method = chance.choice(list(METHODS))
        self.engine = chance.choice(["ddp", "ddp", "fsdp", "deepspeed"])
        self.stage = chance.randrange(3 if self.method == "swav" else 4)
        self.reshard = chance.random() < 0.5
        self.nodes = chance.choice([1, 1, 2, 2, 3, 4])
        self.moves = chance.random() < 0.3
        self.cold = chance.random() < 0.08
        self.disk = chance.choice(["", "", "", "", "", "full", "read-only"])
        self.save_every = chance.choice(["1 step", "2 steps", "3 steps", "7 steps", "5 steps", "1 second"])
        self.loader = chance.random() < 0.05
        self.events = [self._event() for _ in range(chance.choice([1, 1, 2, 2, 3]))]

    def _event(self) -> Event:
        chance = self.chance
        moment = Moment(chance.choice(MOMENTS), chance.random(), chance.random())
        damage = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        moved = chance.choice(["", "", "", "", "", "moved", "copied"])
        nodes = chance.choice([1, 2, 3, 4]) if self.moves else self.nodes
        return Event(chance.choice(INTERRUPTIONS), moment, damage, moved, nodes)

    @cached_property
    def science(self) -> tuple[str, ...]:
        """The words that the result depends on, but for the number of nodes."""
        name, _, more = self.method.partition(" ")
        small = [f"method.{key}={NARROW[key]}" for key in METHODS[self.method]]
        engine: tuple[str, ...] = ()
        if self.engine == "fsdp":
            engine = (*FSDP, f"engine.reshard={str(self.reshard).lower()}")
        if self.engine == "deepspeed":
            engine = ("engine=deepspeed", f"engine.stage={self.stage}")
        exact = SGD if self.engine == "deepspeed" else ("precision=fp64",)
        return (f"method={name}", *filter(None, [more]), *small, *engine, *(exact if self.moves else ()))

    @property
    def machine(self) -> tuple[str, ...]:
        """The other words."""
        return (f"save_every={self.save_every}", f"data.loader_process={str(self.loader).lower()}")

    def __str__(self) -> str:
        where = f" on a {self.disk} disk" if self.disk else ""
        how = " ".join(filter(None, ["cold" if self.cold else "", "loader process" if self.loader else ""]))
        return f"{' '.join(self.science)} nodes={self.nodes}{where} {how}: {'; '.join(map(str, self.events))}"
