"""A real Slurm on this host: munged, one slurmctld and four slurmd in a temporary folder.

Two partitions share the nodes: `main`, whose jobs get GRACE_SECONDS to save when `urgent` wants their nodes, and
`urgent` itself. There is no accounting daemon, node names do not resolve, and the GPUs of the nodes do not exist.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

GPUS = 8
NODES, PROGRAMS = 4, ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
GRACE_SECONDS = 20
START_SECONDS = 60
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=10
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=DEFAULT CPUs=8 RealMemory=4000 Gres=gpu:{gpus}
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}]
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace} OverTimeLimit=0 MaxTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
"""


def missing() -> list[str]:
    """The programs of Slurm that this machine lacks; "root" where they may not be started."""
    return [name for name in PROGRAMS if shutil.which(name) is None] + (["root"] if os.getuid() else [])


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; commands find it through `environment`."""

    folder: Path
    daemons: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    nodes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    """slurmd of every node."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be a user of this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def record(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        return dict(word.partition("=")[::2] for word in self.ask("scontrol", "--oneliner", "show", "job", job).split())

    def state(self, job: str) -> str:
        """A job's state; empty where Slurm has forgotten it."""
        words = ("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout.strip()

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        self.nodes[name] = _daemon(self, "slurmd", "-D", "-N", name)
        self.daemons.append(self.nodes[name])

    @contextmanager
    def dead(self, name: str) -> Iterator[None]:
        """A node has lost its power while the block runs: nothing of it is left, and nothing of it says goodbye."""
        mine = [process for process in psutil.process_iter() if _on_node(process, name)]
        steps = {parent for process in mine for parent in process.parents() if "slurmstepd" in parent.name()}
        self.nodes[name].kill()
        for process in (*steps, *mine):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes[name].wait()
        yield
        self.start_node(name)
        words = ("scontrol", "update", f"NodeName={name}", "State=RESUME")  # refused where it has come back by itself
        subprocess.run(words, env=self.environment, capture_output=True, check=False, timeout=60)
        _await_nodes(self)


def _on_node(process: psutil.Process, name: str) -> bool:
    with suppress(psutil.Error):
        return bool(process.environ().get("SLURMD_NODENAME") == name)
    return False


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """A Slurm in `folder` while the block runs; no process of it is left behind."""
    slurm = Slurm(folder)
    daemons = slurm.daemons
    try:
        _write_conf(folder)
        daemons.append(_munge(folder))
        _await(lambda: (folder / "munge" / "socket").exists(), "munged listens", folder)
        daemons.append(_daemon(slurm, "slurmctld", "-D"))
        for node in range(1, NODES + 1):
            slurm.start_node(f"n{node}")
        _await_nodes(slurm)
        yield slurm
    finally:
        _stop(slurm)


def _free_ports(count: int) -> list[int]:
    """Ports in a row; nobody listens on them now."""
    for first in range(17000, 30000, 16):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + offset))
            return list(range(first, first + count))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


def _write_conf(folder: Path) -> None:
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    port, first, *_, last = _free_ports(NODES + 1)
    host = socket.gethostname().split(".")[0]
    ports = {"port": port, "first": first, "last": last}
    text = CONF.format(host=host, folder=folder, nodes=NODES, grace=GRACE_SECONDS, gpus=GPUS, **ports)
    (folder / "slurm.conf").write_text(text)
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")


def _munge(folder: Path) -> "subprocess.Popen[bytes]":
    """munged with a key and a socket of its own; it insists on safe folders, so `--force` for those under /tmp."""
    own = folder / "munge"
    own.chmod(0o755)
    key = own / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    paths = [f"--{name}-file={own / name}" for name in ("key", "log", "pid", "seed")]
    words = ["munged", "--foreground", "--force", f"--socket={own / 'socket'}", *paths]
    with (folder / "munged.out").open("wb") as out:
        return subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)


def _daemon(slurm: Slurm, *words: str) -> "subprocess.Popen[bytes]":
    with (slurm.folder / f"{words[0]}-{words[-1]}.out").open("wb") as out:
        return subprocess.Popen(words, env=slurm.environment, stdout=out, stderr=out, start_new_session=True)


def _await_nodes(slurm: Slurm) -> None:
    def idle() -> bool:
        words = ("sinfo", "--noheader", "--partition=main", "--format=%T %D")
        done = subprocess.run(words, env=slurm.environment, capture_output=True, text=True, check=False)
        return done.stdout.split() == ["idle", str(NODES)]

    _await(idle, "all nodes are idle", slurm.folder)


def _await(holds: Callable[[], bool], what: str, folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > end:
            logs = "\n".join(p.read_text(errors="replace")[-2000:] for p in folder.glob("*.log"))
            raise AssertionError(f"after {START_SECONDS} s still not: {what}\n{logs}")
        time.sleep(0.1)


def _stop(slurm: Slurm) -> None:
    """Cancel all jobs, wait until their steps are gone, end the daemons."""
    daemons = slurm.daemons
    try:
        if len(daemons) > 1:
            slurm.ask("scancel", "--full", "--user=root")
            _await(lambda: not slurm.ask("squeue", "--noheader"), "the queue is empty", slurm.folder)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
