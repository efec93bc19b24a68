"""The commit from which a run's code was copied, kept in `source.json` of the run folder."""

import json
import subprocess
from pathlib import Path
from typing import Any

SOURCE = "source.json"
GIT_SECONDS = 10
UNKNOWN: dict[str, Any] = {"commit": None, "changed": []}


def source_of(project: Path) -> dict[str, Any]:
    """Return the commit of a project, and the files that differ from it; of a run's code, what was known of that.

    The commit is None where git does not know one.
    """
    known = project.parent / SOURCE  # the code of a run, which a fork takes over
    if known.is_file():
        found: dict[str, Any] = json.loads(known.read_text())
        return found

    def git(*words: str) -> list[str]:
        command = ["git", "-C", str(project), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
        return done.stdout.splitlines()

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD")
        if Path(top).resolve() != project.resolve():
            return UNKNOWN  # installed somewhere below another project
        return {"commit": commit, "changed": [line[3:] for line in git("status", "--porcelain")]}
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN


def write_source(folder: Path, project: Path) -> None:
    """Write what is known of a project into the folder of a run that copies it. Raises OSError."""
    (folder / SOURCE).write_text(json.dumps(source_of(project), indent=1) + "\n")
