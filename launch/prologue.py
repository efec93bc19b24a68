"""The first step of a batch script: creates the folder of the next attempt and prints its number.

    python -m launch.prologue RUN_FOLDER

A requeued job runs the prologue again, so every start is a new attempt.
"""

import sys
from pathlib import Path

from launch.run_dir import RunDir, write_for_owner_alone


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    run = RunDir.open(Path(arguments[0]))
    print(run.new_attempt(run.submitted).number)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
