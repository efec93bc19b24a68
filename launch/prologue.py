"""What a batch script does before its tasks start: make the next attempt's folder and print its number.

    python -m launch.prologue RUN_FOLDER

A job that Slurm starts again comes through here again, so every start is an attempt of its own.
"""

import sys
from pathlib import Path

from launch.run_dir import RunDir


def main(words: list[str]) -> int:
    """Run the command line; the exit code."""
    run = RunDir.open(Path(words[0]))
    print(run.new_attempt(run.submitted).number)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
