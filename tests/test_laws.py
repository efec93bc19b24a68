"""The laws of the house; every failure says how to obey."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.golden.agreed import agree

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("dist_ssl", "launch", "shards", "monitoring")
FILES = sorted(path for name in PRODUCT for path in (ROOT / name).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES if path.name != "__init__.py"}

FLOORS: dict[str, float] = {
    "dist_ssl.errors": 1.0,
    "dist_ssl.runtime.log_setup": 1.05,
    "dist_ssl.config.*": 1.1,
    "dist_ssl.runtime.control_groups": 1.1,
    "dist_ssl.runtime.end_names": 1.1,
    "dist_ssl.runtime.files": 1.1,
    "dist_ssl.runtime.jsonl": 1.1,
    "dist_ssl.runtime.kept_lines": 1.1,
    "dist_ssl.runtime.open_files": 1.1,
    "dist_ssl.runtime.own_cores": 1.1,
    "dist_ssl.runtime.patient_writes": 1.1,
    "dist_ssl.runtime.run_folder": 1.1,
    "dist_ssl.runtime.signals": 1.1,
    "dist_ssl.runtime.step_clock": 1.1,
    "dist_ssl.runtime.strange_files": 1.1,
    "dist_ssl.runtime.tries": 1.1,
    "dist_ssl.checkpoint.background": 1.1,
    "dist_ssl.checkpoint.folder_names": 1.1,
    "dist_ssl.core.*": 1.2,
    "dist_ssl.models.*": 1.3,
    "dist_ssl.losses.*": 1.3,
    "dist_ssl.optim.*": 1.3,
    "dist_ssl.distributed.*": 2.1,
    "dist_ssl.protocols.*": 2.2,
    "dist_ssl.schedules.*": 2.3,
    "dist_ssl.metrics.table": 2.3,
    "dist_ssl.metrics.table_row": 2.3,
    "dist_ssl.runtime.finite_check": 2.3,
    "dist_ssl.data.*": 3.0,
    "dist_ssl.engines.*": 3.0,
    "dist_ssl.memory.*": 3.0,
    "dist_ssl.metrics.*": 3.0,
    "dist_ssl.checkpoint.*": 3.0,
    "dist_ssl.runtime.*": 3.0,
    "dist_ssl.train": 4.0,
    "dist_ssl.methods.*": 4.0,
    "dist_ssl.evaluate.*": 4.0,
    "shards.*": 4.0,
    "monitoring.*": 4.0,
    "dist_ssl.saved_encoder": 4.8,
    "dist_ssl.parts": 4.9,
    "dist_ssl.build": 5.0,
    "launch.*": 6.0,
}
"""Every module, or every module below a folder, and the floor on which it stands; the first row that fits counts.

Whole numbers are the floors of the house; decimals say which rooms of one floor may use which others.
"""

DOORS: dict[str, tuple[str, ...]] = {
    "torch.distributed": (
        *("dist_ssl.distributed.world", "dist_ssl.distributed.store"),
        *("dist_ssl.engines.*", "dist_ssl.checkpoint.saver"),
    ),
    "torch.nn.parallel": ("dist_ssl.engines.*",),
    "hydra": ("launch.*",),
    "omegaconf": ("launch.*",),
    "prometheus_client": ("dist_ssl.metrics.*",),
    "os.environ": ("dist_ssl.distributed.*", "launch.*"),
    "os.environb": (),
    "os.getenv": (),
    "os.putenv": (),
    "pickle": (),
    "torch.distributed.all_gather_object": (),  # these unpickle what another process sends
    "torch.distributed.broadcast_object_list": (),
    "torch.distributed.gather_object": (),
    "torch.distributed.recv_object_list": (),
    "torch.distributed.scatter_object_list": (),
    "torch.load": (),
    "torch.save": (),
}
"""What may be used through few doors, and the modules that are those doors."""

TOP_LEVEL = {
    *("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", ".gitignore", ".ci"),
    *("dist_ssl", "launch", "configs", "shards", "monitoring", "tests"),
}

WORDS: dict[str, str] = {
    r"knobs?": "hyperparameter, Curve",
    r"pulses?|beats?": "agreement, decision, step",
    r"stand-ins?": "replacement sample",
    r"mailbox(es)?|letters?|doorbells?|bells?": "shared memory, message, futex",
    r"settled?|settles|settling": "update the running statistics, end, decide",
    r"sketch(es|ed)?": "meta device",
    r"mend(s|ed|ing|able)?": "fix, correct",
    r"begun": "started",
    r"told": "given, configured, reported",
    r"wanted": "requested, expected",
    r"whoever|(?-i:he|his|him)": "the process, the rank, it",
    r"be had|gone on with": "available; resumed",
    r"means? and deviations?": "mean and standard deviation",
    r"(?<!of )courses?": "pipeline, curve",
}
"""Words that the product does without, as patterns of whole words, and what it says instead."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def row(module: str) -> str | None:
    """The row of the floor table that a module belongs to."""
    return next((pattern for pattern in FLOORS if fnmatch(module, pattern)), None)


def folder(module: str) -> str:
    """A row with a star stands for one folder and all below it; any other module lies in the folder of its file."""
    pattern = row(module) or module
    return pattern.rpartition(".")[0]


def imported(module: str, path: Path) -> Iterator[str]:
    """Modules of the product that a module imports, wherever in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            near = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*near, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = next((n for n in (name, name.rpartition(".")[0]) if n in MODULES), None)
            if found:
                yield found


@cache
def names_used(path: Path) -> list[tuple[str, int]]:
    """Dotted names of what a file imports or reaches through a name that it imported, with their lines."""
    bound: dict[str, str] = {}
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                bound[alias.asname or first] = alias.name if alias.asname else first
                found.append((alias.name, node.lineno))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                found.append((f"{node.module}.{alias.name}", node.lineno))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            words = ast.unparse(node).split(".")
            if words[0] in bound:
                found.append((".".join([bound[words[0]], *words[1:]]), node.lineno))
    return found


def definitions(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[str, Definition]]:
    """Public functions and classes, and the public methods of those classes."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from definitions(node.body, inside)
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        yield inside + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node.body, f"{node.name}.")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Every docstring of a file, private ones and those below attributes included, with its line."""
    for node in ast.walk(tree(path)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.lineno, value.value


def shared(names: Iterator[tuple[str, str]]) -> list[str]:
    """Of pairs of a name and a place, the names that stand in several places."""
    places: dict[str, set[str]] = {}
    for name, place in names:
        places.setdefault(name, set()).add(place)
    return [f"{name}: {', '.join(sorted(found))}" for name, found in sorted(places.items()) if len(found) > 1]


def floors_table() -> str:
    """The floors as Markdown: a row per whole number; what may use what within it, from the top down."""
    rows = ["| floor | modules |", "|---|---|"]
    for whole in sorted({int(floor) for floor in FLOORS.values()}, reverse=True):
        steps = sorted({floor for floor in FLOORS.values() if int(floor) == whole}, reverse=True)
        named = [", ".join(f"`{row}`" for row, floor in FLOORS.items() if floor == step) for step in steps]
        rows.append(f"| {whole} | {'; below: '.join(named)} |")
    return "\n".join(rows)


def doors_table() -> str:
    """The doors as Markdown."""
    rows = ["| what | only in |", "|---|---|"]
    for thing, doors in DOORS.items():
        rows.append(f"| `{thing}` | {', '.join(f'`{door}`' for door in doors) or 'no module'} |")
    return "\n".join(rows)


def tell(problems: list[str], remedy: str) -> None:
    """Fail with all that is wrong, and how to put it right."""
    if problems:
        pytest.fail("\n  ".join(["", *problems]) + f"\n{remedy}", pytrace=False)


def in_git(*options: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git")
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, check=True, text=True)
    return [name for name in listed.stdout.split("\0") if name]


def test_every_module_has_a_floor() -> None:
    homeless = [module for module in MODULES if row(module) is None]
    tell(homeless, "Add a row to FLOORS: the lowest floor that is above everything the module imports.")


def test_every_row_of_the_floor_table_has_modules() -> None:
    empty = [pattern for pattern in FLOORS if "*" not in pattern and pattern not in MODULES]
    tell(empty, "Remove these rows from FLOORS: there are no such modules.")


def test_imports_point_to_lower_floors_or_stay_in_their_folder() -> None:
    problems = []
    for module, path in MODULES.items():
        own = FLOORS.get(row(module) or "", 0)
        for other in sorted(set(imported(module, path))):
            below = FLOORS.get(row(other) or "", 0)
            if below > own or (below == own and folder(module) != folder(other)):
                problems.append(f"{module} (floor {own}) imports {other} (floor {below})")
    tell(
        problems,
        "An import points to a lower floor, or to the same floor within one folder. Hand the thing in from above, or "
        "move what both need further down.",
    )


def test_there_are_no_import_circles() -> None:
    graph = {module: set(imported(module, path)) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def circle(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        found = next((c for other in sorted(graph[module]) if (c := circle(other, [*way, module]))), [])
        done.add(module)
        return found

    circles = [" -> ".join(found) for module in graph if (found := circle(module, []))]
    tell(circles, "Move what two modules need of each other into a third one below both.")


@pytest.mark.parametrize("thing", DOORS)
def test_doors(thing: str) -> None:
    problems = []
    for module, path in MODULES.items():
        if any(fnmatch(module, door) for door in DOORS[thing]):
            continue
        lines = sorted({line for name, line in names_used(path) if name == thing or name.startswith(f"{thing}.")})
        problems += [f"{path.relative_to(ROOT)}:{line} uses {thing}" for line in lines]
    doors = ", ".join(DOORS[thing])
    tell(problems, f"Ask one of its doors instead: {doors}." if doors else "The product does without it: leave it out.")


OBJECTS = re.compile(
    r"\w*(gather|scatter|reduce|broadcast|send|recv)_object(_list)?|_(object_to_tensor|tensor_to_object)"
)
"""Collectives that pickle what they send: who joins the ranks would execute code on all of them."""


def collectives_of_objects(source: ast.AST) -> set[int]:
    """Lines that name such a collective, of whatever module, under whatever name that module was imported."""
    found = set()
    for node in ast.walk(source):
        names = [getattr(node, key, None) for key in ("attr", "id", "name")]
        names += [node.value] if isinstance(node, ast.Constant) else []
        if any(isinstance(name, str) and OBJECTS.fullmatch(name.rpartition(".")[2]) for name in names):
            found.add(getattr(node, "lineno", 0))
    return found


def test_no_collective_exchanges_objects() -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in sorted(collectives_of_objects(tree(path)))
    ]
    tell(problems, "Exchange tensors, or JSON by World.share and World.collect.")


@pytest.mark.parametrize(
    "line",
    [
        "import torch.distributed as d; d.send_object_list([1])",
        "from torch.distributed import all_gather_object as gather",
        "from torch.distributed import distributed_c10d as c; c._object_to_tensor(1)",
        "getattr(torch.distributed, 'broadcast_object_list')([1])",
        "torch.distributed.distributed_c10d.scatter_object_list([1])",
    ],
)
def test_a_collective_of_objects_is_found_under_any_name(line: str) -> None:
    assert collectives_of_objects(ast.parse(line)) == {1}
    assert not collectives_of_objects(ast.parse("world.gather(x); files.parsed_object(x); world.share(x)"))


@pytest.mark.parametrize("thing", DOORS)
def test_every_door_is_used(thing: str) -> None:
    used = {
        module
        for module, path in MODULES.items()
        if any(name == thing or name.startswith(f"{thing}.") for name, _ in names_used(path))
    }
    idle = [door for door in DOORS[thing] if not any(fnmatch(module, door) for module in used)]
    tell(idle, f"Remove these doors of {thing} from DOORS: none of their modules uses it.")


@pytest.mark.golden
def test_contributing_shows_the_floors_and_the_doors() -> None:
    path = ROOT / "CONTRIBUTING.md"
    shown = path.read_text()
    for name, table in (("floors", floors_table()), ("doors", doors_table())):
        begin, end = f"<!-- {name}: made from tests/test_laws.py by `make golden` -->", f"<!-- end of {name} -->"
        assert begin in shown, f"CONTRIBUTING.md has lost its line {begin}"
        assert end in shown, f"CONTRIBUTING.md has lost its line {end}"
        before, after = shown.partition(begin)[0], shown.partition(end)[2]
        shown = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    agree(path, shown)


def test_methods_are_those_of_the_configs() -> None:
    files = {path.stem for path in (ROOT / "dist_ssl" / "methods").glob("*.py")} - {"__init__", "rotation"}
    configs = {path.stem for path in (ROOT / "configs" / "method").glob("*.yaml")}
    tell(
        sorted(files ^ configs), "A method is one file and one config of the same name; anything else lives elsewhere."
    )


def test_no_script_bears_the_name_of_an_importable_module(tmp_path: Path) -> None:
    names = sorted({p.stem for p in FILES if p.name != "__init__.py" and p.relative_to(ROOT).parts[0] != "dist_ssl"})
    code = "import sys; from importlib.util import find_spec; print(*[n for n in sys.argv[1:] if find_spec(n)])"
    clean = subprocess.run(
        [sys.executable, "-I", "-c", code, *names], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    tell(
        clean.stdout.split(),
        "A script's folder comes first on sys.path, so its name would hide that module: give the script another one.",
    )


def test_no_file_is_over_300_lines() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    problems = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > 300]
    tell(problems, "Part the file where its second subject begins.")


def test_no_function_is_over_40_lines() -> None:
    problems = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 40:
                    problems.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    tell(problems, "Give a step of the function a name of its own.")


def test_every_module_and_every_public_name_has_a_docstring() -> None:
    problems = []
    for path in FILES:
        place = path.relative_to(ROOT)
        if path.name != "__init__.py" and ast.get_docstring(tree(path)) is None:
            problems.append(str(place))
        for name, node in definitions(tree(path).body):
            if name.rpartition(".")[2] != "forward" and ast.get_docstring(node) is None:
                problems.append(f"{place}:{node.lineno} {name}")
    tell(problems, "Say in one sentence what it is or does; shapes, units, ranges and errors where there are any.")


def test_docstrings_are_sentences() -> None:
    problems = []
    for path in FILES:
        for line, text in docstrings(path):
            if re.match(r"(Of|What)\b", text.strip()):
                problems.append(f"{path.relative_to(ROOT)}:{line} {text.strip().splitlines()[0]}")
    tell(
        problems,
        'A function says what it does ("Return ..."), a class or a value what it is; never Of ... or What ....',
    )


@pytest.mark.parametrize("words", WORDS)
def test_words_of_the_field(words: str) -> None:
    pattern = re.compile(rf"\b({words})\b", re.IGNORECASE)
    problems = []
    for path in FILES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", line).replace("_", "-")  # StandIn, stand_in
            if found := pattern.search(parted):
                problems.append(f"{path.relative_to(ROOT)}:{number} {found[0]}: {line.strip()}")
    tell(problems, f"Say instead: {WORDS[words]}.")


def test_no_two_modules_share_a_name() -> None:
    commands = {ROOT / "launch" / "plan.py"}  # named after what it shows, the values of dist_ssl/core/plan.py
    modules = [path for path in FILES if path.name != "__init__.py" and path not in commands]
    found = shared((path.stem, str(path.relative_to(ROOT))) for path in modules)
    tell(found, "Give one of them the name of what it is about.")


def test_no_two_classes_share_a_name() -> None:
    found = shared(
        (node.name, str(path.relative_to(ROOT)))
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
    )
    tell(found, "Give one of them the name of what it is, or use one class in both places.")


def test_a_type_has_one_home() -> None:
    found = shared(
        (f"{target.id} = {ast.unparse(node.value)}", str(path.relative_to(ROOT)))
        for path in FILES
        for node in tree(path).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and re.fullmatch(r"[A-Z][a-z]\w*", target.id)
    )
    tell(found, "Define it once, as far down as it is needed, and import it.")


def test_packages_export_nothing() -> None:
    packages = [path for path in FILES if path.name == "__init__.py" and path != ROOT / "dist_ssl" / "__init__.py"]
    full = [str(path.relative_to(ROOT)) for path in packages if tree(path).body]
    tell(full, "Leave __init__.py empty: things are imported from where they are. Only dist_ssl has an interface.")


def test_the_top_level_holds_only_what_the_design_allows() -> None:
    strange = {Path(name).parts[0] for name in in_git()} - TOP_LEVEL
    tell(sorted(strange), f"Put it into one of the folders, or leave it out of git. Allowed: {sorted(TOP_LEVEL)}.")


def test_no_file_names_a_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.~}\]])/(?:" + "|".join(("work", "root", "home")) + r")/")
    problems = []
    for name in in_git("--cached", "--others", "--exclude-standard"):
        path = ROOT / name
        if not path.is_file():
            continue
        lines = path.read_text(errors="replace").splitlines()
        problems += [f"{name}:{number}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    tell(problems, "Use a path relative to the project, a setting or a temporary folder.")
