"""Twenty runs that wander over world sizes under random kills, each with another sequence: every audit is clean.

Every fourth one loads in loader processes, and some of those are killed alone. A table at the end says what was done.
They are meant to take less than ten minutes on two quiet cores; `-k 'audit[7]'` is one of them.
"""

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from dist_ssl.runtime.end_names import FINISHED
from launch.ending import Ending
from launch.run_dir import AttemptDir, RunDir
from tests.system.launching import Launch, await_that, nothing_left, words
from tests.system.test_audit import audited, rows, spoilt_shards
from tests.system.test_kill import KINDS, disturb

__all__ = ["spoilt_shards"]
SIZES = (1, 1, 2, 2, 3, 4)
EPOCHS = 30
LENGTH = (f"epochs={EPOCHS}", "probe.every=200 epochs", "data.max_bad=10%")


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest) -> Iterator[Table]:
    """A table with a row per schedule, printed when all are done."""
    table = Table("", "seed", "nodes", "killed", "loader", "attempts", "seconds", "audit", title="schedules")
    yield table
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        Console(width=120).print("\n", table)


def finished(run: Path) -> bool:
    """Whether the newest attempt came to the end of the run."""
    ending = Ending.read(AttemptDir(RunDir(run), RunDir(run).newest_attempt()).folder / "outcome.json")
    return ending is not None and ending.outcome == FINISHED


def wander(run: Path, launch: Launch, kills: Sequence[str], sizes: Sequence[int], chance: random.Random) -> list[str]:
    """Kill something of the run so many times, each time resume it on so many nodes, and let it end.

    What was killed: less where the run ended before.
    """
    done: list[str] = []
    await_that(lambda: (run / "config.yaml").exists(), "a run folder")
    for kind, nodes in zip(kills, sizes, strict=True):
        disturb(launch, run, kind, chance)
        await_that(lambda: nothing_left(run), "no process left behind")
        attempts = RunDir(run).newest_attempt()
        if finished(run):
            return done
        done.append(kind)
        launch = Launch(f"resume={run}", f"nodes={nodes}")
        await_that(lambda: RunDir(run).newest_attempt() > attempts, "a new attempt")  # noqa: B023
    code, text = launch.finish()
    assert code == 0, text
    return done


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(20))
def test_a_random_schedule_has_a_clean_audit(
    number: int, spoilt_shards: Path, tmp_path: Path, told: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    run, seed, started = tmp_path / "wandering", int(time.time()) + number, time.monotonic()
    chance, beside = random.Random(seed), number % 4 == 0
    kinds = [*KINDS, "loader"] if beside else KINDS
    kills = [chance.choice(kinds) for _ in range(1 + number % 2)]
    sizes = [chance.choice(SIZES) for _ in range(1 + len(kills))]
    verdict = "NOT CLEAN"
    more = (
        f"nodes={sizes[0]}",
        f"save_every={chance.randint(1, 9)} steps",
        f"decode_threads={chance.randint(1, 2)}",
        f"window={chance.randint(2, 12)}",
        f"data.loader_process={str(beside).lower()}",
    )
    try:
        launch = Launch(*words(spoilt_shards, tmp_path, "name=wandering", *LENGTH, *more))
        kills = wander(run, launch, kills, sizes[1:], chance)
        code, text = audited(capsys, run)
        assert code == 0, text
        assert [row[2:4] for row in rows(text)] == [[57, 3]] * EPOCHS
        verdict = "clean"
    finally:
        way = " ".join(map(str, sizes[: 1 + len(kills)]))
        done = (str(RunDir(run).newest_attempt()), f"{time.monotonic() - started:.0f}", verdict)
        told.add_row(str(number), str(seed), way, " ".join(kills), "process" if beside else "threads", *done)
