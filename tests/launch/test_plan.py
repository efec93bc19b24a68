"""The plan of a run is shown before it starts: epochs, relative costs, a prediction, and its curves as a picture."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dist_ssl.core.plan import EpochPlan
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.runtime import jsonl
from launch import plan
from launch.calibration import Cost, by_pixels, kind_of, of_run, share_of_probe
from launch.prediction import Prediction
from launch.run_dir import RunDir
from launch.run_files import write_yaml
from tests.jobs import SMALL, run_job, small_config

GROWING = ("schedule=accelerated", "schedule.start_scale=0.5", "epochs=5", "cluster=local", "nodes=2")
SMALL_PLAN = EpochPlan(0, 16, 0.5, 2, 24, 12)
LARGE_PLAN = EpochPlan(1, 32, 1.0, 2, 24, 12)


def shown(capsys: pytest.CaptureFixture[str], data: Path, folder: Path, *words: str) -> tuple[int, str]:
    """The exit code and what is printed."""
    held = [*SMALL, f"data.path={data}", "data.source=null", f"out={folder / 'plan.png'}"]
    code = plan.main([*held, *words])
    return code, capsys.readouterr().out


def rows(text: str) -> list[list[str]]:
    """The cells of the table."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return [cells for cells in lines if len(cells) == len(plan.COLUMNS) and cells != list(plan.COLUMNS)]


def test_without_a_measurement_costs_are_those_of_the_pixels(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shown(capsys, demo_shards, tmp_path, *GROWING, "steps=0")
    assert code == 0
    found = [(cells[0], cells[2], cells[3], cells[-1]) for cells in rows(text)]
    costs = [f"{(side / 16) ** 2:.2f}" for side in (8, 8, 12, 12, 16)]
    magnitudes = ["0.5", "0.5", "0.667", "0.833", "1"]
    sizes = ["8 px", "8 px", "12 px", "12 px", "16 px"]
    assert found == list(zip("12345", sizes, magnitudes, costs, strict=True))
    memory = [float(cells[plan.COLUMNS.index("memory, GiB")]) for cells in rows(text)]
    assert 0 < memory[0] == memory[1] < memory[2] < memory[4]
    assert "on each of 2 ranks." in text
    assert "The epochs cost 0.53 of what they would cost if all were like the last." in text
    assert "Predict" not in text
    assert not (tmp_path / "plan.json").exists(), "costs in proportion to pixels predict no time"
    with Image.open(tmp_path / "plan.png") as image:
        assert image.size == (900, 4 * 150), "learning rate, momentum, image size and magnitude"


def test_a_few_measured_steps_predict_time_and_energy(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = shown(capsys, demo_shards, tmp_path, *GROWING, "steps=1", "watts=100")
    assert code == 0
    assert "Measuring kind 2 of 3 (steps=0: none): 1 step with 2 views of 12 px, batch 12 ..." in text, "it takes long"
    assert "Measured here: 1 step of each of 3 kinds on one cpu process; 2 ranks share" in text
    found = re.search(r"Predicted: (\d+):(\d+), of which probes \d+:\d+; (\S+) node-hours; energy: (\S+) Wh\.", text)
    assert found
    assert float(found[4]) == pytest.approx(100 * float(found[3]), rel=0.01)
    prediction = Prediction.read(tmp_path / "plan.json")
    assert [samples for samples, _ in prediction.points] == [0, 60, 120, 180, 240, 300], "of every epoch"
    assert prediction.points[-1][1] / 3600 * 2 == pytest.approx(float(found[3]), rel=0.01), "on two nodes"
    assert prediction.source.startswith("Measured here: 1 step of each of 3 kinds")
    assert float(rows(text)[-1][-1]) == 1.0


def test_a_step_that_this_machine_has_no_memory_for_is_not_measured(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "memory_size", lambda world: 1000)
    code, text = shown(capsys, demo_shards, tmp_path, *GROWING, "steps=1")
    assert code == 2
    assert "A rank's step cannot be measured on this machine. Epoch 2 does not fit into memory" in text
    assert "batch 6 on 1 rank" in text
    assert "steps=0" in text


def test_the_speed_may_come_from_a_run(demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(demo_shards, "schedule=accelerated", "schedule.start_scale=0.5", "epochs=5", "nodes=1")
    config["ranks_per_node"] = 1
    run_job(World(), config, tmp_path / "run")
    write_yaml(tmp_path / "run" / "config.yaml", {"format": 1, **config})
    code, text = shown(capsys, demo_shards, tmp_path, *GROWING, f"measured={tmp_path / 'run'}")
    assert code == 0
    assert "with 1 rank, divided by 2 for 2 ranks." in text
    cost, alone = (of_run(RunDir.open(tmp_path / "run"), ranks) for ranks in (2, 1))
    assert {kind[0] for kind in cost.seconds} == {8, 12, 16}
    for kind, (_, step) in cost.seconds.items():
        assert step == pytest.approx(alone.seconds[kind][1] / 2)
    logged = [row["step_seconds"] for row in jsonl.read(tmp_path / "run" / "metrics.jsonl") if "step_seconds" in row]
    assert min(logged) <= min(step for _, step in alone.seconds.values())


def test_an_epoch_costs_its_first_batch_and_its_steps_and_one_that_is_unknown_its_pixels() -> None:
    cost = Cost({kind_of(SMALL_PLAN): (1.0, 0.5)}, 0.0, "")
    assert cost.epoch(SMALL_PLAN, 10) == 6.0
    assert cost.epoch(LARGE_PLAN, 10) == 24.0
    assert by_pixels([SMALL_PLAN, LARGE_PLAN]).epoch(SMALL_PLAN, 8) == 2.0


def test_epochs_with_candidates_cost_what_they_were_measured_to_and_show_of_how_many_views_are_chosen(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = replace(SMALL_PLAN, candidates=4)
    for plans in ((SMALL_PLAN, hard), (hard, SMALL_PLAN)):
        seconds = {kind_of(one): (0.0, float(one.candidates)) for one in plans}
        assert [Cost(seconds, 0.0, "").epoch(one, 10) for one in plans] == [10.0 * one.candidates for one in plans]
    words = ("schedule.candidates=4", "schedule.candidates_from=0.5", "epochs=4", "steps=0", "cluster=local", "nodes=1")
    _, text = shown(capsys, demo_shards, tmp_path, *words)
    assert [cells[4] for cells in rows(text)] == ["2", "2", "2 of 8", "2 of 8"]


def test_steps_with_fewer_tokens_are_a_kind_of_their_own() -> None:
    fewer = replace(SMALL_PLAN, keep_tokens=0.5)
    cost = Cost({kind_of(SMALL_PLAN): (0.0, 1.0), kind_of(fewer): (0.0, 0.6)}, 0.0, "")
    assert (cost.epoch(SMALL_PLAN, 10), cost.epoch(fewer, 10)) == (10, 6)


def test_the_probe_is_scaled_to_the_images_that_it_has() -> None:
    config = {"probe": {"bank": 6000, "queries": 1000}}
    assert share_of_probe(config, [6000, 1000]) == 10
    assert share_of_probe(config, [300, 50]) == 1
    assert share_of_probe(config, [1200, 50]) == pytest.approx(1250 / 650)


def test_a_long_run_has_several_epochs_in_a_row(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = shown(capsys, demo_shards, tmp_path, "epochs=200", "extend=[100 epochs]", "steps=0", "cluster=local")
    found = [cells[0] for cells in rows(text)]
    assert found[0] == "1-8"
    assert found[-1] == "297-300"
    assert "201-208" in found


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("steps=few", "steps or watts is no number"),
        ("watts=-1", "watts more than 0"),
        ("out=plan.json", "out=plan.json would be the prediction"),
    ],
)
def test_options_that_cannot_be_are_refused(word: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        plan.PlanOptions.parse([word])


def test_without_watts_the_energy_is_unknown() -> None:
    options, others = plan.PlanOptions.parse(["method=mocov3", "steps=2"])
    assert math.isnan(options.watts)
    assert others == ["method=mocov3"]


def test_a_link_in_the_place_of_the_picture_is_not_followed(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "thesis"
    canary.write_text("years of work")
    (tmp_path / "plan.png").symlink_to(canary)
    assert shown(capsys, demo_shards, tmp_path, *GROWING, "steps=0")[0] == 0
    assert canary.read_text() == "years of work"
    with Image.open(tmp_path / "plan.png") as image:
        assert image.width == 900
