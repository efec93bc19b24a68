"""What the checks of trust cost a start and a resume: a table, and exit code 1 where either costs more than 0.2 s.

    python tests/benchmarks/trust_checks.py [rounds=9]

Each check runs as the launcher runs it, on a run folder with this code. A resume removes what Python has compiled of
the run's code, so that nothing runs but its source, and puts what is compiled of this code in its place; the modules
for which it is not are compiled again. All figures are seconds of the processor, the medians of all rounds.
"""

import io
import py_compile
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.util import cache_from_source
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dist_ssl.runtime.files import write_for_owner_alone
from launch import credentials, preparation, private_cache, run_names, settings, trust
from launch.compiled_code import copy_compiled
from launch.run_dir import RunDir

MOST_SECONDS = 0.2
WORDS = ["method=mocov3", "nodes=1", "data.path=https://example.org/shards", "encoder=resnet50"]
IMPORTS = ("import launch.agent", "import launch.worker, dist_ssl.build, dist_ssl.train")
"""What the agent and the ranks of an attempt import at the least; what one of them compiles, the next one finds."""
Check = Callable[[], object]


def modules(code: Path, statement: str, option: str = "-B") -> list[Path]:
    """The files of a folder of code that a process loads by a statement; by default it keeps nothing compiled."""
    say = "import sys; print(*(getattr(own, '__file__', None) for own in list(sys.modules.values())), sep='\\n')"
    command = [sys.executable, "-P", option, "-c", f"{statement}; {say}"]
    found = subprocess.run(command, env={"PYTHONPATH": str(code)}, capture_output=True, text=True, check=True, cwd=code)
    return [Path(line) for line in found.stdout.splitlines() if line.startswith(f"{code}/")]


def compiled(files: list[Path]) -> None:
    for file in files:
        py_compile.compile(str(file))


def median(check: Check, rounds: int, before: Check = lambda: None) -> float:
    """Processor seconds of a check; `before` runs first in every round and does not count."""
    found = []
    for _ in range(rounds):
        before()
        start = time.process_time()
        check()
        found.append(time.process_time() - start)
    return statistics.median(found)


def read_words() -> None:
    """What is done with the words of every command."""
    write_for_owner_alone()
    credentials.set_aside(trust.parse(WORDS)[1])


def check_name(folder: Path) -> None:
    """Check the name and the place of a run folder."""
    run_names.check_name(folder.parent, folder.name)
    run_names.check_place(folder)


def common(config: dict[str, object], folder: Path) -> dict[str, Check]:
    """What every command does."""
    return {
        "umask, trust=, logins in the words": read_words,
        "logins in the config": partial(credentials.check_config, config),
        "the folder's name": partial(check_name, folder),
        "private caches": partial(private_cache.private_caches, folder / "code"),
    }


def table(rounds: int, folder: Path) -> tuple[Table, float, float]:
    """The table, and the seconds of a start and of a resume."""
    with redirect_stdout(io.StringIO()):
        config = settings.compose(WORDS, ROOT / "configs")
        run = preparation.begin(WORDS, {**config, "runs": str(folder), "name": "run"})
    for statement in IMPORTS:
        modules(ROOT, statement, "-u")  # compiles this code, as a check of a config does
    loaded = sorted({file for statement in IMPORTS for file in modules(run.code, statement)})
    costs = {name: median(check, rounds) for name, check in common(config, run.folder).items()}
    found = Table("check", "start", "resume")
    for name, seconds in costs.items():
        found.add_row(name, f"{seconds:.4f} s", f"{seconds:.4f} s")
    folder_check = median(lambda: trust.check(RunDir(run.folder), False), rounds, lambda: compiled(loaded))
    copying = median(lambda: copy_compiled(ROOT, run.code), rounds)
    missing = [file for file in loaded if not Path(cache_from_source(str(file))).exists()]
    again = median(lambda: compiled(missing), rounds)
    found.add_row("owners and modes of the folder, its code without what was compiled", "", f"{folder_check:.4f} s")
    found.add_row("what is compiled of this code", f"{copying:.4f} s", f"{copying:.4f} s")
    found.add_row(f"compiling {len(missing)} of {len(loaded)} modules", "", f"{again:.4f} s")
    start = sum(costs.values()) + copying
    resume = start + folder_check + again
    found.add_row("all", f"{start:.4f} s", f"{resume:.4f} s")
    return found, start, resume


def main(arguments: list[str]) -> int:
    rounds = int(dict(argument.split("=") for argument in arguments).get("rounds", 9))
    with tempfile.TemporaryDirectory() as folder:
        shown, *costs = table(rounds, Path(folder))
    Console().print(shown)
    return int(max(costs) > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
