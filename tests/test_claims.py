"""The claims benchmark: tables can be run, budgets are equal crops, rows survive a kill, verdicts follow the seeds."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from tests.benchmarks import claims_digest
from tests.benchmarks.claims import OPTIONS, main
from tests.benchmarks.claims_curves import at_seconds, seconds_to, speed
from tests.benchmarks.claims_digest import digest
from tests.benchmarks.claims_report import Paired, markdown, paired_at_equal_seconds
from tests.benchmarks.claims_table import Table, Variant, flat
from tests.benchmarks.one_row import config_of, measure
from tests.benchmarks.row_runner import Runner
from tests.benchmarks.table_command import TABLES, estimate, of_command, tables
from tests.benchmarks.table_rows import Plan, Results, Row, score

SMALL = ("data=demo", "encoder.width=4", "method.hidden=16", "method.dim=8", "schedule.image_size=16", "batch_size=12")
SMALL += ("lanes=12", "window=8", "data.source=null")
TRIED = 10
"""Settings of every method in the table `laptop`."""


def plan_of(**options: str) -> Plan:
    return of_command({**OPTIONS, **options}, ())


def families() -> list[tuple[str, str]]:
    return [
        (name, family)
        for name in tables()
        for family in dict.fromkeys(v.family for v in Table.read(TABLES / f"{name}.yaml").variants.values())
    ]


def trials(variants: Sequence[Variant]) -> list[tuple[Variant, tuple[str, ...]]]:
    """Every setting of a family's first variant, and the last one of the others: their options alone are new."""
    first, *others = variants
    return [*((first, setting) for setting in first.settings), *((v, v.settings[-1]) for v in others)]


def already_tried(name: str) -> set[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return words and settings of the tables after this one by name: their runs need not be made twice."""
    before = [Table.read(TABLES / f"{other}.yaml") for other in tables() if other > name]
    return {(v.words, setting) for table in before for v in table.variants.values() for setting in v.settings}


@pytest.mark.parametrize(("name", "family"), families())
def test_every_setting_of_a_table_makes_a_run(listed_shards: Path, name: str, family: str) -> None:
    plan = plan_of(table=name)
    data = next(iter(plan.table.data.values()))
    variants = [variant for variant in plan.table.variants.values() if variant.family == family]
    known = already_tried(name)
    for variant, setting in trials(variants):
        if (variant.words, setting) in known and not variant.own:
            continue
        row = plan.row(data, variant, setting, 3, 0, "val")
        with torch.device("meta"):
            _, length = config_of([*row.words, f"data.path={listed_shards}", "data.source=null"], row.budget, World())
        assert length["steps"] > 0


@pytest.mark.parametrize("name", tables())
def test_all_variants_of_a_table_have_the_same_tuning_budget(name: str) -> None:
    plan = plan_of(table=name)
    of_claims = {name for claim in plan.table.claims for name in (claim.better, claim.than)}
    counts = {len(plan.table.variants[name].settings) for name in of_claims}
    assert len(counts) == 1
    for variant in plan.table.variants.values():
        assert variant.like is None or plan.table.variants[variant.like].like is None
    assert max(counts) <= TRIED
    assert plan.table.tuning["seed"] >= plan.table.seeds
    for variant in plan.table.variants.values():
        assert len(set(variant.settings)) == len(variant.settings), f"{variant.name} is tuned over one setting twice"


@pytest.mark.parametrize(
    ("words", "budget", "epochs", "views"),
    [
        (("+recipe=demo_simclr",), 3, 3, 2),
        (("+recipe=demo_single_branch",), 3, 6, 1),
        (("+recipe=demo_emp_ssl", "method.patches=6"), 3, 1, 6),
        (("+recipe=demo_emp_ssl", "method.patches=8"), 3, 1, 8),
        (("+recipe=demo_simclr",), 0.1, 1, 2),
    ],
)
def test_a_budget_is_as_many_crops_for_every_method(
    demo_shards: Path, words: tuple[str, ...], budget: float, epochs: int, views: int
) -> None:
    config, length = config_of([*words, *SMALL, f"data.path={demo_shards}"], budget, World())
    assert config["epochs"] == length["epochs"] == epochs
    assert length["steps"] == epochs * 5  # 60 images in batches of 12
    assert length["images"] == epochs * 60
    assert length["crops"] == length["images"] * views


def test_a_twentieth_of_the_steps_warms_up_unless_the_words_leave_it_out(demo_shards: Path) -> None:
    words = ["+recipe=demo_simclr", *SMALL, f"data.path={demo_shards}"]
    assert config_of(words, 20, World())[0]["schedule"]["warmup"] == "5 steps"
    assert config_of(words, 1, World())[0]["schedule"]["warmup"] == "1 steps"
    assert config_of([*words, "schedule.warmup=null"], 20, World())[0]["schedule"]["warmup"] is None


def test_patches_are_twice_the_budget() -> None:
    plan = plan_of(data="demo", variants="emp_ssl")
    rows = [row for row in plan.runs(Results(Path("none")), tuned=False) if row.seed == 0]
    assert [(row.budget, [w for w in row.words if "patches" in w]) for row in rows] == [
        (10, ["method.patches=20"]),
        (3, ["method.patches=6"]),
        (1, ["method.patches=2"]),
    ]


def test_the_options_of_an_ablation_win_over_a_setting() -> None:
    plan = plan_of(data="garments", variants="mocov2_short")
    for row in plan.tried(*next(plan.pairs())):
        assert [word for word in row.words if word.startswith("method.slots=")][-1] == "method.slots=96"


def test_a_measured_row_has_the_numbers_that_the_report_reads(demo_shards: Path, tmp_path: Path) -> None:
    words = ["+recipe=demo_emp_ssl", "method.patches=2", *SMALL, f"data.path={demo_shards}", "probe.bank=60"]
    words += ["probe.queries=20", "method.loss_group=12"]
    found = {}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        found[split] = measure(words, 1, split, 2, tmp_path / split)
        for name in ("knn", "linear", "bag_knn", "bag_linear"):
            assert 0 <= found[split][name] <= 1
        queries = {"train": 12, "val": 20}[split]
        assert found[split]["knn"] * queries == pytest.approx(round(found[split]["knn"] * queries))
        assert (found[split]["images"], found[split]["steps"]) == (60, 5)
        assert found[split]["seconds"] > 0
    assert math.isclose(score(found["val"]), (found["val"]["bag_knn"] + found["val"]["bag_linear"]) / 2)


def numbers(knn: float, seconds: float = 10.0, budget: float = 10) -> dict[str, Any]:
    common = {"budget": budget, "images": 1000, "peak_mib": 100, "process_seconds": seconds + 5}
    return {"knn": knn, "linear": knn, "seconds": seconds, **common}


def test_a_row_whose_line_was_cut_short_is_run_again_and_the_others_are_not(tmp_path: Path) -> None:
    plan, path = plan_of(data="demo", variants="simclr"), tmp_path / "results" / "rows.jsonl"
    results = Results(path)
    first, second, *_ = plan.tuning(results)
    results.add(first, numbers(0.5))
    results.add(second, numbers(0.6))
    path.write_text(path.read_text()[:-30])
    again = Results(path)
    assert again.get(first) == numbers(0.5)
    assert again.get(second) is None
    again.add(second, numbers(0.7))
    assert [Results(path).get(row) for row in (first, second)] == [numbers(0.5), numbers(0.7)]


def test_a_row_is_known_by_its_config_and_not_by_the_place_of_its_data() -> None:
    base = ("+recipe=demo_simclr", "data=demo", "data.path=data/demo")
    assert digest(base) == digest((*base[:2], "data.path=elsewhere"))
    others = {digest((*base, word)) for word in ("method.temperature=0.1", "optim=sgd", "probe.k=10", "seed=1")}
    assert len(others | {digest(base)}) == 5


def test_a_key_that_was_added_later_makes_another_row_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ("+recipe=demo_simclr", "data=demo")
    plain = digest(base)
    assert digest((*base, "difficulty=model")) == plain  # nothing is chosen among one candidate
    assert len({plain, digest((*base, "ema=0.9")), digest((*base, "schedule.candidates=4"))}) == 3
    monkeypatch.setattr(claims_digest, "ADDED", {})
    claims_digest._config.cache_clear()
    assert digest(base) != plain
    claims_digest._config.cache_clear()


class Canned(Runner):
    """A runner whose rows answer at once. `answers`: by seed and setting; `ran`: the rows that it was asked for."""

    def __init__(self, results: Results, answer: Any, minutes: float | None = None) -> None:
        super().__init__(results, Console(quiet=True), minutes)
        self.answer, self.ran = answer, list[Row]()

    def _measured(self, row: Row) -> Any:
        self.ran.append(row)
        return self.answer(row)


def test_a_stage_runs_what_is_missing_and_keeps_what_diverged_but_not_what_was_killed(tmp_path: Path) -> None:
    plan, results = plan_of(data="demo", variants="simclr"), Results(tmp_path / "rows.jsonl")
    rows = plan.tuning(results)

    def answer(row: Row) -> dict[str, Any]:
        if row.setting == rows[1].setting:
            return {"broken": "the loss is not finite", "diverged": True}
        if row.setting == rows[2].setting:
            return {"broken": "its process ended", "diverged": False}
        return numbers(0.5)

    first = Canned(results, answer)
    broken = first.run_all(rows, jobs=2)
    assert len(first.ran) == TRIED
    assert len(broken) == 1
    assert "its process ended" in broken[0]
    second = Canned(Results(results.path), lambda row: numbers(0.9))
    assert second.run_all(rows, jobs=2) == []
    assert [row.setting for row in second.ran] == [rows[2].setting]
    assert plan.finals(*next(plan.pairs()), second.results)[0].setting == rows[2].setting


def test_no_row_starts_after_the_minutes(tmp_path: Path) -> None:
    runner = Canned(Results(tmp_path / "rows.jsonl"), lambda row: numbers(0.5), minutes=-1)
    assert runner.run_all(plan_of(data="demo", variants="simclr").tuning(runner.results), jobs=1) == []
    assert runner.ran == []


def test_a_method_is_run_once_all_its_settings_are_tried_and_with_the_best(tmp_path: Path) -> None:
    plan, results = plan_of(data="demo", variants="simclr"), Results(tmp_path / "rows.jsonl")
    *most, last = plan.tuning(results)
    for row in most:
        results.add(row, numbers({most[3].setting: 0.6, most[5].setting: 0.55}.get(row.setting, 0.5)))
    assert plan.tuning(results) == [*most, last]
    results.add(last, {"broken": "the loss is not finite", "diverged": True})
    finals = plan.tuning(results)[TRIED:]
    assert [row.setting for row in finals] == [most[3].setting, most[5].setting, most[0].setting]
    assert all(row.budget == 10 and row.seed == 1000 and row.split == "train" for row in finals)
    for row in finals[:2]:
        results.add(row, numbers(0.7 if row.setting == most[5].setting else 0.6))
    assert plan.runs(results) == []
    results.add(finals[2], {"broken": "the loss is not finite", "diverged": True})
    rows = plan.runs(results)
    assert len(rows) == 9
    assert {row.setting for row in rows} == {most[5].setting}
    assert [(row.seed, row.budget) for row in rows[:4]] == [(0, 10), (0, 3), (0, 1), (1, 10)]
    assert all(row.seed < 3 and row.split == "val" for row in rows)


def test_without_finals_the_best_of_what_was_tried_is_chosen(tmp_path: Path) -> None:
    plan, results = plan_of(data="demo", variants="simclr"), Results(tmp_path / "rows.jsonl")
    plan = replace(plan, table=replace(plan.table, tuning={"budget": 3, "seed": 1000}))
    rows = plan.tuning(results)
    for row in rows:
        assert plan.runs(results) == []
        results.add(row, numbers(0.6 if row is rows[2] else 0.5))
    assert plan.tuning(results) == rows
    assert {row.setting for row in plan.runs(results)} == {rows[2].setting}


def test_rows_of_other_images_or_devices_are_named(tmp_path: Path) -> None:
    plan, results = plan_of(data="demo", variants="simclr", seeds="2"), Results(tmp_path / "rows.jsonl")
    for row in plan.runs(results, tuned=False):
        results.add(row, {**numbers(0.5, row.budget, row.budget), "data": "abc", "device": f"cuda:{row.seed}"})
    text = markdown(plan, results, tuned=False)
    assert "MIXED: the rows of demo are of several devices: cuda:0, cuda:1." in text
    assert "several data sets" not in text


def test_the_first_rows_of_the_tuning_are_the_first_settings_of_all_methods(tmp_path: Path) -> None:
    plan, results = plan_of(variants="simclr,vicreg,dino"), Results(tmp_path / "rows.jsonl")
    rows, pairs = plan.tuning(results), [pair for pair in plan.pairs() if len(pair[1].settings) > 1]
    assert [(row.data, row.variant) for row in rows[: len(pairs)]] == [(d.name, v.name) for d, v in pairs]
    assert len(rows) == TRIED * len(pairs)
    assert all(row.split == "train" and row.seed == 1000 for row in rows)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((), "not run"),
        ((0.1,), "one seed: sign as claimed"),
        ((-0.1,), "one seed: opposite sign"),
        ((0.05, 0.06, 0.04), "holds"),
        ((-0.05, -0.06, -0.04), "DOES NOT HOLD"),
        ((0.10, -0.02, 0.03), "sign as claimed, within the spread"),
        ((-0.10, 0.02, -0.03), "opposite sign, within the spread"),
        ((0.0, 0.0, 0.0), "no difference"),
    ],
)
def test_a_verdict_follows_the_paired_differences(differences: tuple[float, ...], verdict: str) -> None:
    assert Paired(differences).verdict == verdict


def test_seeds_that_differ_together_do_not_hide_a_difference() -> None:
    plan, first, second = plan_of(data="demo", variants="simclr,vicreg"), {}, {}
    for seed, level in enumerate((0.3, 0.5, 0.7)):
        first[seed], second[seed] = {10: numbers(level + 0.02)}, {10: numbers(level)}
    assert paired_at_equal_seconds(first, second, "knn").verdict == "holds"
    assert plan.seeds == 3


def test_between_points_a_curve_follows_the_logarithm_of_the_seconds() -> None:
    points = [(100.0, 0.8), (1.0, 0.2), (10.0, 0.4)]
    assert at_seconds(points, 0.5) is None
    assert at_seconds(points, 10) == pytest.approx(0.4)
    assert at_seconds(points, math.sqrt(1000)) == pytest.approx(0.6)
    assert at_seconds(points, 1000) == pytest.approx(0.8)
    assert at_seconds([], 1) is None


def test_a_slower_method_is_compared_at_the_seconds_of_the_faster_one() -> None:
    slow = {0: {1: numbers(0.2, 10, 1), 10: numbers(0.6, 100)}}
    fast = {0: {1: numbers(0.1, 1, 1), 10: numbers(0.3, 10)}}
    assert paired_at_equal_seconds(slow, fast, "knn").differences == pytest.approx((-0.1,))


def test_the_seconds_to_an_accuracy_lie_between_points_or_are_none() -> None:
    points = [(10.0, 0.4), (1.0, 0.2), (100.0, 0.3), (1000.0, 0.8)]
    assert seconds_to(points, 0.1) == 1.0
    assert seconds_to(points, 0.3) == pytest.approx(math.sqrt(10))
    assert seconds_to(points, 0.4) == pytest.approx(10)
    assert seconds_to(points, 0.8) == pytest.approx(1000)
    assert seconds_to(points, 0.81) is None
    assert all(seconds_to(points, at_seconds(points, s) or 0) == pytest.approx(s) for s in (1, 2, 5, 10))


def test_a_variant_is_as_many_times_sooner_as_its_curve_is_shifted() -> None:
    budgets = (1, 2, 4, 8)
    plain = {seed: {b: numbers(0.1 * b + 0.01 * seed, 10.0 * b) for b in budgets} for seed in range(3)}
    sooner = {seed: {b: numbers(0.1 * b + 0.01 * seed, 10.0 * b / 4) for b in budgets} for seed in range(3)}
    found = speed(sooner, plain, "knn")
    assert found.ratio is not None
    assert 4 <= found.ratio < 4.02  # within the tolerance of the bar
    assert found.low == pytest.approx(found.high)
    assert speed(plain, plain, "knn").ratio == pytest.approx(1, abs=0.01)
    assert speed({0: {1: numbers(0.2, 1)}}, {0: {1: numbers(0.5, 1)}}, "knn").shown == "never reached"
    assert speed({}, plain, "knn").ratio is None


def test_a_bar_that_some_seeds_miss_widens_the_interval_to_zero() -> None:
    plain = {seed: {8: numbers(0.6, 80.0)} for seed in range(3)}
    mixed = {seed: {8: numbers(level, 20.0)} for seed, level in enumerate((0.9, 0.5, 0.5))}
    found = speed(mixed, plain, "knn")
    assert found.ratio == pytest.approx(4)
    assert (found.low, found.high) == (0.0, pytest.approx(4))


def test_an_accelerated_variant_takes_the_setting_of_the_plain_one(tmp_path: Path) -> None:
    plan, results = plan_of(table="acceleration", data="demo", variants="simclr,simclr_s12"), Results(tmp_path / "r")
    plain, faster = plan.variants
    assert plan.tried(plan.data[0], faster) == []
    for _ in ("all settings", "finals"):
        for row in plan.tuning(results):
            results.add(row, numbers(0.6 if row.setting == plain.settings[3] else 0.5))
    assert plan.chosen(plan.data[0], faster, results) == plain.settings[3]


def test_the_report_has_curves_settings_and_verdicts_of_what_is_done(tmp_path: Path) -> None:
    plan = plan_of(data="garments", variants="untrained,simclr,simclr_rotation_1")
    results = Results(tmp_path / "rows.jsonl")
    for _ in ("all settings", "finals"):
        for row in plan.tuning(results):
            results.add(row, numbers(0.5))
    for row in plan.runs(results):
        level = {"untrained": 0.1, "simclr": 0.20, "simclr_rotation_1": 0.40}[row.variant]
        results.add(row, numbers(level + 0.01 * row.seed, row.budget, row.budget))
    text = markdown(plan, results, tuned=True)
    assert "| EffSSL (arXiv 2210.09866): rotation (0.1) helps SimCLR | garments | kNN | +20.0 ± 0.0 | " in text
    assert "| +20.0 ± 0.0 | holds |" in text
    assert "| SimCLR | 21.0 ± 1.0 | 21.0 ± 1.0 | 21.0 ± 1.0 |" in text
    assert "COLLAPSED: SimCLR, kNN 21.0 ± 1.0 %" in text
    assert "50.0 50.0" in text
    assert "Fast-MoCo" not in text


def test_the_estimate_takes_the_seconds_of_the_rows_that_are_done(tmp_path: Path) -> None:
    plan, results = plan_of(data="demo", variants="simclr"), Results(tmp_path / "rows.jsonl")
    rows = plan.tuning(results)
    results.add(rows[0], numbers(0.5, seconds=30, budget=3))  # 10 s for a budget of one, 5 s beside
    assert estimate("tune", rows, plan, results, 2).endswith(
        f"{TRIED - 1} of them missing: {(TRIED - 1) * 35 / 3600:.1f} core-hours, 0.0 h with jobs=2"
    )


def test_words_of_nested_lists_stand_in_one_row() -> None:
    assert flat(["a", ["b", ["c"]], "d"]) == ("a", "b", "c", "d")


def test_the_committed_results_are_whole_lines_of_the_table() -> None:
    table = Table.read(TABLES / "laptop.yaml")
    path = Path(OPTIONS["out"])
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        assert row["key"]["variant"] in table.variants
        assert "broken" in row["found"] or {"knn", "linear", "seconds"} <= row["found"].keys()


def test_rows_that_were_measured_are_still_those_of_the_table() -> None:
    """A new key that results depend on makes every row another one, unless ADDED names the value that changes none."""
    plan, results = plan_of(data="garments"), Results(Path(OPTIONS["out"]))
    rows = [row for pair in plan.pairs() for row in plan.tried(*pair)[:1]]
    unknown = [row.name for row in rows if results.get(row) is None]
    assert len(unknown) < len(rows), "Name the new key in ADDED (claims_digest.py), or tune again: stage=tune"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["stage=rnu"], "stage=rnu does not exist"),
        (["stage=run", "table=desktop"], "There is no table desktop"),
        (["stage=run", "data=garment"], "There is no data set garment"),
        (["stage=run", "variants=simlcr"], "There is no variant simlcr"),
    ],
)
def test_a_mistake_is_answered_with_what_there_is(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert problem in capsys.readouterr().out


def test_a_claim_about_a_missing_variant_is_refused(tmp_path: Path) -> None:
    text = (TABLES / "laptop.yaml").read_text().replace("than: vicreg", "than: vicerg")
    (tmp_path / "table.yaml").write_text(text)
    with pytest.raises(ConfigError, match="names the variant vicerg"):
        Table.read(tmp_path / "table.yaml")


def test_data_of_the_command_has_its_place_in_its_name() -> None:
    plan = of_command({**OPTIONS, "data": "cifar10", "variants": "simclr"}, ("data.path=/data/mine",))
    assert [data.name for data in plan.data] == ["cifar10 /data/mine"]
    row = plan.runs(Results(Path("none")), tuned=False)[0]
    assert row.words[-2:] == ("data.path=/data/mine", "seed=0")
    assert "data=cifar10" in row.words
