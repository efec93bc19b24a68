"""The first step of a batch script: creates the folder of the next attempt and prints its number.

    python -m launch.prologue RUN_FOLDER

A requeued job runs the prologue again, so every start is a new attempt. A file system that does not answer is asked
again for half a minute: nobody would start the job again.
"""

import sys
from pathlib import Path

from dist_ssl.runtime.files import write_for_owner_alone
from dist_ssl.runtime.tries import may_go_away, tried_again
from launch.run_dir import RunDir

PAUSES = (1.0, 4.0, 25.0)
"""Seconds before each further try."""


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    run = RunDir.open(Path(arguments[0]))
    print(tried_again(lambda: run.new_attempt(run.submitted), PAUSES, may_go_away).number)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
