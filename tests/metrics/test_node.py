"""A node's numbers are what NVML, powercap and the system say; what they do not say has no series."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.metrics.endpoint import Exported
from dist_ssl.metrics.energy import Rapl, Zone
from dist_ssl.metrics.gpus import Gpus
from dist_ssl.metrics.node import NodeSeries
from dist_ssl.metrics.node_table import NODE_METRICS
from tests.metrics.nvml import Nvml, zone

MOST_SERIES = 20
GPU = {"gpu": 90, "used": 30, "total": 80, "energy": 5_000, "uuid": "GPU-a"}
OTHER = {"gpu": 30, "used": 60, "total": 80, "energy": 70_000, "uuid": "GPU-b"}


def opened(monkeypatch: pytest.MonkeyPatch, nvml: Nvml | None, visible: str | None = None) -> Gpus | None:
    """The GPUs on a machine with this NVML; None: without the package."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return Gpus.open(visible)


def scraped(series: Exported) -> dict[str, float]:
    """Names, with the value of the own label, and values of a scrape."""
    samples = [sample for family in series.collect() for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_gpus_are_summed_up_for_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = opened(monkeypatch, Nvml(GPU, OTHER))
    assert gpus
    assert gpus.sample() == {"gpus": 2, "gpu_use": pytest.approx(0.6), "least_gpu_use": 0.3, "gpu_memory": 0.75}


@pytest.mark.parametrize(
    ("visible", "number"), [(None, 2), ("1", 1), ("GPU-a,GPU-b", 2), ("", None), ("7", None), ("0, 1", 2)]
)
def test_the_gpus_are_those_that_the_run_may_use(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int | None
) -> None:
    gpus = opened(monkeypatch, Nvml(GPU, OTHER), visible)
    assert (gpus and len(gpus.handles)) == number


@pytest.mark.parametrize("nvml", [None, Nvml(GPU, driver=False), Nvml()], ids=["no package", "no driver", "no GPU"])
def test_without_nvml_nothing_is_known_of_gpus(monkeypatch: pytest.MonkeyPatch, nvml: Nvml | None) -> None:
    assert opened(monkeypatch, nvml) is None


def test_what_a_gpu_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = opened(monkeypatch, Nvml(GPU, {"used": 40, "total": 80}))
    assert gpus
    assert gpus.sample() == {"gpus": 2, "gpu_memory": 0.5}
    assert gpus.joules() is None


def test_the_energy_of_gpus_is_counted_from_the_start_over_a_new_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = dict(GPU), dict(OTHER)
    gpus = opened(monkeypatch, Nvml(first, second))
    assert gpus
    assert gpus.joules() == 0
    first["energy"], second["energy"] = 6_500, 72_000
    assert gpus.joules() == pytest.approx(3.5)
    first["energy"], second["energy"] = 500, 1_000  # both count from 0 again
    assert gpus.joules() == pytest.approx(5.0)


def test_packages_and_their_memory_count_and_nothing_twice(tmp_path: Path) -> None:
    counted = [zone(tmp_path, "intel-rapl:0", "package-0", 100), zone(tmp_path, "intel-rapl:0:1", "dram", 100)]
    for folder, name in (("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys"), ("intel-rapl-mmio:0", "package-0")):
        zone(tmp_path, folder, name, 100).write_text("900000100\n")
    rapl = Rapl.open(tmp_path)
    assert rapl
    for file in counted:
        file.write_text("2000100\n")
    assert rapl.joules() == pytest.approx(4.0)


def test_a_counter_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert Rapl.open(tmp_path / "nowhere") is None
    file = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    rapl = Rapl.open(tmp_path)
    assert rapl
    file.unlink()
    assert rapl.joules() is None
    assert Rapl.open(tmp_path) is None


@given(
    st.integers(1, 2**40),
    st.data(),
    st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
)
def test_a_counter_that_starts_again_from_zero_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, largest: int, data: st.DataObject, shares: list[float]
) -> None:
    file = tmp_path_factory.mktemp("zone") / "energy_uj"
    total = start = data.draw(st.integers(0, largest - 1))
    counter = Zone(file, largest, start)
    spent = 0
    for share in shares:
        total += int(share * largest)  # less than a whole round between two readings
        file.write_text(str(total % largest))
        spent += counter.advance()
    assert spent == total - start


def test_a_node_has_the_numbers_of_its_machine_and_of_the_runs_processes(tmp_path: Path) -> None:
    series = NodeSeries({"run": tmp_path / "not yet" / "there", "cache": tmp_path}, None, None)
    assert scraped(series) == {}
    child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout
    assert child.stdin
    try:
        child.stdout.readline()
        series.sample()
        found = scraped(series)
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
    assert found["dist_ssl_node_workers"] >= 1
    assert found["dist_ssl_node_workers_memory_bytes"] > 1e6
    assert found["dist_ssl_node_memory_bytes"] == psutil.virtual_memory().total
    assert 0 < found["dist_ssl_node_used_memory_bytes"] < found["dist_ssl_node_memory_bytes"]
    assert 0 <= found["dist_ssl_node_processor_use_ratio"] <= 1
    assert found["dist_ssl_node_free_bytes run"] > 0
    assert found["dist_ssl_node_free_bytes cache"] > 0
    assert not [name for name in found if "gpu" in name or "joules" in name], "this machine says nothing of them"
    assert found.keys() <= {name for metric in NODE_METRICS for name in (metric.name, *_labelled(metric.name, found))}


def _labelled(name: str, found: dict[str, float]) -> list[str]:
    return [key for key in found if key.startswith(f"{name} ")]


class Reader:
    """A process that has read so much."""

    def __init__(self, number: int) -> None:
        self.number, self.read_bytes = number, 0

    def memory_info(self) -> "Reader":
        return self

    rss = 1

    def io_counters(self) -> "Reader":
        return self


class Root:
    """A process with these below it."""

    def __init__(self, *readers: Reader) -> None:
        self.readers = list(readers)

    def children(self, recursive: bool) -> list[Reader]:
        return list(self.readers)


def test_what_ended_processes_have_read_still_counts() -> None:
    first, second = Reader(1), Reader(2)
    root = Root(first, second)
    series = NodeSeries({}, None, None, root)  # type: ignore[arg-type]
    name = "dist_ssl_node_read_bytes_total"
    series.sample()
    assert scraped(series)[name] == 0
    first.read_bytes, second.read_bytes = 1000, 500
    series.sample()
    assert scraped(series)[name] == 1500
    root.readers.remove(first)
    second.read_bytes = 600
    series.sample()
    assert scraped(series)[name] == 1600
    root.readers.clear()
    series.sample()
    assert scraped(series)[name] == 1600


def test_a_node_with_everything_stays_within_its_budget_of_series(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    series = NodeSeries(
        dict.fromkeys(("run", "cache", "shared memory"), tmp_path),
        opened(monkeypatch, Nvml(GPU, OTHER)),
        Rapl.open(tmp_path),
        Root(Reader(1)),  # type: ignore[arg-type]
    )
    series.sample()
    found = scraped(series)
    assert {name.partition(" ")[0] for name in found} == {metric.name for metric in NODE_METRICS}
    assert len(found) <= MOST_SERIES
    assert series.joules == {"gpus": 0.0, "processors": 0.0}
