"""The evaluation of a run's features, after its training or during it.

Examples:

    python launch/evaluate.py run=runs/NAME                                        # kNN on all images
    python launch/evaluate.py run=runs/NAME protocol=linear recipe=mocov3 branch=teacher
    python launch/evaluate.py run=runs/NAME watch=all                              # every checkpoint, beside the run
    torchrun --nproc-per-node 8 launch/evaluate.py run=runs/NAME protocol=linear   # the ranks share the images

Protocols:

    protocol=knn           weighted kNN (k=20, temperature=0.07): the training split votes on the held-out one
             linear        a linear classifier, tested on the held-out split, trained as recipe=NAME says:
                             fast     on cached features of the centres, its learning rate chosen: minutes
                             moco, mocov3, mocov3_vit, swav, effssl
                                      as in these papers, on new random crops in every epoch: hours
                             emp_ssl  as there, on cached mean features of patches=128 views of an image
                           sweep=true chooses a published recipe's learning rate on a tenth of the training split
             retrieval     mean average precision: a held-out image finds the others of its class
             bag_of_patches  kNN on the mean features of patches=128 views of an image, drawn as in training: 128 times
                           the cost of knn
             unlabelled    effective rank, uniformity, alignment: without labels
             neighbours    a sheet (PNG) of queries=10 held-out images and their k=8 nearest training images

Further keys; what is not given is as the run's probe has it:

    branch=teacher         the teacher's encoder; ema: the average of weights that a run with ema=0.999 keeps
    checkpoint=step_00012000    another checkpoint than the newest
    watch=all              follow the run and evaluate every checkpoint that it finds, until the run has finished or
                           Ctrl-C; kept: only those that the run keeps for ever (keep_every) and its last one
    bank=N queries=N       the most images of the training and of the held-out split, which are used whole by default
    resize=256 crop=224    the view of an image: its shorter side in px, the side of the centre that is cut out
    data.path=PATH data.val=NAME    where the data is now; another held-out split
    threads=N              of torch
    trust=true             evaluate a run whose folder others can change too

The numbers are printed, and written to runs/NAME/evaluations/STEP_BRANCH_PROTOCOL.json, whose name also has the
settings that were given, and to runs/NAME/evaluations.jsonl. Of the linear protocol report `linear accuracy`, that of
the last epoch: the best epoch is chosen on the held-out split. One process computes, on a GPU if there is one; several
share the work where torchrun starts them.

Exit codes: 0; 2 something in the command, in the checkpoint or in the data must be corrected; 130 interrupted.
"""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dist_ssl.config.command import Screen, run_command
from dist_ssl.config.long_work import LongWork
from dist_ssl.distributed.place_variables import RANK
from dist_ssl.errors import UserError, cannot_be_written
from dist_ssl.runtime.files import write_for_owner_alone
from launch import trust
from launch.evaluation_options import DataValues, Options
from launch.handover import hand_over
from launch.run_dir import RunDir

if TYPE_CHECKING:
    from launch.evaluation import Evaluation

PROBED = re.compile(r"\bprobe\.(?=(?:bank|queries|k|temperature|branch|crop|resize)=)")
"""The keys of the probe are keys of this command."""
WAIT_SECONDS = 600.0
"""How long a rank waits for the others, of which one may still read its last images."""


def run(arguments: list[str], console: Console) -> int:
    """Evaluate as the arguments say; return the exit code. Raises UserError."""
    trusted, arguments = trust.parse(arguments)
    options, data = Options.parse(arguments)
    found = RunDir.open(Path(options.run))
    trust.check(found, trusted)
    hand_over(found, arguments, console, "evaluate.py")
    try:
        evaluate(found, options, data, console)
    except UserError as error:
        raise UserError(PROBED.sub("", error.problem), PROBED.sub("", error.remedy)) from error
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Of several processes the first one prints, and each its errors."""
    write_for_owner_alone()  # what Python compiles of the run's code is in its folder
    first = os.environ.get(RANK, "0") == "0"
    console = Screen(quiet=not first)
    errors = None if first else Screen(stderr=True)
    interrupted = "Interrupted: nothing was written of what was computed last."
    return run_command(run, arguments, console, errors=errors, interrupted=interrupted)


def evaluate(run: RunDir, options: Options, data: DataValues, console: Console) -> None:
    """Evaluate one checkpoint, or those of a run that is followed, on all ranks. Raises UserError."""
    from dist_ssl.distributed.world import Waits, joined
    from launch.checkpoint_choice import Watch, evaluate_named, follow
    from launch.evaluation import evaluated

    if options.protocol == "bag_of_patches":
        console.print(f"Computing {options.patches} views of every image; bank=N and queries=N make it shorter.")
    with joined(None, Waits(WAIT_SECONDS, WAIT_SECONDS)) as world, LongWork(console) as work:

        def one(name: str) -> None:
            """Evaluate the checkpoint with this name, and show and write its numbers."""
            found = evaluated(run, options, data, run.checkpoints / name, world, console.print, work)
            if world.rank == 0:
                settings = found.content["settings"]
                console.print(f"{name}, {settings['branch']}, {options.protocol}:")
                console.print(found.table())
                write(found)
                console.print(f"Written to {' and '.join(map(str, found.files))}.")

        if options.watch:
            follow(Watch(run, options, data, console.print), world, one)
        else:
            evaluate_named(run, options.checkpoint, world, one)


def write(found: "Evaluation") -> None:
    """Write the files of an evaluation. Raises UserError where that is not possible."""
    try:
        found.write()
    except OSError as error:
        place = error.filename or found.file
        raise cannot_be_written(place, error, "Free some space or fix the permissions.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
