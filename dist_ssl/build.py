"""The composition root: a resolved config in, a `Job` out. No other module of the package sees one but `parts.py`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.config.encoder_node import make_encoder
from dist_ssl.config.instantiate import fit, instantiate
from dist_ssl.config.meta_device import META, on_meta_device
from dist_ssl.config.precision import PRECISIONS
from dist_ssl.config.run_keys import Config, method_of
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.order.ledger import Ledger
from dist_ssl.data.order.quarantine import Quarantine
from dist_ssl.data.order.source_shares import described
from dist_ssl.data.order.source_shares import metrics as of_sources
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.contents import ShardContents
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.memory_size import memory_size
from dist_ssl.distributed.rendezvous import own_addresses
from dist_ssl.distributed.world import World
from dist_ssl.engines.memory_need import MemoryEstimate, check_memory, is_small
from dist_ssl.engines.parallel import Parallel
from dist_ssl.engines.saved_tensors import AbsentRanks
from dist_ssl.evaluate.evidence import check_probed, doubts
from dist_ssl.evaluate.features import Extractor, subset
from dist_ssl.evaluate.inputs import CentreView, Inputs
from dist_ssl.evaluate.knn import KNN, NoProbe
from dist_ssl.evaluate.probe_keys import Probing
from dist_ssl.metrics.goodput import Goodput
from dist_ssl.metrics.meter import Meter
from dist_ssl.metrics.sinks import JsonLines, Prometheus, Status, TextFile
from dist_ssl.metrics.target_files import target_of, textfile_of
from dist_ssl.metrics.trackers.detached import trackers
from dist_ssl.parts import Parts, left_out, make_method, parts, probing
from dist_ssl.protocols.engine import Engine
from dist_ssl.protocols.probe import Probe
from dist_ssl.protocols.sink import Sink
from dist_ssl.runtime.agreement import Agreement
from dist_ssl.runtime.coordinator import Coordinator
from dist_ssl.runtime.run_folder import RunFolder
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job


@dataclass(frozen=True)
class Place(RunFolder):
    """The run folder and number of an attempt. `newest`: returns whether no newer attempt has started; `restarts`:
    the number of earlier attempts, by the cause for which there was another one; `science`: the keys and values of the
    config that the result depends on."""

    attempt: int
    newest: Callable[[], bool]
    restarts: Mapping[str, int] = field(default_factory=dict)
    science: Mapping[str, Any] = field(default_factory=dict)


def check(config: Config, ranks: int, note: Callable[[str], object] | None = None, memory: int | None = None) -> str:
    """Check everything that can be checked before a run starts, on the meta device; return the data's identity.

    `note`: is given what a person should know of data that is accepted. `memory`: bytes that every rank will have; None
    where they are not known yet.
    """
    with on_meta_device():
        found = parts(config, World(), ranks)
        build_engine(config, found, World(device=META))
    found.access.check(found.train, -(-found.run.lanes // found.run.nodes), found.run.window)
    remarks = [*described(found.train), *left_out(config, found.data.rules.channels)]
    if found.data.val is not None:
        replace(found.access, cache=None).check(val := found.dataset.split(found.data.val), 1, 1)
        check_probed(found.reference, val)
        remarks += doubts(found.reference, val) if probed(found) else []
    for remark in remarks:
        if note:
            note(remark)
    for key, kind in (("port", int), ("bind", str | None), ("textfile", str | None)):
        fit(config["metrics"][key], kind, f"metrics.{key}")
    trackers(config["tracker"], Path())
    if memory is not None:
        check_memory(memory_estimate(config, found, ranks), memory, found.schedule.plans(found.run.all_epochs))
    return found.dataset.identity


def memory_estimate(config: Config, p: Parts, ranks: int, per_node: int | None = None) -> MemoryEstimate:
    """Return the estimate of the memory that epochs need on each of `ranks` ranks.

    `per_node`: ranks of a node; None: as many as the config says, which torchrun need not start.
    """
    with on_meta_device():
        world = AbsentRanks(size=ranks) if p.virtual_ranks is None else World()
        method = make_method(
            config, make_encoder(config["encoder"], p.data.rules.channels), len(p.train.samples), world
        )
        engine = build_engine(config, replace(p, method=method), World(device=META))
    assert isinstance(engine, Parallel)
    return MemoryEstimate(
        engine, ranks, per_node or p.run.ranks_per_node or 1, p.difficulty.scored_bytes, p.data.rules.channels
    )


def build_engine(config: Config, p: Parts, world: World) -> Engine:
    """Return the engine that wraps the method on this rank."""
    own = PRECISIONS[p.run.precision]
    given: dict[str, Any] = {"dtype": own.dtype, "compute": own.compute, "tf32": own.tf32, "ema": p.run.ema}
    engine: Engine = instantiate(config["engine"], "engine", method=p.method, recipe=p.optimizer, world=world, **given)
    return engine


def build(config: Config, world: World, signals: Signals, place: Place) -> Job:
    """Return the job of one rank."""
    p = parts(config, world, world.size, place.folder)
    process = p.data.process(world.device)
    return Job(
        fresh=Progress(epochs=p.run.all_epochs, attempt=place.attempt),
        engine=(engine := build_engine(config, p, world)),
        stream=stream(p, world, process, engine),
        schedule=p.schedule,
        coordinator=coordinator(config, p, world, place),
        checkpoint=Checkpoint(
            place.checkpoints,
            world,
            keep_last=p.run.keep_last,
            keep_every=p.run.keep_every,
            attempt=place.attempt,
            newest=place.newest,
            science=place.science,
        ),
        agreement=Agreement(world, signals, p.run.save_every, p.run.keep_every),
        probe=probe(config, p, world, process),
        meter=Meter(
            world,
            sinks(config, p, world, place),
            p.timeline.total,
            Goodput.of(place.folder, place.restarts),
            place.newest,
        ),
        ledger=Ledger(place.ledger, place.attempt, world),
        quarantine=Quarantine(place.quarantine, p.train, world=world, attempt=place.attempt, max_bad=p.data.max_bad),
        contents=ShardContents(p.train, p.access, place.ledger, place.attempt, world=world, verify=p.data.verify),
        log_every=p.run.log_every,
    )


def coordinator(config: Config, p: Parts, world: World, place: Place) -> Coordinator:
    """Return the source of epoch plans, which are checked against the memory of the rank that has the least."""
    room = min(world.collect(memory_size(world)))

    def fit(plans: Sequence[EpochPlan]) -> None:
        if not is_small(p.method, plans, world.size, room):
            check_memory(memory_estimate(config, p, world.size, world.local_size), room, plans)

    return Coordinator(p.schedule, world=world, record=place.plans, check=p.check, fit=fit)


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
        rules=p.data.rules,
        parts=(p.virtual_ranks or world.size) // world.size,
        difficulty=p.difficulty,
        clock=engine.clock,
    )


def last_side(p: Parts) -> int:
    """Return the side of the global views of the last epoch, px."""
    return p.schedule.plan(p.run.all_epochs - 1).image_size


def centre_view(p: Parts, node: Probing) -> CentreView:
    """Return the view of an image that the keys of the probe describe."""
    resize, crop = node.sides(last_side(p))
    colours, rules = Colours(p.data.mean, p.data.std), p.data.rules
    return CentreView(colours, PRECISIONS[p.run.precision].dtype, resize=resize, crop=crop, rules=rules)


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


def probed(p: Parts) -> manifest.Split | None:
    """Return the held-out split that is probed, None without one or where it or its training split has no labels."""
    val = p.dataset.split(p.data.val) if p.data.val is not None else None
    return val if val is not None and p.reference.labelled and val.labelled else None


def probe(config: Config, p: Parts, world: World, process: LoaderProcess | None) -> Probe:
    """Return the kNN probe if there is a held-out split and both splits have labels, else a probe that does nothing."""
    val, node = probed(p), probing(config)
    if val is None:
        return NoProbe()
    seen = centre_view(p, node)
    return KNN(
        (extractor(p, p.reference, seen, world, process), subset(len(p.reference.samples), node.bank, p.run.seed)),
        (extractor(p, val, seen, world, process), subset(len(val.samples), node.queries, p.run.seed)),
        every=node.every,
        k=node.k,
        temperature=node.temperature,
        branch=node.branch,
    )


def sinks(config: Config, p: Parts, world: World, place: Place) -> list[Sink]:
    """Return the sinks of rank 0, which receive the run's metrics; no other rank has any."""
    if world.rank != 0:
        return []
    node, checkpoints = config["metrics"], place.checkpoints
    target, textfile = target_of(place.folder), textfile_of(place.folder, node["textfile"])
    queries = min(probing(config).queries, len(val.samples)) if (val := probed(p)) else 0
    labels = {"run": place.folder.name, "method": method_of(config)}

    def more(progress: Progress) -> Mapping[str, float]:
        """Return the samples used of every source, in files only: a run has as many series as it may have."""
        return of_sources(p.train, progress.samples)

    return [
        JsonLines(place.metrics, more),
        Status(place.status, p.timeline.total, p.timeline.steps, queries, more),
        Prometheus(labels, own_addresses()[0], node["port"], target, checkpoints, bind=node["bind"]),
        *([TextFile(textfile, labels, checkpoints)] if textfile else []),
        *trackers(config["tracker"], place.folder),
    ]
