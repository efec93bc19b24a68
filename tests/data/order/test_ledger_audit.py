"""A thousand random schedules end in a clean audit, and an audit is never clean where a stream was not."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.order import ledger_reader
from dist_ssl.data.order.ledger import file_of
from dist_ssl.data.order.ledger_audit import EpochAudit
from dist_ssl.train import Outcome
from tests.simulation import Attempt, Run, bare, expected

SCHEDULES = 1000
LANES = 6
RANKS = (1, 2, 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without pixels."""
    bare(monkeypatch)


def random_run(folder: Path, chance: random.Random) -> Run:
    """Uneven shards, other batch sizes in other epochs, and, now and then, samples that cannot be read."""
    sizes = [chance.randint(1, 30) for _ in range(chance.randint(1, 4))]
    sizes[0] += max(0, 12 - sum(sizes))
    number = sum(sizes)
    batches = [LANES * chance.randint(1, min(4, number // LANES)) for _ in range(chance.randint(1, 3))]
    bad = frozenset(chance.sample(range(number), chance.choice((0, 0, 1, number // 10))))
    return Run(folder, sizes, batches, LANES, chance.randint(5, 50), chance.getrandbits(32), bad)


def random_attempt(run: Run, chance: random.Random) -> Attempt:
    """On any world size; it dies, is stopped, or is left alone, somewhere behind the last save."""
    ranks = chance.choice(RANKS)
    attempt = Attempt(ranks, chance.randint(1, 3), chance.choice((1, 2, 3, 1000)), torn=chance.random() < 0.3)
    when = (run.saved[0].step if run.saved else 0) + chance.randint(0, 6), chance.randrange(ranks)
    match chance.choice(("dies", "dies", "stops")):
        case "dies":
            return replace(attempt, dies_at=when)
        case _:
            return replace(attempt, stops_at=when)


def check(run: Run) -> None:
    """What the weights have seen is what they should have, and the audit says the same."""
    wanted = expected(run)
    assert run.saved is not None
    assert run.saved[1] == wanted
    audit = run.audit()
    assert audit.unsaved() == []
    tallies = audit.tallies()
    assert all(tally.clean for tally in tallies), [tally.notes for tally in tallies]
    met = {number for batch in wanted for number in batch} & run.bad
    assert {row["number"] for row in run.quarantine()} == met
    assert len(run.quarantine()) == len(met)
    for epoch, tally in enumerate(tallies):
        steps = tally.steps * run.batches[epoch]
        assert (tally.steps, tally.dropped) == (tally.of_steps, len(run.split.samples) - steps)
        assert tally.used + tally.replaced == steps
    assert sum(tally.replaced for tally in tallies) == sum(n in run.bad for batch in wanted for n in batch)


def test_a_thousand_random_schedules_end_in_a_clean_audit(tmp_path: Path) -> None:
    endings: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        chance = random.Random(seed)
        run = random_run(tmp_path / str(seed), chance)
        for _ in range(chance.randint(0, 4)):
            result = run.go(random_attempt(run, chance))
            endings[type(result[0]).__name__ if result[0] not in set(Outcome) else result[0].value] += 1
            if Outcome.FINISHED in result:
                break
        if Outcome.FINISHED not in (result := run.go(Attempt(chance.choice(RANKS), 2, 1000))):
            raise AssertionError(f"seed {seed}: {result}")
        check(run)
    assert min(endings["KilledError"], endings["stopped"], endings["finished"]) > 100, endings


def long_run(folder: Path, bad: frozenset[int] = frozenset()) -> Run:
    """Three epochs of five, five and two steps; 63 samples, so three are left over, and 15 with the larger batch."""
    return Run(folder, [20, 13, 30], [12, 12, 24], LANES, window=5, seed=3, bad=bad)


def finish(run: Run, ranks: int = 2, spoil: bool = True) -> list[EpochAudit]:
    """Let it end; the audit's tallies."""
    wrong, run.spoil = run.spoil, run.spoil if spoil else None
    result = run.go(Attempt(ranks, 2, save_every=2))
    assert Outcome.FINISHED in result, result
    run.spoil = wrong
    return run.audit().tallies()


def test_an_undisturbed_run_is_counted_to_the_last_sample(tmp_path: Path) -> None:
    tallies = finish(long_run(tmp_path, frozenset({7, 40})))
    assert [(t.steps, t.of_steps, t.dropped) for t in tallies] == [(5, 5, 3), (5, 5, 3), (2, 2, 15)]
    assert [t.used + t.replaced for t in tallies] == [60, 60, 48]
    assert sum(t.replaced for t in tallies) in range(4, 7)
    assert all(t.clean for t in tallies)


def test_of_a_run_under_way_only_the_steps_of_the_last_checkpoint_count(tmp_path: Path) -> None:
    run = long_run(tmp_path)
    assert run.go(Attempt(3, 1, save_every=4, dies_at=(7, 1))) != [Outcome.FINISHED] * 3
    first, *others = run.audit().tallies()
    assert (first.steps, first.used, first.dropped, first.clean) == (5, 60, 3, True), "saved at the end of the epoch"
    assert others == []
    run.go(Attempt(1, 1, save_every=4, dies_at=(9, 0)))
    assert [(t.steps, t.used, t.dropped) for t in run.audit().tallies()] == [(5, 60, 3), (3, 36, 0)]


def steps_of(folder: Path) -> set[int]:
    """The steps that a ledger has lines of."""
    found = ledger_reader.read(folder)
    return {step for attempt in found.restored() for step in found.between(attempt, 0, 1000)["step"].tolist()}


# ---- streams with a fault: the batches of rank 1 of 2 change from step 3 of an epoch on


def changed(batch: Batch, ids: list[int]) -> Batch:
    """A batch of other samples."""
    return replace(batch, ids=torch.tensor(ids, dtype=torch.int64))


def losing(batches: Iterator[Batch], rank: int, plan: EpochPlan, start: int) -> Iterator[Batch]:
    """One sample is missing."""
    for batch in batches:
        yield changed(batch, batch.ids.tolist()[1:]) if (rank, plan.epoch, batch.step) == (1, 1, 3) else batch


def repeating(batches: Iterator[Batch], rank: int, plan: EpochPlan, start: int) -> Iterator[Batch]:
    """A sample of an earlier step comes again, beside the others."""
    first = None
    for batch in batches:
        first = first or batch
        again = [*batch.ids.tolist(), int(first.ids[0])]
        yield changed(batch, again) if (rank, plan.epoch, batch.step) == (1, 1, 3) else batch


def replacing(batches: Iterator[Batch], rank: int, plan: EpochPlan, start: int) -> Iterator[Batch]:
    """A sample of an earlier step comes again, instead of another."""
    first = None
    for batch in batches:
        first = first or batch
        again = [int(first.ids[0]), *batch.ids.tolist()[1:]]
        yield changed(batch, again) if (rank, plan.epoch, batch.step) == (1, 1, 3) else batch


def swapping(batches: Iterator[Batch], rank: int, plan: EpochPlan, start: int) -> Iterator[Batch]:
    """Two steps exchange a sample."""
    held = list(batches)
    if (rank, plan.epoch, start) == (1, 1, 0):
        a, b = held[1].ids.tolist(), held[3].ids.tolist()
        held[1], held[3] = changed(held[1], [b[0], *a[1:]]), changed(held[3], [a[0], *b[1:]])
    yield from held


def scrambling(batches: Iterator[Batch], rank: int, plan: EpochPlan, start: int) -> Iterator[Batch]:
    """Half of a batch is that of another step."""
    held = list(batches)
    if (rank, plan.epoch, start) == (1, 1, 0):
        held[3] = changed(held[3], held[1].ids.tolist()[:3] + held[3].ids.tolist()[3:])
    yield from held


def doubling(batches: Iterator[Batch], rank: int, plan: EpochPlan, start: int) -> Iterator[Batch]:
    """The batch of a step is that of the step before."""
    last = None
    for batch in batches:
        yield last if last is not None and (plan.epoch, batch.step) == (1, 3) else batch
        last = batch


FAULTS = {
    "loses": (losing, (1, 0, 0, 0), "is missing"),
    "repeats": (repeating, (0, 1, 0, 0), "was added"),
    "replaces": (replacing, (1, 1, 0, 0), "instead of sample"),
    "swaps": (swapping, (0, 0, 2, 0), "instead of sample"),
    "scrambles": (scrambling, (0, 0, 0, 6), "the hash does not identify them"),
    "doubles": (doubling, (12, 12, 0, 0), "the samples of step 7, rank"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_stream_is_found_and_named(fault: str, tmp_path: Path) -> None:
    run = long_run(tmp_path)
    run.spoil, counts, note = FAULTS[fault]
    before, spoilt, after = finish(run)
    assert before.clean
    assert after.clean
    assert not spoilt.clean
    assert (len(spoilt.lost), len(spoilt.repeated), len(spoilt.moved), spoilt.unclear) == counts
    assert any(note in line for line in spoilt.notes), spoilt.notes
    assert all("step 8, " in line or "step 6, " in line for line in spoilt.notes), spoilt.notes


def test_the_samples_that_are_named_are_the_samples_that_were_lost_and_repeated(tmp_path: Path) -> None:
    run = long_run(tmp_path)
    run.spoil = replacing
    tally = finish(run)[1]
    wanted = expected(run)
    assert (tally.lost, tally.repeated) == ([wanted[8][6]], [wanted[5][6]])


def test_a_stream_that_resumes_one_step_off_is_found(tmp_path: Path) -> None:
    run = long_run(tmp_path)
    run.go(Attempt(2, 1, save_every=3, dies_at=(4, 0)))
    assert run.saved is not None
    assert run.saved[0].step == 3

    def early(batches: Iterator[Batch], rank: int, plan: EpochPlan, start: int) -> Iterator[Batch]:
        """The last batch before the resume comes again, and the last of the epoch never does."""
        held = list(batches)
        if plan.epoch == 0:
            held = [changed(held[0], expected(run)[2][6 * rank : 6 * rank + 6]), *held[:-1]]
        yield from held

    run.spoil = early
    first = finish(run)[0]
    wanted = expected(run)
    assert (first.lost, first.repeated) == (sorted(wanted[4]), sorted(wanted[2]))
    assert [line.rpartition(": ")[2][:22] for line in first.notes] == ["the samples of step 2,"] * 2 + [
        "the samples of step 3,"
    ] * 2


def test_a_run_that_goes_on_from_where_nothing_was_saved_is_found(tmp_path: Path) -> None:
    run = long_run(tmp_path)
    run.go(Attempt(2, 1, save_every=3, dies_at=(4, 0)))
    assert run.saved is not None
    progress, used = run.saved
    run.saved = (replace(progress, step=4, lane_offset=8), [*used, []])
    finish(run)
    (problem,) = run.audit().unsaved()
    assert problem.startswith("Attempt 2 resumed from step 4, ")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_a_ledger_has_lost_its_samples(rank: int, tmp_path: Path) -> None:
    run = long_run(tmp_path)
    finish(run)
    file_of(tmp_path / "ledger", 1, rank).unlink()
    tallies = run.audit().tallies()
    assert [len(t.lost) for t in tallies] == [30, 30, 24]
    assert all("the ledger has no line for it" in t.notes[0] for t in tallies)


def test_a_replaced_sample_that_the_quarantine_does_not_list_is_found(tmp_path: Path) -> None:
    run = long_run(tmp_path, frozenset({7}))
    assert all(t.clean for t in finish(run))
    (tmp_path / "quarantine.jsonl").unlink()
    assert "not all of which the quarantine lists" in run.audit().tallies()[0].notes[0]


def test_the_quarantine_is_the_same_at_every_world_size_and_after_every_kill(tmp_path: Path) -> None:
    bad = frozenset(range(0, 63, 6))
    alone = long_run(tmp_path / "alone", bad)
    finish(alone, ranks=1)
    moved = long_run(tmp_path / "moved", bad)
    for ranks, when in ((3, 2), (2, 4), (6, 7)):
        moved.go(Attempt(ranks, 2, save_every=2, dies_at=(when, ranks - 1), torn=True))
    finish(moved, ranks=3)
    assert [{**row, "attempt": 0} for row in moved.quarantine()] == [
        {**row, "attempt": 0} for row in alone.quarantine()
    ]
    assert moved.saved is not None
    assert alone.saved is not None
    assert moved.saved[1] == alone.saved[1] == expected(long_run(tmp_path / "whole"))
    (row,) = [row for row in alone.quarantine() if row["number"] == 36]
    assert (row["split"], row["shard"], row["key"], row["reason"]) == ("train", "train-002.tar", "key36", "empty")
    assert 36 in expected(alone)[row["step"]]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("save_every", [1, 2, 1000])
def test_too_many_stop_the_run_at_the_same_step_on_every_rank(ranks: int, save_every: int, tmp_path: Path) -> None:
    run = long_run(tmp_path, frozenset(range(0, 63, 6)))
    run.max_bad = "5 %"  # 3 of 63
    (message,) = {str(error) for error in run.go(Attempt(ranks, 1, save_every))}
    bad_of = [sum(number in run.bad for number in batch) for batch in expected(run)]
    over = next(step for step in range(len(bad_of)) if sum(bad_of[: step + 1]) > 3)
    assert message.startswith(f"{sum(bad_of[: over + 1])} of the first ")
    assert " samples cannot be read (" in message
    assert "x empty): more than data.max_bad=5 %, 3 of the 63.\n" in message
    assert str(tmp_path / "quarantine.jsonl") in message
    made = steps_of(tmp_path / "ledger")
    assert made == set(range(over + 2)), "the news are a step on their way"
    (again,) = run.go(Attempt(1, 1, 1000))
    assert "more than data.max_bad=5 %" in str(again), "known from the start of the next attempt"
    assert steps_of(tmp_path / "ledger") == made


def test_as_many_as_are_allowed_do_not_stop_the_run(tmp_path: Path) -> None:
    run = long_run(tmp_path, frozenset(range(0, 63, 6)))
    run.max_bad = "17.47 %"  # 11 of 63 are 17.46 %
    assert all(t.clean for t in finish(run))
    assert len(run.quarantine()) == len({n for batch in expected(run) for n in batch} & run.bad)
