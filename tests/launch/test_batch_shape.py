"""The defaults fit any number of ranks; what a person says stays."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.coordinator import check_plan
from launch import preparation, settings
from launch.batch_shape import fitted, said
from launch.run_dir import PROJECT

RANKS = (*(1 << n for n in range(11)), 3, 5, 6, 7, 12, 24, 48, 96, 1000)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_defaults_work_on_any_number_of_ranks(ranks: int) -> None:
    lanes, batch = fitted(48, 96, ranks, set())
    check_plan(lanes, batch, ranks, num_samples=batch)
    assert lanes % 48 == 0, "what divided the default still divides the lanes"
    if 48 % ranks == 0:
        assert (lanes, batch) == (48, 96)


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_given_batch_stays(ranks: int, times: int) -> None:
    lanes, batch = fitted(48, ranks * times, ranks, {"batch_size"})
    assert batch == ranks * times
    check_plan(lanes, batch, ranks, num_samples=batch)


def test_a_batch_that_the_ranks_cannot_share_is_refused_with_one_that_they_can() -> None:
    with pytest.raises(ConfigError, match="batch_size=100 cannot be shared by 8 ranks") as caught:
        fitted(48, 100, 8, {"batch_size"})
    assert "batch_size=96" in caught.value.remedy


def test_given_lanes_stay_and_the_batch_follows() -> None:
    assert fitted(36, 96, 4, {"lanes"}) == (36, 108)
    assert fitted(36, 100, 4, {"lanes", "batch_size"}) == (36, 100)


def test_a_recipe_says_both() -> None:
    assert said(["method=mocov3", "nodes=4"]) == set()
    assert said(["+lanes=3", "nodes=4"]) == {"lanes"}
    assert said(["+recipe=demo_simclr"]) == {"lanes", "batch_size"}


@pytest.mark.parametrize(
    ("words", "lanes", "batch", "printed"),
    [
        (("cluster.gpus_per_node=8", "nodes=4"), 96, 96, "For 32 ranks: lanes=96 batch_size=96.\n"),
        (("nodes=4",), 48, 96, ""),
        (("nodes=4", "batch_size=256"), 32, 256, "For 4 ranks: lanes=32 batch_size=256.\n"),
        (("nodes=5", "lanes=48", "batch_size=96"), 48, 96, ""),
    ],
)
def test_what_is_chosen_is_printed(words: tuple[str, ...], lanes: int, batch: int, printed: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    config = settings.compose(list(words), PROJECT / "configs")
    config["cluster"]["kind"] = "slurm"
    preparation.fill_in(config)
    preparation.fit_batch(config, list(words), console)
    assert (config["lanes"], config["batch_size"]) == (lanes, batch)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == printed
