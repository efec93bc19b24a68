"""The copy of the code that a run makes, and the commit that it was copied from (`source.json` of the run folder)."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dist_ssl.runtime.strange_files import close_to_others
from launch.run_files import read_report

SOURCE = "source.json"
COMMIT = re.compile(r"[0-9a-f]{40,64}")
GIT_SECONDS = 10
SNAPSHOT = ("dist_ssl", "launch", "shards", "configs")
"""Folders of the project that a run copies."""
LEFT_OUT = ("__pycache__", "*.pyc", "*.md", "*.svg")
"""Files of a project that a run does not copy: what documents say does not change what code does."""
DIRECT_URL = "dist_ssl-*.dist-info/direct_url.json"
"""Where pip records what a package was installed from."""
UNKNOWN: dict[str, Any] = {"commit": None, "changed": []}


def source_of(project: Path) -> dict[str, Any]:
    """Return the commit of a project, and the files that differ from it; of a run's code, what was known of that.

    The commit is None where neither git nor pip knows one: pip records it of what was installed from a repository.
    """
    if project.name == "code" and (project.parent / "overrides.yaml").is_file():  # of a run, which a fork takes over
        return _recorded(project.parent / SOURCE)

    def git(*words: str) -> list[str]:
        command = ["git", "-C", str(project), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
        return done.stdout.splitlines()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD")
        if Path(top).resolve() != project.resolve():
            return installed_from(project)  # somewhere below another project
        return {"commit": commit, "changed": [line[3:] for line in git("status", "--porcelain", "--", *SNAPSHOT)]}
    except (OSError, ValueError, subprocess.SubprocessError):
        return installed_from(project)


def installed_from(folder: Path) -> dict[str, Any]:
    """Return the commit of the repository from which pip installed a folder, as its record says."""
    for record in folder.glob(DIRECT_URL):
        origin = (read_report(record) or {}).get("vcs_info")
        if isinstance(origin, dict) and isinstance(origin.get("commit_id"), str):
            return {**UNKNOWN, "commit": origin["commit_id"]}
    return UNKNOWN


def _recorded(path: Path) -> dict[str, Any]:
    """Return what a run has recorded of its code, and nothing else that may be in the file."""
    found = read_report(path) or {}
    commit, changed = found.get("commit"), _names(found.get("changed"))
    known = isinstance(commit, str) and COMMIT.fullmatch(commit)
    return {"commit": commit, "changed": changed} if known else UNKNOWN


def _names(found: Any) -> list[str]:
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def write_source(folder: Path, project: Path, files: Sequence[str] = ()) -> None:
    """Write what is known of a project into the folder of a run that has copied these files of it. Raises OSError."""
    (folder / SOURCE).write_text(json.dumps({**source_of(project), "files": list(files)}, indent=1) + "\n")


def lost_files(folder: Path, present: Collection[Path]) -> list[str]:
    """Return the files of a run's code that were copied at its start and are not present any more."""
    listed = _names((read_report(folder / SOURCE) or {}).get("files"))
    return sorted({*listed} - {str(path) for path in present})


def copy_for_owner(source: Path, target: Path, left_out: Collection[str] = LEFT_OUT, *, links: bool = False) -> None:
    """Copy a folder, so that no other user can change the copy even where others may change the source.

    `left_out`: patterns of names; `links`: copy what links lead to, instead of leaving links out. Raises OSError,
    shutil.Error.
    """

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if _left_out(Path(folder) / name, left_out, links)}

    shutil.copytree(source, target, ignore=ignored, copy_function=shutil.copyfile)  # files have the modes of new ones
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        close_to_others(folder)


def copied_files(source: Path) -> list[Path]:
    """Return the files that `copy_for_owner` copies of a folder, sorted."""
    found = []
    for place, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not _left_out(Path(place) / name)]
        found += [path for path in (Path(place) / name for name in names) if not _left_out(path)]
    return sorted(found)


def _left_out(path: Path, patterns: Collection[str] = LEFT_OUT, links: bool = False) -> bool:
    return (not links and path.is_symlink()) or any(fnmatch(path.name, own) for own in patterns)
