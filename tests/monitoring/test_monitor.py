"""The files that are shipped to watch runs start every program that is there, find runs soon, and end as a whole."""

import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import yaml

from monitoring.alert_rules import FILE
from tests.monitoring.prometheus import await_that

MONITORING = FILE.parent
PROMETHEUS_OWN = 5
"""Seconds for which Prometheus collects changes of targets (discovery/manager.go); nothing configures them."""
TOOLS = ("sh", "dirname", "mkdir", "readlink", "sleep", "env")
PROGRAM = """#!/bin/sh
echo "$0 $*" >"{record}/$$.part"
env >>"{record}/$$.part"
mv "{record}/$$.part" "{record}/$$"
{then}
"""
STAYS, FAILS = "exec sleep 600", "exit 3"


def seconds(duration: str) -> float:
    assert duration.endswith("s")
    return float(duration[:-1])


def reload_interval(text: str) -> float:
    """How long Prometheus waits before it follows changes of targets, as a file starts it."""
    [found] = re.findall(r"--scrape\.discovery-reload-interval=(\w+)", text)
    return seconds(found)


@pytest.mark.parametrize("starter", ["monitor.sh", "compose.yaml"])
def test_a_target_is_up_within_ten_seconds_and_gone_within_twenty_by_what_is_configured(starter: str) -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [found] = job["file_sd_configs"]
    scrape = seconds(config["global"]["scrape_interval"])
    noticed = seconds(found["refresh_interval"]) + PROMETHEUS_OWN + reload_interval((MONITORING / starter).read_text())
    assert noticed + scrape <= 10, "it is up at its first scrape"
    assert noticed + 2.1 * scrape <= 20, "its series end when two more scrapes would have been (scrape/scrape.go)"
    assert "scrape_interval" not in job, "the one for all counts"


def test_grafana_knows_how_far_apart_samples_are() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    [source] = yaml.safe_load((MONITORING / "grafana" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


class Monitor:
    """monitor.sh in a folder of its own, on a machine with some programs that only say how they were started."""

    def __init__(self, folder: Path, programs: dict[str, str]) -> None:
        self.folder, self.record = folder / "a project", folder / "record"
        self.record.mkdir()
        shutil.copytree(MONITORING, self.folder / "monitoring")
        own = folder / "bin"
        own.mkdir()
        for tool in (*TOOLS, "mv"):
            (own / tool).symlink_to(str(shutil.which(tool)))
        for name, then in programs.items():
            (own / name).write_text(PROGRAM.format(record=self.record, then=then))
            (own / name).chmod(stat.S_IRWXU)
        command = ["sh", str(self.folder / "monitoring" / "monitor.sh")]
        self.process = subprocess.Popen(command, env={"PATH": str(own)}, stdout=subprocess.PIPE, text=True)

    def started(self, name: str) -> list[str]:
        """The command line of a program and its environment; none if it has not started."""
        texts = [path.read_text() for path in self.record.iterdir() if path.suffix != ".part"]
        return next((text.splitlines() for text in texts if f"/{name} " in text.splitlines()[0]), [])

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Send a signal, if any; the exit code and what was printed, once nothing is left."""
        if number:
            self.process.send_signal(number)
        text, _ = self.process.communicate()
        processes = [int(path.stem) for path in self.record.iterdir()]
        assert not [number for number in processes if psutil.pid_exists(number)], "nothing is left behind"
        return self.process.returncode, text


def await_all(monitor: Monitor, names: Sequence[str]) -> None:
    await_that(lambda: all(monitor.started(name) for name in names), "all programs start")


def test_everything_that_is_installed_starts_says_where_it_is_and_ends_with_the_script(tmp_path: Path) -> None:
    names = ("prometheus", "prometheus-alertmanager", "grafana")
    monitor = Monitor(tmp_path, dict.fromkeys(names, STAYS))
    await_all(monitor, names)
    prometheus, (command, *environment) = monitor.started("prometheus")[0], monitor.started("grafana")
    code, text = monitor.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    for port in (3000, 9090, 9093):
        assert f"http://127.0.0.1:{port}" in text
    assert "--config.file=monitoring/prometheus.yml" in prometheus
    assert command.endswith("grafana server --homepath=/usr/share/grafana")
    own = dict(line.split("=", 1) for line in environment if line.startswith(("GF_", "DIST_SSL_")))
    assert own["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    for name in ("GF_PATHS_PROVISIONING", "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"):
        assert Path(own[name]).exists()
    provider = (Path(own["GF_PATHS_PROVISIONING"]) / "dashboards" / "files.yml").read_text()
    [path] = re.findall(r"path: (.*)", provider)
    assert (Path(path.replace("${DIST_SSL_MONITORING}", own["DIST_SSL_MONITORING"])) / "fleet.json").is_file()
    assert (monitor.folder / "runs" / "targets").is_dir()


def test_without_the_others_prometheus_starts_alone_and_what_is_missing_is_named(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, {"prometheus": STAYS})
    await_all(monitor, ["prometheus"])
    code, text = monitor.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "Alertmanager: not on the PATH" in text
    assert "Grafana: not on the PATH" in text


def test_a_prometheus_that_cannot_start_ends_all(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, {"prometheus": FAILS, "alertmanager": STAYS})
    code, text = monitor.end()
    assert code == 3
    assert "Where port 9090 is taken" in text


def test_without_prometheus_the_remedy_is_named(tmp_path: Path) -> None:
    code, text = Monitor(tmp_path, {}).end()
    assert code == 2
    assert "apt install prometheus" in text
