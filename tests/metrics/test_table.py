"""Every metric is named as Prometheus expects it, once, and explained in a sentence; other keys are refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

from dist_ssl.core.candidates import Choice
from dist_ssl.data.images import unreadable
from dist_ssl.errors import UserError
from dist_ssl.metrics.ends import END_METRICS
from dist_ssl.metrics.evaluations import ACCURACIES
from dist_ssl.metrics.goodput import WORK
from dist_ssl.metrics.node_table import NODE_METRICS
from dist_ssl.metrics.table import BY_KEY, METRICS, check_keys, series_of
from dist_ssl.metrics.table_row import UNITS, Metric, most_series
from dist_ssl.runtime.step_clock import PARTS
from launch import restarts
from launch.run_dir import PROJECT

every = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
everywhere = pytest.mark.parametrize("metric", [*METRICS, *NODE_METRICS], ids=lambda metric: metric.key)
OTHER_UNITS = ("milliseconds", "ms", "minutes", "hours", "kilobytes", "megabytes", "mb", "gb", "percent", "px")


@everywhere
def test_a_name_is_the_systems_in_small_letters(metric: Metric) -> None:
    assert re.fullmatch(r"dist_ssl(_[a-z][a-z0-9]*)+", metric.name), metric.name


@everywhere
def test_units_are_base_units_at_the_end_of_the_name(metric: Metric) -> None:
    words = metric.name.split("_")
    assert not set(words) & set(OTHER_UNITS), metric.name
    for unit in ("bytes", "ratio", "pixels", "total"):
        assert unit not in words[: -2 if metric.counter else -1], f"{metric.name}: '{unit}' comes last"


@everywhere
def test_the_unit_is_the_one_that_the_name_ends_in(metric: Metric) -> None:
    end = metric.name.removesuffix("_total").rpartition("_")[2]
    assert metric.unit == ("timestamp" if "timestamp" in metric.name else end if end in UNITS else "")
    assert ("timestamp" in metric.name) == metric.name.endswith("_timestamp_seconds")


@everywhere
def test_a_counter_is_what_counts(metric: Metric) -> None:
    assert metric.counter == metric.name.endswith("_total")
    assert metric.counter or metric.reduction != "sum", "what is added up since the last report is a counter"
    assert not metric.counter or metric.reduction != "mean", "a mean does not count anything"
    assert not metric.name.endswith(("_count", "_sum", "_bucket", "_info")), metric.name


@everywhere
def test_labels_are_few_and_none_is_of_the_target(metric: Metric) -> None:
    assert metric.label in ("", "part", "pair", "reason", "level", "cause", "protocol", "place", "source"), (
        "a label for each run, id or node has no bound"
    )


def test_a_run_has_at_most_80_series_and_a_node_20_whatever_happens_to_them() -> None:
    """With every value of every label at once, and all that one method alone has."""
    assert most_series(METRICS) <= 80, "Bound a label's values, say what follows from others by a query, or drop a row."
    assert most_series(NODE_METRICS) <= 20
    assert most_series(END_METRICS) <= 20, "the text file of a run that has failed holds nothing else"


def test_a_row_that_breaks_the_bound_would_be_seen() -> None:
    plain, labelled = Metric("a", "a", "", ""), Metric("b", "b", "", "", label="part", values=("x", "y"), rest="z")
    first, second = (replace(labelled, methods=(name,)) for name in ("dino", "swav"))
    assert [most_series([plain] * 2), most_series([plain, labelled])] == [2, 4]
    assert most_series([plain, first, second]) == 4, "no run has both"
    assert most_series([plain, first, first, second]) == 7
    assert most_series([plain, replace(plain, instead="b")]) == 1
    with pytest.raises(AssertionError, match="a label has values"):
        replace(labelled, values=(), rest="")


def test_the_values_of_labels_are_those_that_occur() -> None:
    """Where a value is missing from the table, it is exported with others or refused."""
    found = {metric.key: metric for metric in (*METRICS, *NODE_METRICS)}
    assert {*WORK} < {*found["spent_seconds"].values}
    assert {*found["spent_seconds"].values} == {*WORK, "restore", "start", "queue", "lost"}
    assert found["step_parts"].values == PARTS
    assert {*found["bad_samples"].values} < {text for text in vars(unreadable).values() if isinstance(text, str)}
    assert {*found["restarts"].values} < {*restarts.CAUSES}
    assert {restarts.STOPPED_BY_REQUEST, restarts.USER_ERROR} == {*restarts.CAUSES} - {*found["restarts"].values}
    assert {f"{kind}_accuracy" for kind in found["evaluation"].values} == {*ACCURACIES.values()}
    assert [f"difficulty/{pair}" for pair in found["difficulty"].values] == [
        *Choice(np.zeros((2, 1), int), 0.0, 0.0).metrics
    ]
    for metric in METRICS:
        assert {*metric.methods} <= {path.stem for path in (PROJECT / "configs" / "method").glob("*.yaml")}


@everywhere
def test_a_panel_has_a_title(metric: Metric) -> None:
    assert re.fullmatch(r"[A-Za-z][A-Za-z ]{2,30}", metric.panel)


def test_a_counter_is_given_as_an_increase_or_as_what_the_whole_run_has_come_to() -> None:
    """What an attempt alone knows the sum of would go back to 0 with the next attempt."""
    totals = {metric.key for metric in METRICS if metric.counter and not metric.increments}
    assert totals == {"bad_samples", "lost_steps", "restarts", "attempt"}, "of files that all attempts share"


def test_what_is_counted_since_the_last_report_is_no_gauge() -> None:
    assert not [
        metric.key for metric in METRICS if "since the last report" in metric.help and metric.key != "step_seconds"
    ]


@everywhere
def test_a_help_text_is_a_sentence(metric: Metric) -> None:
    assert metric.help.endswith(".")
    assert metric.help[0].isupper()
    assert "\n" not in metric.help
    assert len(metric.help) <= 100


@every
def test_a_reduction_is_one_of_four(metric: Metric) -> None:
    assert metric.reduction in ("mean", "max", "sum", "last")


def test_keys_and_names_are_unique() -> None:
    both = (*METRICS, *NODE_METRICS)
    assert len({metric.key for metric in both}) == len(both)
    assert len({metric.name for metric in both}) == len(both)
    assert not [metric.name for metric in METRICS if metric.name.startswith("dist_ssl_node_")]
    assert all(metric.name.startswith("dist_ssl_node_") for metric in NODE_METRICS), "panels tell them apart"
    assert {metric.key: metric for metric in METRICS} == BY_KEY


@everywhere
def test_a_label_is_there_for_its_values(metric: Metric) -> None:
    assert re.fullmatch(r"([a-z]+)?", metric.label)
    assert metric.label or not metric.plain, "a plain key of a metric without a label stands for no value"


@every
def test_every_key_leads_to_its_row(metric: Metric) -> None:
    for value in (*metric.values, *(["some value"] if metric.rest else [])):
        assert series_of(f"{metric.key}/{value}") == (metric, value)
    if metric.plain or not metric.label:
        assert series_of(metric.key) == (metric, metric.plain)


def test_a_value_may_hold_what_a_key_may_not() -> None:
    assert series_of("bad_samples/image/jpeg: cut") == (BY_KEY["bad_samples"], "image/jpeg: cut")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("los", "Did you mean 'loss'?"),
        ("learning_rate/student", "Valid names: "),
        ("momentun", "Did you mean 'momentum'?"),
        ("frozen", "Did you mean 'frozen/PART'?"),
        ("momentum/student", "Did you mean 'momentum'?"),
        ("lr/", "Did you mean 'lr'?"),
    ],
)
def test_a_key_without_a_row_is_named_with_the_remedy(key: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        check_keys(["loss", key])
    assert caught.value.problem == f"The metric '{key}' has no row in the metric table."
    assert caught.value.remedy.startswith("Add a row to dist_ssl/metrics/table.py, or correct the key.")
    assert near in caught.value.remedy


def test_known_keys_pass() -> None:
    check_keys(["loss", "lr", "lr/predictor", "lr/a_part_of_later", "frozen/student.encoder", "spent_seconds/train"])
