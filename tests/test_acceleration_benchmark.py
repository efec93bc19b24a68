"""The benchmark of acceleration: rows run, plain recipes have tuned settings, bars follow seeds, plots are drawn."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from launch.agent import MALLOC
from tests.benchmarks.acceleration import OPTIONS, TUNED, main, report
from tests.benchmarks.acceleration_report import evened, failed, together, verdict
from tests.benchmarks.claims_curves import Speed, mean_speed
from tests.benchmarks.claims_table import Bar, Table
from tests.benchmarks.table_command import TABLES, of_command
from tests.benchmarks.table_rows import Plan, Results, Row

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("encoder.width=4", "method.hidden=16", "method.dim=8", "schedule.image_size=16", "batch_size=12", "lanes=12")
SMALL += ("window=8", "data.source=null", "probe.bank=60", "probe.queries=20")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its rows is gone after each test."""
    monkeypatch.setenv("GLIBC_TUNABLES", MALLOC)


def plan_of(**options: str) -> Plan:
    return of_command({**OPTIONS, **options}, ())


def test_a_row_is_run_by_the_command_and_not_again(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["data=demo", "variants=simclr_s1", "budgets=2", "seeds=1", "tuned=false", f"out={out}"]
    words += [*SMALL, f"data.path={demo_shards}"]
    script = [sys.executable, "tests/benchmarks/acceleration.py", "stage=run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*script, *words], cwd=ROOT, env=environment, check=True)
    assert main(["stage=run", *words]) == 0  # it starts no process
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["key"]["variant"], row["found"]["epochs"]) == ("simclr_s1", 2)
    assert row["found"]["seconds"] > 0
    assert row["found"]["wall_seconds"] > 0
    assert row["found"]["pace_seconds"] > 0
    assert main(["stage=report", *words]) == 0
    assert f"| {100 * row['found']['knn']:.1f}; " in capsys.readouterr().out
    assert len(list(tmp_path.glob("rows-demo-*.svg"))) == 1


def test_families_from_another_table_have_its_words_and_settings() -> None:
    ours, theirs = (Table.read(TABLES / f"{name}.yaml").variants for name in ("acceleration", "laptop"))
    for name in ("simclr", "mocov3", "byol", "fast_moco", "emp_ssl", "single_branch_no_kl"):
        other = theirs[name]
        assert replace(ours[name], label=other.label, budgets=other.budgets) == other


def test_what_the_claims_benchmark_has_tuned_counts_and_its_other_rows_do_not(tmp_path: Path) -> None:
    plan, results = plan_of(data="garments", variants="simclr,simclr_s12"), Results(tmp_path / "rows", TUNED)
    data, (plain, faster) = plan.data[0], plan.variants
    assert plan.chosen(data, plain, results) is not None
    assert plan.chosen(data, faster, results) == plan.chosen(data, plain, results)
    assert not any(results.get(row) for row in plan.runs(results))


def numbers(row: Row, knn: float, seconds: float) -> dict[str, Any]:
    common = {"budget": row.budget, "images": 1000, "peak_mib": 100, "process_seconds": seconds + 5}
    return {"knn": knn, "linear": knn, "seconds": seconds, "wall_seconds": 2 * seconds, "pace_seconds": 0.5, **common}


def filled(plan: Plan, path: Path, sooner: float) -> Results:
    """Results in which all but the plain recipes need as many times fewer seconds for the same accuracy."""
    results = Results(path)
    for row in plan.runs(results, tuned=False):
        fast = "_s12" in row.variant
        length = row.budget * (sooner if fast else 1)
        results.add(row, numbers(row, 0.02 * length + 0.01 * row.seed, 10.0 * row.budget))
    return results


THREE = "simclr,simclr_s12,mocov3,mocov3_s12,byol,byol_s12"


@pytest.mark.parametrize(("sooner", "said"), [(3, "reached"), (2, "MISSED"), (5, "star")])
def test_a_bar_is_compared_with_the_mean_over_the_methods(tmp_path: Path, sooner: float, said: str) -> None:
    plan = plan_of(data="garments", variants=THREE, budgets="2,3,6,10")
    plan = replace(plan, table=replace(plan.table, bars={"schedule=accelerated": Bar(2.7, 4)}))
    text, holds = report(plan, filled(plan, tmp_path / "rows.jsonl", sooner), False)
    line = next(
        line for line in text.splitlines() if line.startswith("| schedule=accelerated, geometric mean of 3 | 2.7")
    )
    assert line.endswith(f"| {said} |")
    assert holds == (said != "MISSED")
    even, processor, wall = (float(cell.split()[0]) for cell in line.split("|")[4:7])
    assert even == processor == wall == pytest.approx(sooner, rel=0.1)
    drawing = ElementTree.parse(tmp_path / "rows-garments.svg").getroot()
    assert len(drawing.findall(".//{*}polyline")) == 6


def test_a_bar_without_all_its_rows_is_not_reached(tmp_path: Path) -> None:
    plan = plan_of(data="garments", variants=THREE, budgets="2,3,6,10")
    results = Results(tmp_path / "rows.jsonl")
    for row in plan.runs(results, tuned=False):
        if not row.variant.startswith("byol"):
            results.add(row, numbers(row, 0.5, 10.0))
    text, holds = report(plan, results, False)
    assert "| - | - | - | NOT RUN |" in text
    assert not holds


def test_rows_that_ran_while_the_machine_was_slow_count_as_if_it_had_not_been(tmp_path: Path) -> None:
    curves = {"plain": {0: {4.0: {"seconds": 10.0, "pace_seconds": 0.5}, 10.0: {"seconds": 50.0, "pace_seconds": 1.0}}}}
    curves["other"] = {0: {4.0: {"seconds": 10.0, "pace_seconds": 0.5}}}
    runs = evened(curves)["plain"][0]
    assert (runs[4.0]["even_seconds"], runs[10.0]["even_seconds"]) == (10.0, 25.0)


def test_a_mean_of_methods_has_the_interval_of_independent_seeds() -> None:
    one, two = Speed(2.0, (1.0, 2.0, 4.0)), Speed(8.0, (8.0, 8.0, 8.0))
    found = mean_speed([one, two])
    assert found.ratio == pytest.approx(4)
    assert found.low == pytest.approx(8**0.5)
    assert found.high == pytest.approx(32**0.5)
    assert mean_speed([one, Speed(None)]).shown == "never reached"
    assert mean_speed([one, Speed(3.0, (0.0, 3.0))]).low == 0


def test_the_best_of_several_is_compared_with_its_bar() -> None:
    bar = Bar(4, 6, "best")
    best = together(bar, [Speed(2.0, (2.0,)), None, Speed(5.0, (5.0,)), Speed(None)])
    assert best is not None
    assert best.ratio == 5
    assert verdict(bar, best) == "reached"
    assert verdict(bar, together(bar, [None, None])) == "NOT RUN"
    assert verdict(bar, Speed(None)) == "MISSED"
    assert failed("| MISSED |")


@pytest.mark.parametrize(
    ("words", "problem"),
    [(["stage=rnu"], "stage=rnu does not exist"), (["stage=run", "variants=s12"], "no variant s12")],
)
def test_a_mistake_is_answered(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert problem in capsys.readouterr().out
