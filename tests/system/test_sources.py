"""A real run over three sources, one of them on a server, that is killed and resumed on another world size."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dist_ssl.data.order.source_shares import METRIC
from dist_ssl.distributed.world import World
from dist_ssl.metrics.sinks import read_reports
from launch import audit, plan, slurm
from launch.evaluate import main as evaluate
from launch.run_dir import RunDir
from launch.run_files import write_yaml
from shards import make
from shards.sources import demo
from tests.jobs import Recorder, attempt, finished, run_job, small_config, small_job, together
from tests.ranks import Ranks
from tests.system.launching import Launch, await_that, delivered, status, weights, words
from tests.web import serving

WEIGHTS = (3, 2, 1)
SAMPLES, STEPS, BATCH = 104, 8, 12
EPOCHS = 6
LENGTH = (f"epochs={EPOCHS}", "probe.every=200 epochs", "save_every=3 steps")
SHARES = f"data.weights=[{','.join(map(str, WEIGHTS))}]"


@pytest.fixture(scope="module")
def places(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Data sets of 60, 30 and 14 samples."""
    made = tmp_path_factory.mktemp("sources")
    for name, samples in (("b", 30), ("c", 14)):
        options = demo.DemoOptions(train=samples, val=0, shard_bytes=10000)
        make.make("demo", made / name, Console(quiet=True), options)
    return [str(demo_shards), str(made / "b"), str(made / "c")]


def listed(places: list[str]) -> str:
    """The value of data.path."""
    return f"[{','.join(places)}]"


@pytest.fixture(scope="module")
def moved(places: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began on two nodes, was killed, and ended on one, where all of the data is local."""
    runs = tmp_path_factory.mktemp("runs")
    run = runs / "moved"
    with serving(Path(places[1])) as server:
        server.hold_after = EPOCHS * SAMPLES // 6  # half of what the run reads there
        own = listed([places[0], server.url, places[2]])
        served = ("data.cache=null", f"data.path={own}")
        launch = Launch(*words(Path(places[0]), runs, "nodes=2", "name=moved", SHARES, *LENGTH, *served), forked=True)
        await_that(lambda: status(run)["step"] > STEPS, "some steps")
        launch.kill_all()
    code, text = Launch(f"resume={run}", "nodes=1", f"data.path={listed(places)}", forked=True).finish()
    assert code == 0, text
    return run


@pytest.mark.chaos
def test_its_samples_are_those_of_an_uninterrupted_run(moved: Path, places: list[str], tmp_path: Path) -> None:
    alone = small_config(
        Path(places[0]), f"data.path={listed(places)}", SHARES, f"epochs={EPOCHS}", "probe.every=3 epochs"
    )
    assert len(trained(World(), alone, tmp_path / "alone")) == EPOCHS * STEPS
    assert delivered(moved) == delivered(tmp_path / "alone")
    accuracies = [report for report in read_reports(tmp_path / "alone" / "metrics.jsonl") if "knn_accuracy" in report]
    assert len(accuracies) == EPOCHS // 3, "the probe compares the source that has a held-out split"


@pytest.mark.chaos
def test_its_audit_is_clean_and_its_shares_are_exact(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([f"run={moved}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Clean: nothing was lost or repeated." in text
    total = EPOCHS * STEPS * BATCH
    for number, weight in enumerate(WEIGHTS, start=1):
        count = total * weight // sum(WEIGHTS)
        assert f"source {number}, " in text
        assert f": {count} samples, +0.00 from its share" in text
    for report in read_reports(moved / "metrics.jsonl"):
        counts = [report[f"{METRIC}/{number}"] for number in range(1, len(WEIGHTS) + 1)]
        assert sum(counts) == report["samples"]
        for count, weight in zip(counts, WEIGHTS, strict=True):
            assert abs(count - report["samples"] * weight / sum(WEIGHTS)) <= 1
    assert status(moved)[f"{METRIC}/1"] == total / 2


@pytest.mark.chaos
def test_what_the_run_began_with_may_not_change(
    moved: Path, places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for word, message in (
        ("data.weights=[3,2,2]", "data.weights=[3, 2, 2] is not what the run began with"),
        (f"data.path={listed(places[::-1])}", "is not the run's"),
        (f"data.path={places[0]}", "data.weights=[3,2,1] is not possible with a single data.path"),
    ):
        assert slurm.main([f"resume={moved}", "epochs=6", word]) == 2
        assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.chaos
def test_the_audit_and_the_evaluation_find_moved_data(
    moved: Path, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [str(shutil.copytree(place, tmp_path / str(n))) for n, place in enumerate(places)]
    assert audit.main([f"run={moved}", f"data.path={listed(copies)}"]) == 0
    own = ("threads=1", f"data.path={listed(copies)}")
    assert evaluate([f"run={moved}", "protocol=knn", *own, "bank=24", "queries=12", "k=3"]) == 0
    assert "knn" in capsys.readouterr().out


def test_the_plan_says_what_an_epoch_is(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(
        Path(places[0]),
        tmp_path,
        f"data.path={listed(places)}",
        SHARES,
        "nodes=1",
        "steps=0",
        f"out={tmp_path / 'plan.png'}",
    )
    assert plan.main(given) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "An epoch has 104 samples, as many as the 3 sources have together:" in text
    assert f"source 3, {places[2]}: 16.67 % of them, 1.24 passes over its 14 samples" in text


def trained(world: World, config: dict[str, Any], folder: Path) -> list[list[int]]:
    """Train to the end; the samples of every step on this rank."""
    job = small_job(world, config, folder)
    recorder = Recorder(job.stream)
    job.stream = recorder  # type: ignore[assignment]
    assert finished(job)
    return recorder.ids


def test_a_bank_has_a_row_for_every_sample_of_every_source(places: list[str], ranks: Ranks, tmp_path: Path) -> None:
    own = ("method=single_branch", "epochs=2", "precision=fp64", "probe.every=9 epochs", "schedule.warmup=null")
    config = small_config(Path(places[0]), f"data.path={listed(places)}", SHARES, *own)
    ids = trained(World(), config, tmp_path / "one")
    assert together(ranks.run(trained, 2, config, tmp_path / "two")) == ids
    one, two = (weights(tmp_path / name)["model/bank.rows"] for name in ("one", "two"))
    assert one.shape[0] == SAMPLES
    torch.testing.assert_close(two, one, rtol=0, atol=1e-9)


def test_a_run_that_is_cut_on_two_ranks_and_ends_on_one_has_a_clean_audit_and_exact_shares(
    places: list[str], ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("epochs=3", "save_every=3 steps", "probe.every=9 epochs")
    config, run = small_config(Path(places[0]), f"data.path={listed(places)}", SHARES, *own), RunDir(tmp_path / "run")
    run.folder.mkdir()
    write_yaml(run.config_file, {"format": 1, **config})
    for _ in range(2):
        run.new_attempt(config)
    assert ranks.run(attempt, 2, config, run.folder, 1, 11) == [None, None], "cut off two steps after it was saved"
    ids, _ = run_job(World(), config, run.folder, 2)
    assert len(ids) == 3 * STEPS - 9
    assert audit.main([f"run={run.folder}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Clean: nothing was lost or repeated." in text
    total = 3 * STEPS * BATCH
    assert [f": {total * weight // sum(WEIGHTS)} samples, +0.00 from its share" in text for weight in WEIGHTS] == [
        True
    ] * 3
