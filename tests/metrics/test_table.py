"""Every metric is named as Prometheus wants it, once, and explained in a sentence."""

import re

import pytest

from dist_ssl.metrics.table import BY_KEY, METRICS, Metric

every = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
OTHER_UNITS = ("milliseconds", "ms", "minutes", "hours", "kilobytes", "megabytes", "mb", "gb", "percent", "px")


@every
def test_a_name_is_the_systems_in_small_letters(metric: Metric) -> None:
    assert re.fullmatch(r"dist_ssl(_[a-z][a-z0-9]*)+", metric.name), metric.name


@every
def test_units_are_base_units_at_the_end_of_the_name(metric: Metric) -> None:
    words = metric.name.split("_")
    assert not set(words) & set(OTHER_UNITS), metric.name
    for unit in ("bytes", "ratio", "pixels", "total"):
        assert unit not in words[:-1], f"{metric.name}: '{unit}' comes last"


@every
def test_a_gauge_does_not_end_like_a_counter(metric: Metric) -> None:
    assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket")), metric.name


@every
def test_a_help_text_is_a_sentence(metric: Metric) -> None:
    assert metric.help.endswith(".")
    assert metric.help[0].isupper()
    assert "\n" not in metric.help
    assert len(metric.help) <= 100


@every
def test_a_reduction_is_one_of_four(metric: Metric) -> None:
    assert metric.reduction in ("mean", "max", "sum", "last")


def test_keys_and_names_are_unique() -> None:
    assert len({metric.key for metric in METRICS}) == len(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert {metric.key: metric for metric in METRICS} == BY_KEY
