"""Commands of the project in processes forked from this one, which has loaded everything: a start costs milliseconds.

Launcher, agents and workers are the real ones: processes with ids, sessions, signals and logs of their own, each a
child of the one that starts it. Only `exec` is left out, and what it would do is done by hand.
"""

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import psutil

from launch.run_dir import PROJECT
from tests import forks

ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of prctl: what loses its parent becomes a child of this process, and is seen."""
GUARD_SECONDS = 240.0
"""A bound that only a command that hangs reaches."""
POLL_SECONDS = 0.005


def load() -> None:
    """Import what all processes need, and let orphans of processes that are killed become children of this one."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in forks.LOADED:
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)


class Forked:
    """What `subprocess.Popen([python, ..., "-m", MODULE, *ARGUMENTS], ...)` would be, as far as launchers use it."""

    def __init__(
        self,
        command: list[str],
        *,
        env: dict[str, str],
        stdout: IO[Any],
        stderr: IO[Any],
        start_new_session: bool = False,
        umask: int = -1,
    ) -> None:
        place = command.index("-m")
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(command[place + 1], command[place + 2 :], env, stdout.fileno(), start_new_session, umask)

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._await(os.WNOHANG)

    def wait(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._await(0)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _await(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def run_command(name: str, words: list[str], log: Path) -> NoReturn:
    """Let this process, which `tests.forks` has started, be `python launch/NAME.py WORDS`; it prints into a file."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    _become(f"launch.{name}", words, dict(os.environ), output, new_session=True, umask=0)


def _become(
    module: str, arguments: list[str], env: dict[str, str], output: int, new_session: bool, umask: int
) -> NoReturn:
    """Be the process of a module, as if it had just been executed; never return."""
    code: Any = 1
    try:
        _forget_parent(output, env)
        _show(["python", "-m", module, *arguments])
        if new_session:
            os.setsid()
        if umask >= 0:
            os.umask(umask)
        for starting in ("launch.local", "launch.agent"):
            importlib.import_module(starting).subprocess = SimpleNamespace(Popen=Forked)  # type: ignore[attr-defined]
        gc.freeze()  # files that the parent had open would close descriptors of this process
        code = importlib.import_module(module).main(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


def _show(words: list[str]) -> None:
    """Let others see these words as this process's command line, as far as that of the process before has room."""
    first, last = (int(word) for word in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    room = last - first - 1
    line = "\0".join(words).encode()[:room].ljust(room + 1, b"\0")
    ctypes.memmove(first, line, len(line))


def _forget_parent(output: int, env: dict[str, str]) -> None:
    """Reset what a new program would not inherit: signal handlers, open files, logging, warnings."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, 1 << 16)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for the life of the process
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False, buffering=1)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # type: ignore[misc]  # noqa: SIM115
    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
    logging.root.setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ.clear()
    os.environ.update(env)


class Command:
    """`python launch/NAME.py WORDS`, forked, or executed as a person would; its output goes into a file."""

    def __init__(self, words: list[str], log: Path, *, name: str = "slurm", cold: bool = False) -> None:
        self.log, self.cold = log, cold
        self.process: Any
        if cold:
            script = [sys.executable, str(PROJECT / "launch" / f"{name}.py"), *words]
            with log.open("wb") as out:
                self.process = subprocess.Popen(script, stdout=out, stderr=out, start_new_session=True, umask=0)
        else:
            own: dict[str, Any] = {"env": dict(os.environ), "start_new_session": True, "umask": 0}
            with log.open("wb") as out:
                self.process = Forked(["-m", f"launch.{name}", *words], stdout=out, stderr=out, **own)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def finish(self) -> tuple[int, str]:
        """Its exit code and all that it printed. A command that hangs fails, with the stacks of all its processes."""
        end = time.monotonic() + GUARD_SECONDS
        while self.running:
            if time.monotonic() > end:
                where = "\n".join(f"{p.pid} {p.status()} {' '.join(p.cmdline()[-4:])}" for p in self.family())
                self.kill_all()
                raise AssertionError(f"still running after {GUARD_SECONDS:.0f} s:\n{where}\n{self.text()}")
            time.sleep(POLL_SECONDS)
        return self.process.returncode, self.text()

    def text(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """It and all its descendants that are alive."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def agents(self) -> list[psutil.Process]:
        """Its agents, one per node."""
        return [p for p in _children(self.process.pid) if not self.cold or "launch.agent" in _words_of(p)]

    def ranks(self) -> list[psutil.Process]:
        """Its workers, in the order of their ranks where there is one per node."""
        found = [worker for agent in self.agents() for worker in _children(agent.pid)]
        return [p for p in found if not self.cold or "launch.worker" in _words_of(p)]

    def kill_all(self) -> None:
        """`kill -9` of it and of all its descendants."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return [p for p in psutil.Process(pid).children() if p.name() != "git"]
    except psutil.NoSuchProcess:
        return []


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def left_over(known: set[int]) -> list[psutil.Process]:
    """The descendants of this process that are alive, but those known before; the dead ones are reaped."""
    found = []
    for process in psutil.Process().children(recursive=True):
        if process.pid in known:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
            elif process.ppid() == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
    return found
