"""A lost run's alert goes from Prometheus through a real Alertmanager to a receiver."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_ssl.metrics.ends import note_end
from monitoring.alert_rules import FILE
from tests.monitoring.discovery import UP, Target
from tests.monitoring.prometheus import PROGRAM, Server, await_that, free_port, serving, started

ALERTMANAGER = shutil.which("prometheus-alertmanager")
if PROGRAM is None or ALERTMANAGER is None:
    pytest.skip("no prometheus or no alertmanager", allow_module_level=True)


class Receiver(ThreadingHTTPServer):
    """A webhook that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.sent: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Hook(BaseHTTPRequestHandler):
    """One request to the webhook."""

    server: Receiver

    def do_POST(self) -> None:
        self.server.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.shutdown()
    made.server_close()


def at_once(folder: Path) -> Path:
    """The shipped rules, without waiting until an alert has lasted."""
    rules = yaml.safe_load(FILE.read_text())
    for rule in [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]:
        rule["for"] = "0s"
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(rules))
    return path


def sends_to(receiver: Receiver, folder: Path) -> Path:
    """The shipped configuration of Alertmanager with a receiver, which is told at once."""
    config = yaml.safe_load((FILE.parent / "alertmanager.yml").read_text())
    url = f"http://127.0.0.1:{receiver.server_port}/"
    config["receivers"].append({"name": "hook", "webhook_configs": [{"url": url}]})
    config["route"] |= {"receiver": "hook", "group_wait": "0s", "group_interval": "1s"}
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def named(receiver: Receiver, name: str) -> list[dict[str, Any]]:
    """The alerts of a name that have arrived."""
    return [alert for sent in receiver.sent for alert in sent["alerts"] if alert["labels"]["alertname"] == name]


def test_a_killed_run_is_reported_to_the_receiver_with_what_to_do_and_then_which_end_it_was(
    tmp_path: Path, receiver: Receiver
) -> None:
    targets, port = tmp_path / "targets", free_port()
    targets.mkdir()
    options = [f"--config.file={sends_to(receiver, tmp_path)}", f"--storage.path={tmp_path / 'silences'}"]
    command = [str(ALERTMANAGER), *options, "--cluster.listen-address=", f"--web.listen-address=127.0.0.1:{port}"]
    with (
        started(command, tmp_path / "alertmanager.log", Server(port, "/api/v2", "status").ready),
        serving(tmp_path, targets, at_once(tmp_path), port) as server,
    ):
        target = Target(targets / "measured.json")
        try:
            await_that(lambda: server.values(f"{UP} == 1"), "the run is up")
            assert not receiver.sent
        finally:
            target.end(signal.SIGKILL)
        await_that(lambda: receiver.sent, "an alert arrives")
        note_end(target.file, "loss not finite")
        await_that(lambda: named(receiver, "LossNotFinite"), "the alert that knows the end arrives")
        # the series without the end goes stale some scrapes after its target has been replaced
        await_that(
            lambda: not server.values("ALERTS{alertname='RunLost',alertstate='firing'}"), "one alert for one end"
        )
    assert named(receiver, "LossNotFinite")[0]["labels"]["run"] == "measured"
    [alert] = receiver.sent[0]["alerts"]
    assert alert["status"] == "firing"
    assert {key: alert["labels"][key] for key in ("alertname", "run", "severity")} == {
        "alertname": "RunLost",
        "run": "measured",
        "severity": "critical",
    }
    assert alert["annotations"]["runbook"] == "monitoring/RUNBOOK.md#runlost"
    assert alert["annotations"]["summary"].startswith("measured does not answer")
