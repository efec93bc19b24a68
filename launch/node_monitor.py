"""The endpoint of a node's numbers beside its agent, and the record of the energy that the node has taken.

    with monitored(attempt, node=0, nodes=4):
        ...

`runs/targets/RUN.node_0000.json` says where the endpoint is. It is removed when the agent ends by itself, however its
workers ended; where the agent is killed or its node is lost, it stays, and an alert fires. Without this endpoint a run
goes on as with it: what goes wrong here is a line in the agent's log.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dist_ssl.distributed.rendezvous import own_addresses
from dist_ssl.errors import ConfigError, printable
from dist_ssl.metrics.endpoint import Endpoint
from dist_ssl.metrics.energy import Rapl
from dist_ssl.metrics.gpus import Gpus
from dist_ssl.metrics.node import NodeSeries
from dist_ssl.metrics.node_table import NODE_JOB
from dist_ssl.metrics.target_files import OF_A_NODE, target_of
from dist_ssl.runtime.files import write_atomically
from launch.run_dir import AttemptDir

SAMPLE_SECONDS = 5.0
RECORD_SECONDS = 60.0
"""Seconds between two records of the energy: what a lost node took after its last one is not known."""
END_SECONDS = 10.0
"""Longest wait at the end for a sample that is under way."""


@contextmanager
def monitored(attempt: AttemptDir, node: int, nodes: int) -> Iterator[None]:
    """Serve the numbers of a node within this context.

    The endpoint closes when the block ends; a process that is killed in it leaves the target file behind.
    """
    monitor = NodeMonitor(attempt, node, nodes)
    monitor.thread.start()
    try:
        yield
    finally:
        monitor.ended.set()
        monitor.thread.join(END_SECONDS)


class NodeMonitor:
    """A thread that samples the numbers of a node and serves them."""

    def __init__(self, attempt: AttemptDir, node: int, nodes: int) -> None:
        self.attempt, self.node, self.nodes = attempt, node, nodes
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="node monitor", daemon=True)

    def _run(self) -> None:
        try:
            config = self.attempt.config
            gpus = Gpus.open(os.environ.get("CUDA_VISIBLE_DEVICES"))
            series = NodeSeries(places(self.attempt.run.folder, config), gpus, Rapl.open())
            series.sample()
            if self.node == 0:
                forget_nodes(self.attempt.run.folder, self.nodes)
            endpoint = self._endpoint(series, config)
            with contextlib.ExitStack() as stack:
                stack.callback(endpoint.stop)
                endpoint.start()
                self._sample(series)
        except (ConfigError, OSError) as error:
            print(printable(f"The metrics of node {self.node} are not available: {error}"), flush=True)

    def _sample(self, series: NodeSeries) -> None:
        """Take samples until the end, and record the energy now and then, and at the end."""
        recorded = time.monotonic()
        while not self.ended.wait(SAMPLE_SECONDS):
            series.sample()
            if time.monotonic() > recorded + RECORD_SECONDS:
                recorded = time.monotonic()
                self._record(series)
        series.sample()
        self._record(series)

    def _record(self, series: NodeSeries) -> None:
        if series.joules:
            with contextlib.suppress(OSError):  # on a full disk nothing is recorded
                write_atomically(self.attempt.energy(self.node), json.dumps(series.joules) + "\n")

    def _endpoint(self, series: NodeSeries, config: dict[str, Any]) -> Endpoint:
        run, node = self.attempt.run.folder.name, config["metrics"]
        machine = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        labels = {"job": NODE_JOB, "run": run, "node": str(self.node), "instance": machine}
        port = node["port"] + 1 if node["port"] else 0  # the configured one is rank 0's
        file = target_of(self.attempt.run.folder, self.node)
        return Endpoint(series, labels, own_addresses()[0], port, file, node["bind"])


def forget_nodes(run: Path, nodes: int) -> None:
    """Remove the target files that earlier attempts on more nodes than these left behind."""
    folder = target_of(run).parent
    for path in folder.iterdir() if folder.is_dir() else ():
        found = OF_A_NODE.fullmatch(path.name.removesuffix(".json"))
        if found and path.suffix == ".json" and found[1] == run.name and int(found[2]) >= nodes:
            path.unlink(missing_ok=True)


def places(run: Path, config: dict[str, Any]) -> dict[str, Path]:
    """Return the folders that a node must not fill, by what they are for."""
    shared, cache = Path("/dev/shm"), config["data"]["cache"]
    own = Path(tempfile.gettempdir()) if cache == "auto" else Path(cache) if cache else None
    found = {"run": run, "cache": own, "shared memory": shared if shared.is_dir() else None}
    return {place: folder for place, folder in found.items() if folder}
