"""Every unreadable sample is listed once, on all ranks alike, by rank 0; too many are an error on all of them."""

import logging
from pathlib import Path

import pytest
import torch

from dist_ssl.config.percentage import Share
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.progress import Progress
from dist_ssl.data.order.quarantine import Quarantine
from dist_ssl.data.storage import manifest
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError, TooManyUnreadableError
from dist_ssl.runtime import jsonl
from tests.ranks import Ranks


def batch(unreadable: dict[int, str]) -> Batch:
    """A batch of which only this is looked at."""
    nothing = torch.empty(0, dtype=torch.int64)
    return Batch([], nothing, nothing.bool(), None, Draws(0), 0, unreadable)


def at(step: int) -> Progress:
    """A position within the first epoch, of batches of 6."""
    return Progress(epochs=9, step=step, lane_offset=step, samples=6 * step)


def quarantine(folder: Path, shards: Path, world: World | None = None, attempt: int = 1, most: str = "100 %"):
    """The quarantine of a run on the demo data."""
    split = manifest.read(shards).split("train")
    path = folder / "quarantine.jsonl"
    return Quarantine(path, split, world=world or World(), attempt=attempt, max_bad=Share.parse(most))


def test_a_sample_is_listed_once_with_all_that_is_needed_to_find_it(
    demo_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = quarantine(tmp_path, demo_shards, attempt=4)
    split = kept.split
    with caplog.at_level(logging.WARNING):
        kept.record(at(7), batch({59: "empty"}))
        kept.record(at(7), batch({59: "empty"}))
    assert kept.news
    assert not kept.path.exists()
    kept.share_news(at(8))
    kept.record(at(30), batch({59: "empty"}))
    assert not kept.news
    kept.share_news(at(31))
    (row,) = jsonl.read(kept.path)
    assert row == {
        "split": "train",
        "number": 59,
        "shard": split.shards[-1].name,
        "key": split.samples.key(59),
        "reason": "empty",
        "epoch": 0,
        "step": 7,
        "attempt": 4,
    }
    (said,) = caplog.messages
    assert f"Sample {row['key']} of {row['shard']} cannot be read: empty." in said


def test_the_next_attempt_knows_what_was_listed_and_counts_per_reason(demo_shards: Path, tmp_path: Path) -> None:
    first = quarantine(tmp_path, demo_shards)
    assert first.metrics == {}
    first.record(at(0), batch({3: "empty", 9: "not an image", 40: "empty"}))
    first.share_news(at(1))
    second = quarantine(tmp_path, demo_shards, attempt=2)
    assert second.metrics == first.metrics == {"bad_samples/empty": 2.0, "bad_samples/not an image": 1.0}
    second.record(at(0), batch({3: "empty"}))
    assert not second.news


def test_a_line_cut_by_a_kill_is_written_again(demo_shards: Path, tmp_path: Path) -> None:
    first = quarantine(tmp_path, demo_shards)
    for number in (3, 9):
        first.record(at(number), batch({number: "empty"}))
        first.share_news(at(number + 1))
    first.path.write_text(first.path.read_text()[:-20])
    second = quarantine(tmp_path, demo_shards, attempt=2)
    second.record(at(9), batch({9: "empty"}))
    second.share_news(at(10))
    assert [row["number"] for row in jsonl.read(second.path)] == [3, 9]


def test_one_bad_image_of_sixty_is_more_than_one_percent(demo_shards: Path, tmp_path: Path) -> None:
    kept = quarantine(tmp_path, demo_shards, most="1 %")
    kept.record(at(2), batch({3: "empty"}))
    kept.share_news(at(3))  # by a save: the agreement brings it a step later
    with pytest.raises(DataError) as caught:
        kept.share_news(at(4))
    assert caught.value.problem == (
        "1 of the first 24 samples cannot be read (1 x empty): more than data.max_bad=1 %, 0 of the 60."
    )
    assert "data.max_bad='9 %'" in caught.value.remedy, "twice the share: of the others nothing is known"
    with pytest.raises(DataError, match=r"more than data\.max_bad=1 %"):
        quarantine(tmp_path, demo_shards, attempt=2, most="1 %")
    assert quarantine(tmp_path, demo_shards, attempt=2, most="2 %").metrics == {"bad_samples/empty": 1.0}


def test_the_last_step_of_an_epoch_is_judged_at_its_end(demo_shards: Path, tmp_path: Path) -> None:
    kept = quarantine(tmp_path, demo_shards, most="0 %")
    kept.record(at(4), batch({3: "empty"}))
    kept.share_news(at(5))
    with pytest.raises(DataError):
        kept.share_news(at(5).next_epoch())


def find_and_share(world: World, folder: Path, shards: Path) -> tuple[list[str], bool]:
    """Every rank meets samples of its own at two steps; what each knows in the end."""
    kept = quarantine(folder, shards, world, most="10 %")
    for step in (0, 1):
        kept.record(at(step), batch({10 * world.rank + step: f"reason {step}"}))
    kept.share_news(at(2))
    known = sorted(kept.metrics)
    kept.record(at(2), batch({51: "late"} if world.rank == 2 else {}))
    try:
        kept.share_news(at(4))
    except DataError as error:
        return known, "7 of the first 24 samples" in error.problem
    return known, False


def test_all_ranks_know_the_same_and_stop_together(ranks: Ranks, demo_shards: Path, tmp_path: Path) -> None:
    for known, stopped in ranks.run(find_and_share, 3, tmp_path, demo_shards):
        assert known == ["bad_samples/reason 0", "bad_samples/reason 1"]
        assert stopped
    assert [row["number"] for row in jsonl.read(tmp_path / "quarantine.jsonl")] == [0, 10, 20, 1, 11, 21, 51]


def test_a_line_that_names_no_sample_is_none(demo_shards: Path, tmp_path: Path) -> None:
    whole = {"split": "train", "number": 3, "reason": "empty", "step": 1}
    strange = [
        *({key: value for key, value in whole.items() if key != lost} for lost in whole),
        *({**whole, "number": value} for value in ("3", -1, 60, None, True, 3.0)),
        {**whole, "reason": ["empty"]},
        {**whole, "step": "x"},
        {**whole, "split": "val"},
    ]
    jsonl.append(tmp_path / "quarantine.jsonl", [*strange, {**whole, "number": 9}])
    kept = quarantine(tmp_path, demo_shards, attempt=2)
    assert kept.metrics == {"bad_samples/empty": 1.0}
    kept.record(at(5), batch({3: "not an image"}))
    kept.share_news(at(6))
    assert kept.metrics == {"bad_samples/empty": 1.0, "bad_samples/not an image": 1.0}


def test_the_reasons_that_are_said_are_those_of_the_samples_that_are_counted(demo_shards: Path, tmp_path: Path) -> None:
    kept = quarantine(tmp_path, demo_shards, most="1 %")
    kept.record(at(2), batch({3: "empty"}))
    kept.record(at(3), batch({5: "no image"}))
    with pytest.raises(DataError) as caught:
        kept.share_news(at(4))  # the sample of step 3 is judged one step later, whenever a save exchanges it
    assert caught.value.problem.startswith("1 of the first 24 samples cannot be read (1 x empty): more than")


def test_the_limit_that_is_advised_is_enough_once_all_samples_were_read(demo_shards: Path, tmp_path: Path) -> None:
    kept = quarantine(tmp_path, demo_shards, most="1 %")
    kept.record(at(10), batch({3: "empty", 7: "empty"}))
    with pytest.raises(TooManyUnreadableError) as caught:
        kept.share_news(at(12))
    assert caught.value.problem.startswith("2 of the 60 samples cannot be read")
    assert "data.max_bad='4 %'" in caught.value.remedy
    with pytest.raises(TooManyUnreadableError) as again:
        quarantine(tmp_path, demo_shards, attempt=2, most="1 %")
    assert "data.max_bad='7 %'" in again.value.remedy, "how many were read is not known at the start"
