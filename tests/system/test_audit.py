"""A real run that is killed and goes on elsewhere, on shards with unreadable images: its audit is clean, and honest."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dist_ssl.data.order.ledger_blocks import encode, rows_at, scan
from dist_ssl.data.storage import manifest
from dist_ssl.runtime import jsonl
from launch import audit
from tests.readers import rehashed
from tests.system.launching import Launch, await_that, status, words
from tests.web import serving

BAD = {3: b"", 17: b"GIF89a", 41: b"\xff\xd8\xff\xe0"}
"""Samples that are spoilt, and how their bytes begin; the rest of them are zeros."""
LENGTH = ("epochs=14", "probe.every=200 epochs", "save_every=3 steps", "data.max_bad=10%")


@pytest.fixture(scope="session")
def spoilt_shards(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo shards with three images that nobody can read."""
    folder = tmp_path_factory.mktemp("spoilt") / "shards"
    shutil.copytree(demo_shards, folder)
    split = manifest.read(folder).split("train")
    starts = [0, *split.shard_sizes.cumsum().tolist()]
    for number, head in BAD.items():
        shard = max(n for n, start in enumerate(starts) if start <= number)
        with split.path(shard).open("r+b") as file:
            file.seek(int(split.samples.offsets[number]))
            file.write(head.ljust(int(split.samples.sizes[number]), b"\0"))
    return rehashed(folder)


def audited(capsys: pytest.CaptureFixture[str], run: Path, *more: str) -> tuple[int, str]:
    """The audit's exit code and what it prints."""
    capsys.readouterr()
    code = audit.main([f"run={run}", *more])
    return code, capsys.readouterr().out


def rows(text: str) -> list[list[int]]:
    """The numbers of the table, one row per whole epoch."""
    found = [line.split() for line in text.splitlines()]
    return [[int(word) for word in row] for row in found if len(row) == 9 and all(word.isdigit() for word in row)]


@pytest.fixture(scope="module")
def moved(spoilt_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began on two nodes, was killed, and ended on three."""
    runs = tmp_path_factory.mktemp("runs")
    run = runs / "moved"
    with serving(spoilt_shards) as server:
        server.hold_after = 6 * 60  # it cannot end before it is killed: 14 epochs take 840 samples
        served = ("data.cache=null", f"data.path={server.url}")
        launch = Launch(*words(spoilt_shards, runs, "nodes=2", "name=moved", *LENGTH, *served), forked=True)
        await_that(lambda: status(run)["step"] > 20, "some steps")
        launch.kill_all()
    code, text = Launch(f"resume={run}", "nodes=3", f"data.path={spoilt_shards}", forked=True).finish()
    assert code == 0, text
    assert f"Samples that could not be read: 3, in {run}/quarantine.jsonl" in text
    return run


def test_killed_and_resumed_on_another_world_size_it_has_a_clean_audit(
    moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = audited(capsys, moved)
    assert code == 0, text
    assert "Clean: nothing was lost or repeated." in text
    assert "The contents of shards were not verified in attempt 1 (by range requests)" in text
    table = rows(text)
    assert [row[0] for row in table] == list(range(1, 15))
    for _, steps, used, replaced, dropped, lost, repeated, displaced, unclear in table:
        assert (steps, used, replaced, dropped) == (5, 57, 3, 0)
        assert lost == repeated == displaced == unclear == 0
    listed = jsonl.read(moved / "quarantine.jsonl")
    assert sorted(row["number"] for row in listed) == sorted(BAD)
    assert all(row["reason"] and row["shard"].startswith("train-") and row["key"] for row in listed)


def test_what_is_lost_or_moved_is_found_in_what_is_left_of_the_run(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(moved, run)
    book = run / "ledger" / "attempt_0001_joined.ledger"
    with book.open("rb") as file:
        blocks = [(block.rank, block.saved, rows_at(file, place)) for block, place in scan(file)]
    others = [encode(own, rank, 2, saved) for rank, saved, own in blocks if rank != 1]
    own = np.concatenate([own for rank, _, own in blocks if rank == 1])
    lines, hashes = range(len(own)), own["hash"].copy()
    own["hash"][:2] = hashes[1::-1]
    book.write_bytes(b"".join([*others, *(encode(own[n : n + 1], 1, 2) for n in lines)]))
    code, text = audited(capsys, run)
    assert code == 1
    assert "epoch 1, step 0, rank 1 of 2, attempt 1: the samples of step 1, rank 1 of 2" in text
    assert "NOT CLEAN" in text
    own["hash"] = hashes
    book.write_bytes(b"".join([*others, *(encode(own[n : n + 1], 1, 2) for n in lines if n != 1)]))
    code, text = audited(capsys, run)
    assert code == 1
    assert "step 1, rank 1 of 2, attempt 1: the ledger has no line for it" in text
    assert rows(text)[0][5] == 6


def test_a_run_under_way_is_audited_up_to_its_newest_checkpoint(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(moved, run)
    (newest,) = sorted((run / "attempts").iterdir())[-1:]
    (newest / "outcome.json").unlink()
    for folder in (run / "checkpoints").glob("step_*"):
        shutil.rmtree(folder)
    code, text = audited(capsys, run)
    assert code == 2
    assert "There is no checkpoint yet" in text
    (run / "checkpoints" / "step_00000013").mkdir()
    code, text = audited(capsys, run)
    assert code == 0
    assert "The run has not finished: the audit covers the 13 steps up to its newest checkpoint." in text
    assert len(rows(text)) == 2
    assert "3 of 5" in text


def test_a_run_that_ended_too_early_is_not_clean(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(moved, run)
    for folder in (run / "checkpoints").glob("step_*"):
        folder.rename(folder.with_name(f"step_{int(folder.name.removeprefix('step_')) - 1:08d}"))
    code, text = audited(capsys, run)
    assert code == 1
    assert "The run has finished at step 69 of epoch 14, before its end." in text


def test_what_cannot_be_audited_is_refused_with_a_remedy(
    moved: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*given: str) -> str:
        code = audit.main(list(given))
        text = capsys.readouterr().out
        assert code == 2, text
        return text

    assert "No run is given.\n  python launch/audit.py run=runs/NAME" in refusal()
    assert "There is no key 'rum'.\n  Did you mean 'run'?" in refusal(f"rum={moved}")
    assert f"is not a run folder.\n  Did you mean '{moved}'?" in refusal(f"run={moved.parent / 'move'}")
    assert "nowhere does not exist." in (text := refusal(f"run={moved}", "data.path=nowhere"))
    assert "Say where the run's data is now: data.path=..." in text
    other = tmp_path / "other"
    shutil.copytree(demo_shards, other)
    (other / "manifest.json").write_text((other / "manifest.json").read_text() + "\n")
    assert "is not the run's: the hash of its manifest is" in refusal(f"run={moved}", f"data.path={other}")
    run = tmp_path / "copy"
    shutil.copytree(moved, run)
    plan = run / "plan.jsonl"
    plan.write_text("".join(plan.read_text().splitlines(keepends=True)[:-2]))
    assert "plan.jsonl has no plan for the steps from" in refusal(f"run={run}")


def test_more_unreadable_images_than_are_allowed_stop_the_run(spoilt_shards: Path, tmp_path: Path) -> None:
    given = words(spoilt_shards, tmp_path, "nodes=1", "name=many", "epochs=2", "data.max_bad=2%")
    code, text = Launch(*given, forked=True).finish()
    assert code == 2, text
    assert " samples cannot be read (" in text
    assert "more than data.max_bad=2 %, 1 of the 60." in text
    assert f"They are listed in {tmp_path / 'many' / 'quarantine.jsonl'};" in text
    assert "Traceback" not in text
    assert len(jsonl.read(tmp_path / "many" / "quarantine.jsonl")) >= 2
