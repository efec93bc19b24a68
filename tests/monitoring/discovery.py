"""The command that measures how soon a real Prometheus, started as `make monitor` does, knows of a run.

    PYTHONPATH=. python tests/monitoring/discovery.py [ROUNDS]

An endpoint in a process of its own starts, ends in order, starts again and is killed, ROUNDS times at random moments.
The files of monitoring/ are used as they are shipped.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dist_ssl.metrics.endpoint import Endpoint, Exported
from dist_ssl.metrics.table import METRICS
from monitoring.alert_rules import FILE
from tests.monitoring.prometheus import PROGRAM, Server, await_that, free_port, started

BARS = {"up": 10.0, "gone": 20.0}
"""Seconds within which a target has to be up after its start, and gone after an orderly end."""
UP = 'up{job="dist_ssl",run="measured"}'


def flags() -> list[str]:
    """The options of monitor.sh that say how Prometheus finds targets."""
    return re.findall(r"--scrape\.\S+", (FILE.parent / "monitor.sh").read_text())


def serve(target: Path) -> None:
    """Be the endpoint of a run until SIGTERM, its orderly end."""
    labels = {"run": "measured", "method": "none", "instance": "measured"}
    endpoint = Endpoint(Exported(METRICS), labels, "127.0.0.1", 0, target, "127.0.0.1")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    endpoint.start()
    signal.sigwait({signal.SIGTERM})
    endpoint.stop()


class Target:
    """A process that serves, from its target file on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.unlink(missing_ok=True)  # of one that was killed
        environment = {**os.environ, "PYTHONPATH": str(FILE.parents[1])}
        self.process = subprocess.Popen([sys.executable, __file__, "serve", file], env=environment)
        await_that(file.exists, "the endpoint is announced")

    def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait for the end."""
        self.process.send_signal(number)
        self.process.wait()


def since(holds: Callable[[], object], what: str) -> float:
    """Seconds until something holds."""
    begun = time.monotonic()
    await_that(holds, what)
    return time.monotonic() - begun


def measure(server: Server, file: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds by what has to be noticed."""
    found: dict[str, list[float]] = {"up": [], "gone": [], "down": [], "alerting": []}
    for _ in range(rounds):
        for number in (signal.SIGTERM, signal.SIGKILL):
            time.sleep(random.uniform(0, 5))
            target = Target(file)
            found["up"].append(since(lambda: server.values(f"{UP} == 1"), "up"))
            target.end(number)
            if number is signal.SIGTERM:
                found["gone"].append(since(lambda: not server.values(UP), "gone"))
        found["down"].append(since(lambda: server.values(f"{UP} == 0"), "down"))
    firing = 'ALERTS{alertname="RunLost",alertstate="firing"}'
    found["alerting"].append(since(lambda: server.values(firing), "the alert fires"))
    return found


def main(rounds: int) -> int:
    """Measure and print; 1 where a bar is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        shutil.copytree(FILE.parent, folder / "monitoring")
        targets, series = folder / "runs" / "targets", folder / "runs" / ".prometheus"
        targets.mkdir(parents=True)
        server = Server(port)
        options = [f"--config.file={folder / 'monitoring' / 'prometheus.yml'}", f"--storage.tsdb.path={series}"]
        command = [str(PROGRAM), *options, *flags(), f"--web.listen-address=127.0.0.1:{port}"]
        with started(command, folder / "log", server.ready):
            found = measure(server, targets / "measured.json", rounds)
    for what, seconds in found.items():
        bar = f"; bar {BARS[what]:.0f} s" if what in BARS else ""
        print(f"{what:9} after {min(seconds):5.1f} to {max(seconds):5.1f} s, {len(seconds)} times{bar}", flush=True)
    return int(any(max(found[what]) > bar for what, bar in BARS.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
    else:
        sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 5))
