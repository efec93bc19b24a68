"""A node's numbers are served beside its agent, and found through one target file per node."""

import errno
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from dist_ssl.metrics.energy import Rapl, Zone
from dist_ssl.metrics.target_files import target_of
from launch import node_monitor
from launch.node_monitor import forget_nodes, monitored, places
from launch.run_dir import AttemptDir, RunDir
from tests.metrics.nvml import Nvml, zone
from tests.system.launching import await_that

METRICS = {"port": 0, "bind": "127.0.0.1", "textfile": None}
CONFIG = {"metrics": METRICS, "data": {"cache": None}}
ENERGY = {"energy": 5_000, "uuid": "GPU-a"}


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    return RunDir(tmp_path / "runs" / "a.run").new_attempt(CONFIG)


def answer(address: str, page: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}{page}", timeout=60) as found:
        return str(found.read().decode())


def test_a_node_is_found_and_scraped_while_its_agent_lives(attempt: AttemptDir) -> None:
    file = target_of(attempt.run.folder, 2)
    assert file == attempt.run.folder.parent / "targets" / "a.run.node_0002.json"
    with monitored(attempt, 2, 4):
        await_that(file.exists, "the target of the node")
        [group] = json.loads(file.read_text())
        labels = dict(group["labels"])
        assert labels.pop("instance")
        assert labels == {"job": "dist_ssl_node", "run": "a.run", "node": "2"}
        [address] = group["targets"]
        text = answer(address, "/metrics")
        assert "\ndist_ssl_node_memory_bytes " in text
        assert '\ndist_ssl_node_free_bytes{place="run"} ' in text
        assert answer(address, "/health") == "ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            answer(address, "/")
    assert list(file.parent.iterdir()) == []
    with pytest.raises(urllib.error.URLError):
        answer(address, "/health")


def test_nodes_that_earlier_attempts_lost_are_forgotten_where_there_are_fewer_now(tmp_path: Path) -> None:
    run, other = tmp_path / "a.run", tmp_path / "a.run.node_0009"
    for path in (
        *(target_of(run, node) for node in range(4)),
        target_of(other, 3),
        tmp_path / "targets" / "a.run.json",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text("[]")
    forget_nodes(run, 2)
    left = {path.name for path in (tmp_path / "targets").iterdir()}
    assert left == {"a.run.node_0000.json", "a.run.node_0001.json", "a.run.node_0009.node_0003.json", "a.run.json"}
    forget_nodes(tmp_path / "nowhere" / "run", 1)


def test_a_run_goes_on_without_an_endpoint(attempt: AttemptDir, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = {**CONFIG, "metrics": {**METRICS, "bind": "192.0.2.1"}}
    attempt.config_file.write_text(yaml.safe_dump(nowhere))
    with monitored(attempt, 1, 2):
        pass
    said = capsys.readouterr().out
    assert "The metrics of node 1 are not available: metrics.port=0 on metrics.bind=192.0.2.1 cannot" in said
    assert not target_of(attempt.run.folder, 1).exists()


def test_what_a_system_answers_acts_on_no_terminal(
    attempt: AttemptDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "\x1b[2J")

    monkeypatch.setattr(node_monitor.Gpus, "open", refuse)
    with monitored(attempt, 1, 2):
        pass
    assert r"The metrics of node 1 are not available: [Errno 5] \x1b[2J" in capsys.readouterr().out


def test_the_energy_of_a_node_is_recorded_in_its_attempt(
    attempt: AttemptDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, file = dict(ENERGY), zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 100)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(gpu))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(node_monitor.Rapl, "open", lambda: Rapl([Zone(file, 10**9, 100)]))
    with monitored(attempt, 0, 1):
        await_that(target_of(attempt.run.folder, 0).exists, "the target of the node")
        gpu["energy"] += 2_000
        file.write_text("3000100\n")
    assert json.loads(attempt.energy(0).read_text()) == {"gpus": 2.0, "processors": 3.0}


def test_without_counters_no_energy_is_recorded(attempt: AttemptDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(node_monitor.Rapl, "open", lambda: None)
    with monitored(attempt, 0, 1):
        await_that(target_of(attempt.run.folder, 0).exists, "the target of the node")
    assert not attempt.energy(0).exists()


@pytest.mark.parametrize(("cache", "named"), [(None, {"run"}), ("auto", {"run", "cache"}), ("/c", {"run", "cache"})])
def test_the_folders_that_must_not_fill_are_watched(tmp_path: Path, cache: str | None, named: set[str]) -> None:
    found = places(tmp_path, {"data": {"cache": cache}})
    assert found.keys() - {"shared memory"} == named
    assert found["run"] == tmp_path
