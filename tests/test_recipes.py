"""Recipes can be built as their commands say, their headers tell the truth about them, and those of the demo train."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ssl.build import build_engine
from dist_ssl.distributed.world import World
from dist_ssl.evaluate.linear_recipes import LINEAR
from dist_ssl.parts import parts
from launch import settings
from launch.run_dir import PROJECT
from tests.jobs import finished, small_job

FOLDER = PROJECT / "configs" / "recipe"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DEMO = [name for name in NAMES if name.startswith("demo_")]
COST = re.compile(
    r"# Cost: (?P<epochs>\d+) epochs x (?P<images>[\d,]+) images x (?P<views>\d+) views? = "
    r"(?P<crops>[\d,.]+) million crops of (?P<side>\d+) px"
    r"(, and (?P<local>\d+) local views = (?P<more>[\d,.]+) million of (?P<small>\d+) px)?\."
)
COMMAND = re.compile(
    r"# python launch/slurm\.py \+recipe=(?P<recipe>\w+) nodes=(?P<nodes>\d+)( cluster\.gpus_per_node=(?P<gpus>\d+))?"
)

PROTOCOL = re.compile(
    r"^# Protocol: (?P<words>kNN|linear classifier on the mean of h over 128 patches|linear classifier) ", re.M
)
MEASURE = re.compile(
    r"^# python launch/evaluate\.py run=runs/NAME protocol=(?P<protocol>\w+)( recipe=(?P<recipe>\w+))?"
    r"( branch=(?P<who>student|teacher))?$",
    re.M,
)
MEASURED_BY = {
    "kNN": "knn",
    "linear classifier": "linear",
    "linear classifier on the mean of h over 128 patches": "linear",
}


def header(name: str) -> str:
    """The comment that a recipe begins with."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def config(name: str, data: Path, *words: str) -> dict[str, Any]:
    held = (f"data.path={data}", "data.source=null", "threads=1", "decode_threads=1")
    return settings.compose([f"+recipe={name}", *held, *words], PROJECT / "configs")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEMO][::5])
def test_a_recipe_takes_another_schedule(listed_shards: Path, name: str) -> None:
    """What it sets for its own schedule alone is left out; its sides, and what is given beside, stay."""
    own = config(name, listed_shards)["schedule"]
    found = config(name, listed_shards, "schedule=accelerated", "schedule.warm=0.2")
    assert {"warmup", "hold"} & own.keys(), "otherwise this test would show nothing"
    assert not {"warmup", "hold"} & found["schedule"].keys()
    assert (found["schedule"]["image_size"], found["schedule"]["warm"]) == (own["image_size"], 0.2)
    with torch.device("meta"):
        parts(found, World(), 1)
    kept = config(name, listed_shards, "schedule=accelerated", "schedule.warmup=1 epoch")
    assert kept["schedule"]["warmup"] == "1 epoch", "a key that is given is refused by its name, not dropped"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_built_as_its_command_says_and_its_header_is_true(listed_shards: Path, name: str) -> None:
    text, found = header(name), config(name, listed_shards)
    command = COMMAND.search(text)
    assert command, "the header has no command"
    assert command["recipe"] == name
    with torch.device("meta"):
        built = parts(found, World(), int(command["nodes"]) * int(command["gpus"] or 1))
        build_engine(found, built, World(device=torch.device("meta")))
    cost = COST.search(text)
    assert cost, "the header does not tell the cost"
    images, views, crops = (float(cost[key].replace(",", "")) for key in ("images", "views", "crops"))
    assert int(cost["epochs"]) == found["epochs"]
    assert int(cost["side"]) == found["schedule"]["image_size"]
    assert views == built.method.num_views
    assert found["epochs"] * images * views / 1e6 == pytest.approx(crops, abs=0.5 if crops >= 10 else 0.05)
    assert int(cost["local"] or 0) == built.method.local_views
    if cost["local"]:
        more = found["epochs"] * images * built.method.local_views / 1e6
        assert float(cost["more"].replace(",", "")) == pytest.approx(more, abs=0.5 if more >= 10 else 0.05)
        assert int(cost["small"]) == found["schedule"]["local_size"]


@pytest.mark.parametrize("name", NAMES)
def test_the_header_names_the_paper_and_the_number_and_what_nobody_ran(name: str) -> None:
    text = header(name)
    assert text.startswith("# @package _global_\n# ")
    assert re.search(r"\(.*arXiv \d{4}\.\d{5}\)", text), "which paper?"
    assert "# Expected: " in text
    assert name == "demo_mocov3" or "Not run here." in text or "Measured here: " in text


@pytest.mark.parametrize("name", NAMES)
def test_the_header_names_the_protocol_of_its_number_and_the_command_that_measures_it(name: str) -> None:
    text = header(name)
    protocol, measure = PROTOCOL.search(text), MEASURE.search(text)
    assert protocol, "which protocol is the expected number of?"
    assert measure, "which command measures it?"
    assert measure["protocol"] == MEASURED_BY[protocol["words"]]
    assert (measure["recipe"] == "emp_ssl") == protocol["words"].endswith("patches")
    if epochs := re.search(r"features, (\d+) epochs", text):
        assert LINEAR[measure["recipe"]].epochs == int(epochs[1])
    assert (measure["who"] == "teacher") == (
        "teacher's" in text[protocol.start() : protocol.end() + 60].splitlines()[0]
    )


@pytest.mark.parametrize("name", DEMO)
def test_a_recipe_of_the_demo_trains(name: str, demo_shards: Path, tmp_path: Path) -> None:
    words = ["batch_size=12", "lanes=12", "epochs=1", "schedule.warmup=1 step", "log_every=1 step", "save_every=1 hour"]
    if name == "demo_mocov2":
        words.append("method.norm_group=6")
    if name == "demo_emp_ssl":
        words.append("method.loss_group=12")
    job = small_job(World(), config(name, demo_shards, *words, "probe.every=9 epochs"), tmp_path)
    before = {key: p.detach().clone() for key, p in job.engine.method.named_parameters() if p.requires_grad}
    assert finished(job)
    after = dict(job.engine.method.named_parameters())
    assert all(after[key].isfinite().all() and not torch.equal(after[key], before[key]) for key in before)
    reports = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [report["loss"] for report in reports if "loss" in report]
    assert len(losses) == 5
    assert all(math.isfinite(loss) for loss in losses)
