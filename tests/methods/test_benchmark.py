"""The benchmark of methods: rows are kept and not run again, a collapse is named, a claim is judged by its means."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks import methods
from tests.benchmarks.methods import CLAIMS, METHODS, UNTRAINED, Claim, Results, Row, collapsed, judge, run, words_of

TINY = ("batch_size=12", "lanes=12", "encoder.width=4", "schedule.image_size=16", "probe.bank=60", "window=8")


def results(folder: Path, **knn: list[float]) -> tuple[list[Row], Results]:
    """Rows at equal crops that came out like this."""
    kept, rows = Results(folder / "rows.jsonl"), []
    for method, values in knn.items():
        for seed, value in enumerate(values):
            rows.append(Row(method, "crops", 1.0, seed, ()))
            kept.add(rows[-1], {"knn": value, "seconds": 10 * value, "steps": 5})
    return rows, kept


def test_every_claim_is_of_methods_that_have_a_recipe() -> None:
    assert {name for claim in CLAIMS for name in (claim.method, claim.other)} <= set(METHODS)


def test_rows_are_read_back_and_a_line_that_a_kill_cut_is_not(tmp_path: Path) -> None:
    rows, kept = results(tmp_path, simclr=[0.5, 0.6])
    with kept.path.open("a") as file:
        file.write('{"key": "cut')
    again = Results(kept.path)
    assert again.of(rows, "knn") == [0.5, 0.6]
    more = Row("byol", "crops", 1.0, 0, ())
    again.add(more, {"knn": 0.7})
    assert Results(kept.path).of([*rows, more], "knn") == [0.5, 0.6, 0.7]


def test_a_row_of_other_settings_is_another_row() -> None:
    usual, other = (words_of("simclr", words) for words in ((), ("method.temperature=0.7",)))
    assert usual[1] != other[1]
    assert Row("simclr", "crops", 1.0, 0, *usual).key != Row("simclr", "crops", 1.0, 0, *other).key
    assert words_of("simclr", ()) == usual


def test_a_mean_below_the_untrained_one_and_15_points_is_a_collapse(tmp_path: Path) -> None:
    rows, kept = results(tmp_path, untrained=[0.1, 0.2], simclr=[0.29, 0.32], byol=[0.2, 0.38], dino=[0.9, 0.1])
    assert [what.partition(" ")[0] for what in collapsed(rows, kept)] == ["byol"]


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (Claim("", "crops", "a", "b"), "DID NOT HOLD"),
        (Claim("", "crops", "b", "a"), "held"),
        (Claim("", "crops", "a", "b", allowance=0.2), "held"),
        (Claim("", "crops", "a", "c"), "DID NOT HOLD (within the spread)"),
        (Claim("", "crops", "a", "b", number="step", lower=True), "held"),
    ],
)
def test_a_claim_is_judged_by_the_means(tmp_path: Path, claim: Claim, verdict: str) -> None:
    found = judge(claim, *results(tmp_path, a=[0.3, 0.32], b=[0.45, 0.45], c=[0.2, 0.5]))
    assert found is not None
    assert found[-1] == verdict


def test_a_claim_of_what_was_not_run_is_not_judged(tmp_path: Path) -> None:
    assert judge(Claim("", "seconds", "a", "b"), *results(tmp_path, a=[0.3], b=[0.4])) is None


def test_a_method_that_does_not_exist_is_refused_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.main(["methods=simclr,simclar"]) == 2
    assert "There is no method simclar" in capsys.readouterr().out


def test_rows_are_trained_once(demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    words = [*TINY, f"data={demo_shards}", f"out={out}", "seeds=1", "jobs=2", "schedule.warmup=null"]
    assert methods.main([*words, "methods=simclr", "crops=240", "seconds=0"]) == 1
    text, lines = capsys.readouterr().out, out.read_text().splitlines()
    assert "COLLAPSED: simclr at equal crops" in text
    found = [json.loads(line) for line in lines]
    assert [json.loads(row["key"])["method"] for row in found] in ([UNTRAINED, "simclr"], ["simclr", UNTRAINED])
    trained = next(row["found"] for row in found if "simclr" in row["key"])
    assert (trained["epochs"], trained["steps"], trained["crops"]) == (2, 10, 240)
    assert 0 < trained["seconds"] < 600
    assert 50 < trained["peak_mib"] < 20000
    assert methods.main([*words, "methods=simclr", "crops=240", "seconds=0"]) == 1
    assert out.read_text().splitlines() == lines


def test_a_row_that_breaks_tells_why(demo_shards: Path, tmp_path: Path) -> None:
    words = (*TINY, "+recipe=demo_simclr", "lanes=7", f"data.path={demo_shards}", "data.source=null")
    console, kept = Console(quiet=True), Results(tmp_path / "rows.jsonl")
    what = run(Row("simclr", "crops", 240.0, 0, words), kept, console)
    assert what.startswith("simclr, crops=240, seed 0: batch_size=12 is no multiple of lanes=7. Use batch_size=14")
    assert not kept.found
