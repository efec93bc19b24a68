"""Runs over several sources, killed and resumed on other world sizes: samples come as planned, and audits are clean."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_ssl.data.order import source_shares as shares
from dist_ssl.data.order.ledger_audit import EpochAudit
from dist_ssl.data.storage.mixture import MixedSplit
from dist_ssl.train import Outcome
from tests.data.order.test_ledger_audit import FAULTS
from tests.simulation import Attempt, Run, bare, expected

RUNS = 30
LANES = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without pixels."""
    bare(monkeypatch)


def random_run(folder: Path, chance: random.Random) -> Run:
    """Sources of any sizes and weights; a batch may have more samples than a source."""
    sizes = [chance.randint(1, 40) for _ in range(chance.randint(2, 5))]
    sizes[0] += max(0, 12 - sum(sizes))
    batches = [LANES * chance.randint(1, sum(sizes) // LANES) for _ in range(chance.randint(1, 4))]
    weights = [chance.randint(1, 12) for _ in sizes]
    return Run(folder, sizes, batches, LANES, chance.randint(1, 50), chance.getrandbits(32), weights=weights)


def check(run: Run) -> None:
    """The weights have seen what they should have, in exact shares; the audit says the same."""
    assert run.saved is not None
    assert isinstance(run.split, MixedSplit)
    assert run.saved[1] == expected(run)
    ends = np.cumsum(run.shard_sizes)
    counts, seen = np.zeros(len(ends)), 0
    for batch in run.saved[1]:
        counts += np.bincount(np.searchsorted(ends, batch, side="right"), minlength=len(ends))
        seen += len(batch)
        assert np.abs(counts - shares.asked(run.split, seen)).max() < len(batch), "exact to one batch at every step"
        assert counts.tolist() == shares.used(run.split, seen)
    times = np.bincount(np.concatenate(run.saved[1]), minlength=int(ends[-1]))
    for own in np.split(times, ends[:-1]):
        assert own.max() - own.min() <= 1, "no sample is used again before its source has been passed"
    tallies = run.audit().tallies()
    assert run.audit().unsaved() == []
    assert all(tally.clean for tally in tallies), [tally.notes for tally in tallies]
    assert [sum(each) for each in zip(*(t.of_sources for t in tallies), strict=True)] == counts.tolist()
    for tally, size in zip(tallies, run.batches, strict=True):
        assert (tally.dropped, tally.used) == (0, tally.of_steps * size)


def test_random_runs_that_die_anywhere_use_every_sample_as_planned(tmp_path: Path) -> None:
    killed = 0
    for seed in range(RUNS):
        chance = random.Random(seed)
        run = random_run(tmp_path / str(seed), chance)
        for _ in range(chance.randint(0, 3)):
            ranks = chance.choice((1, 2, 3))
            when = (run.saved[0].step if run.saved else 0) + chance.randint(0, 4), chance.randrange(ranks)
            result = run.go(Attempt(ranks, 2, chance.choice((1, 2, 1000)), dies_at=when))
            killed += Outcome.FINISHED not in result
            if Outcome.FINISHED in result:
                break
        if Outcome.FINISHED not in (result := run.go(Attempt(chance.choice((1, 2, 3)), 1, 1000))):
            raise AssertionError(f"seed {seed}: {result}")
        check(run)
    assert killed > RUNS / 2


def finished(run: Run) -> list[EpochAudit]:
    """Let it end; the audit's tallies."""
    result = run.go(Attempt(2, 2, save_every=2))
    assert Outcome.FINISHED in result, result
    return run.audit().tallies()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_samples_come_several_times(fault: str, tmp_path: Path) -> None:
    run = Run(tmp_path, [40, 5, 18], [12, 12, 24], LANES, window=5, seed=3, weights=[2, 2, 1])
    run.spoil, _, note = FAULTS[fault]
    before, spoilt, after = finished(run)
    assert before.clean
    assert after.clean
    assert not spoilt.clean
    assert any(note in line for line in spoilt.notes), spoilt.notes


def test_one_use_too_few_and_one_too_many_are_told_from_the_planned_ones(tmp_path: Path) -> None:
    plain = Run(tmp_path / "plain", [40, 5], [15], 3, window=5, seed=3, weights=[1, 1])
    uses = [number for batch in expected(plain) for number in batch]
    small = max(range(40, 45), key=uses.count)
    assert uses.count(small) > 3

    def twice(batches, rank, plan, start):  # type: ignore[no-untyped-def]
        for batch in batches:
            ids = batch.ids.tolist()
            if rank == 0 and batch.step == 1:
                ids[next(n for n, number in enumerate(ids) if number < 40)] = small
            yield replace(batch, ids=torch.tensor(ids))

    run = Run(tmp_path / "spoilt", [40, 5], [15], 3, window=5, seed=3, weights=[1, 1], spoil=twice)
    assert Outcome.FINISHED in run.go(Attempt(1, 1, save_every=100))
    (tally,) = run.audit().tallies()
    assert tally.repeated == [small]
    assert len(tally.lost) == 1
    assert tally.lost[0] < 40


def test_unreadable_samples_of_a_source_are_counted_at_every_use(tmp_path: Path) -> None:
    bad = frozenset({3, 42})
    run = Run(tmp_path, [40, 9], [12, 12], LANES, window=5, seed=3, bad=bad, weights=[1, 1])
    tallies = finished(run)
    assert all(tally.clean for tally in tallies)
    assert {(row["number"], row["source"]) for row in run.quarantine()} == {(3, 1), (42, 2)}
    assert sum(tally.replaced for tally in tallies) > len(bad), "one of them is used in several passes"
