"""A record of what an attempt ran with on each node: Python, packages, processor, cores, memory, GPUs, their driver.

Bits of weights are equal only where processor, GPUs and libraries are. A resume says which of them have changed.
"""

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.own_cores import own_cores
from launch.run_dir import AttemptDir, RunDir
from launch.run_files import read_report

BITS = ("torch", "numpy", "numba", "pillow", "simplejpeg", "torchvision", "deepspeed", "timm")
"""Packages whose results are part of a run's."""
HARDWARE = ("processor", "gpus", "driver")
DRIVER = Path("/proc/driver/nvidia")
PROCESSORS = Path("/proc/cpuinfo")
INFO = ".dist-info"


def record(driver: Path = DRIVER, processors: Path = PROCESSORS) -> dict[str, Any]:
    """Return what this process would run with, as plain values; nothing is imported for it."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "system": " ".join((os.uname().sysname, os.uname().release, os.uname().machine)),
        "processor": _value(_lines(processors), "model name") or platform.machine(),
        "cores": own_cores(),
        "memory": psutil.virtual_memory().total,
        "gpus": [_value(_lines(path), "Model") for path in sorted(driver.glob("gpus/*/information"))],
        "driver": next(iter(_lines(driver / "version")), ""),
        "packages": dict(sorted(packages(sys.path))),
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _value(lines: list[str], key: str) -> str:
    """Return the value of the first line `key : value`; empty without one."""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def packages(places: list[str]) -> Iterator[tuple[str, str]]:
    """Yield name and version of every package that is installed in these folders; the first of a name counts."""
    seen = set()
    for place in places:
        folder = Path(place or ".")
        for path in folder.glob(f"*{INFO}") if folder.is_dir() else ():
            name, _, version = path.name.removesuffix(INFO).rpartition("-")
            name = name.lower().replace("_", "-")
            if name not in seen:
                seen.add(name)
                yield name, version


def write_record(attempt: AttemptDir, node: int) -> None:
    """Write the record of a node. Raises OSError."""
    write_atomically(attempt.environment(node), json.dumps(record(), indent=1) + "\n")


def changes(run: RunDir, before: int) -> str:
    """Return what has changed on which bits depend since the newest attempt up to `before`; empty for nothing.

    The present machine is compared with that attempt's first node; attempts that left no record are passed over.
    """
    for number in sorted((each for each in run.attempts() if each <= before), reverse=True):
        known = read_report(AttemptDir(run, number).environment(0))
        if known:
            found = list(differences(known, record()))
            what = "; ".join(found)
            return f"Since attempt {number}: {what}. Equal bits are not to be expected from here on." if found else ""
    return ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs of two records and results depend on, as `torch 2.14.1 -> 2.15.0`."""
    for key in HARDWARE:
        if old.get(key) != new[key]:
            yield f"{key} {_shown(old.get(key))} -> {_shown(new[key])}"
    listed = old.get("packages")
    known = listed if isinstance(listed, dict) else {}
    for name in BITS:
        was, now = known.get(name, "none"), new["packages"].get(name, "none")
        if was != now:
            yield f"{name} {was} -> {now}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value or "none")
