"""A real Prometheus with the shipped configuration, quicker than that, and its HTTP API."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from monitoring.alert_rules import FILE

PROGRAM = shutil.which("prometheus")
WAIT_SECONDS = 240
"""A bound that only a hung Prometheus reaches."""


class Server:
    """A Prometheus, or what has a similar API, that listens on a port of this machine.

    `status`: a call that it answers once it is ready.
    """

    def __init__(self, port: int, api: str = "/api/v1", status: str = "status/buildinfo") -> None:
        self.url, self.status = f"http://127.0.0.1:{port}{api}", status
        self.direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, call: str, **parameters: str) -> Any:
        """The data of an answer; an expression that it refuses fails with its reason."""
        try:
            with self.direct.open(f"{self.url}/{call}?{urllib.parse.urlencode(parameters)}", timeout=60) as answer:
                found = json.load(answer)
                return found.get("data", found)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def values(self, expression: str) -> list[float]:
        """The values of the series that an expression has now."""
        return [float(series["value"][1]) for series in self.ask("query", query=expression)["result"]]

    def labels(self, expression: str) -> list[dict[str, str]]:
        """The labels of the series that an expression has now."""
        return [series["metric"] for series in self.ask("query", query=expression)["result"]]

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return bool(self.ask(self.status))
        except (OSError, AssertionError):
            return False


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(command: list[str], log: Path, answers: Callable[[], bool]) -> Iterator[None]:
    """A program that runs until the end, from when it answers on."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            await_that(lambda: process.poll() is not None or answers(), f"{command[0]} answers")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.kill()
            process.wait()


def await_that(holds: Callable[[], Any], what: str) -> None:
    """Wait until something holds."""
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.2)


def quick(folder: Path, rules: Path) -> Path:
    """The file of rules with all groups evaluated as often as samples are taken."""
    found = yaml.safe_load(rules.read_text())
    for group in found["groups"]:
        group.pop("interval", None)
    path = folder / "quick.yml"
    path.write_text(yaml.safe_dump(found))
    return path


@contextmanager
def serving(folder: Path, targets: Path, rules: Path = FILE, alertmanager: int | None = None) -> Iterator[Server]:
    """A Prometheus that finds the runs of `targets` by what monitoring/prometheus.yml says.

    `rules`: in place of the shipped ones; `alertmanager`: the port of one that it tells of alerts.
    """
    config = yaml.safe_load((FILE.parent / "prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [found] = job["file_sd_configs"]
    assert found["files"] == ["../runs/targets/*.json"]
    assert config["rule_files"] == [FILE.name]
    found |= {"files": [str(targets / "*.json")], "refresh_interval": "1s"}
    config["global"] = dict.fromkeys(config["global"], "500ms")
    config["rule_files"] = [str(quick(folder, rules))]
    [receiver] = config["alerting"]["alertmanagers"]
    receiver["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"] if alertmanager else []}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'series'}"]
    server = Server(port)
    command = [str(PROGRAM), *options, f"--web.listen-address=127.0.0.1:{port}"]
    with started(command, folder / "prometheus.log", server.ready):
        yield server
