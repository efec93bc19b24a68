"""The audit: proves from a run's ledger that every sample was used once per epoch, across kills and resumes.

Examples:

    python launch/audit.py run=runs/NAME
    python launch/audit.py run=runs/NAME data.path=/new/place     # where the shards have moved

The expected samples of every step are recomputed from the config, the manifest and the plans, and compared with the
ledger, which was written where the batches entered the engine. The audit covers the steps that are final, which are
those up to the newest checkpoint. It also says whether the attempts have verified the contents of the shards that they
read.

Exit codes: 0 clean; 1 a sample was lost, repeated or moved; 2 the run cannot be audited; 130 interrupted.
"""

import itertools
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_ssl.checkpoint.retention import newest_step
from dist_ssl.config.bounds import MOST_COUNT, MOST_SEED
from dist_ssl.config.command import known_pairs, run_command, say
from dist_ssl.config.instantiate import fit, keywords
from dist_ssl.config.run_keys import all_epochs
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.data_keys import Data
from dist_ssl.data.order import ledger_reader
from dist_ssl.data.order.ledger_audit import Audit, EpochAudit, epochs
from dist_ssl.data.order.source_shares import asked
from dist_ssl.data.storage.contents import CACHED, IN_PLACE, vouched
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.mixture import MixedSplit
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.errors import EXIT_CODE, ConfigError, DataError, plural
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.end_names import FINISHED
from launch import trust
from launch.launch_keys import listed
from launch.run_dir import RunDir

KEYS = ("run", "data.path")
NOTES_SHOWN = 20
NUMBERS_SHOWN = 5
RESTORE = "Restore the complete file: the expected samples of the run's steps are computed from it."
COLUMNS = ("epoch", "steps", "used once", "replaced", "dropped", "lost", "repeated", "moved", "unclear")


def open_split(run: RunDir, path: str | None) -> Split:
    """Return the run's training split, verified to be the data it started with.

    `path`: where the data lies now, by default where the newest attempt read it. Raises DataError.
    """
    began = value_of(run.config, "data", dict)
    last = run.last_config()
    there = None if path else value_of(last, "data", dict).get("manifest")
    node = {**began, "path": listed(path) if path else value_of(last, "data.path", Any), "manifest": there}
    try:
        # a command in somebody else's config is not run: it is not the user's own
        own = path is not None or not any(trust.dangers(run))
        access = Access(Fetcher(allow_pipe=node.get("allow_pipe") is True and own))
        data = Data(**keywords(Data, node, "data")).open(access)
    except DataError as error:
        raise DataError(error.problem, f"{error.remedy} Say where the run's data is now: data.path=...") from error
    return data.split(value_of(began, "train", str))


def value_of(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return the value of a dotted key of a run's config, which is of this type. Raises ConfigError."""
    found: Any = config
    for name in key.split("."):
        if not isinstance(found, dict) or name not in found:
            raise ConfigError(f"The config of the run has no {key}.", "Put back a copy of its config.yaml files.")
        found = found[name]
    return fit(found, kind, key)


def plans_of(run: RunDir) -> tuple[list[EpochPlan], list[int]]:
    """Return the plan and the first step of every epoch that has started, up to the first epoch without a plan.

    The last plan of an epoch counts: the steps of an earlier one were never saved. Raises DataError.
    """
    path = run.plans
    rows = {row["epoch"]: row for row in jsonl.read(path) if whole(row, "epoch")}
    known = [rows[epoch] for epoch in itertools.takewhile(rows.__contains__, itertools.count())]
    try:
        plans = [EpochPlan(**{key: row[key] for key in row.keys() & EpochPlan.__dataclass_fields__}) for row in known]
    except TypeError as error:  # a field is missing
        raise DataError(f"{path} has a line that is no plan: {error}.", RESTORE) from error
    for row in known:
        counts = whole(row, "step") and whole(row, "lanes", 1) and whole(row, "batch_size", 1)
        if not counts or row["batch_size"] % row["lanes"]:
            raise DataError(f"{path} has an impossible plan of epoch {row['epoch'] + 1}.", RESTORE)
    return plans, [row["step"] for row in known]


def whole(row: Mapping[str, Any], key: str, least: int = 0) -> bool:
    """Return whether a value of a row is a whole number of at least `least`."""
    return type(row.get(key)) is int and least <= row[key] <= MOST_COUNT


def final_steps(run: RunDir) -> int:
    """Return the step of the newest checkpoint, 0 without one; a resume repeats all later steps."""
    return newest_step(run.checkpoints)


def audit(run: RunDir, split: Split) -> tuple[list[EpochAudit], list[str], dict[int, set[int]]]:
    """Return the audit of every epoch's samples, all other problems, and the shards that each attempt used.

    Raises DataError.
    """
    config, final = run.config, final_steps(run)
    plans, began = plans_of(run)
    seed, window = value_of(config, "seed", int), value_of(config, "window", int)
    if not (0 <= seed <= MOST_SEED and window >= 1):
        raise ConfigError(f"seed={seed} window={window} of the run's config are impossible.", "Put back a copy of it.")
    if any(plan.batch_size > len(split.samples) for plan in plans):
        raise DataError(f"{run.plans} has batches larger than the data set.", RESTORE)
    found = epochs(plans, split, seed, window)
    covered = found[-1].first_step + found[-1].steps if found else 0
    if covered < final:
        raise DataError(
            f"{run.plans} has no plan for the steps from {covered} to {final - 1}.",
            RESTORE,
        )
    if not final:
        return [], [], {}
    bad = [row for row in jsonl.read(run.quarantine) if row.get("split") == split.name]
    listed = {row["number"] for row in bad if whole(row, "number")}
    compared = Audit(ledger_reader.read(run.ledger), found, final, listed)
    problems = compared.unsaved() + [
        f"Epoch {epoch.plan.epoch + 1} began at step {step}, not {epoch.first_step}."
        for epoch, step in zip(found, began, strict=True)
        if step != epoch.first_step
    ]
    now = run.last_config()
    planned = all_epochs({"epochs": value_of(now, "epochs", int), "extend": fit(now.get("extend", []), list, "extend")})
    if run.outcome() == FINISHED and (final, len(found)) != (covered, planned):
        problems.append(f"The run has finished at step {final} of epoch {len(found)}, before its end.")
    return compared.tallies(), problems, compared.shards_used()


def contents(run: RunDir, split: Split, used: Mapping[int, AbstractSet[int]]) -> str:
    """Return a sentence on the attempts that have verified the contents of the shards that they used, by attempt."""
    found = vouched(run.ledger)
    local = {shard for folder, shards in split.runs if folder.local for shard in shards}
    verified = {
        number
        for number, shards in used.items()
        if number in found
        and found[number].how <= {IN_PLACE, CACHED}
        and (IN_PLACE not in found[number].how or local & shards <= found[number].shards)
    }
    if verified == used.keys():
        return "All shards that were read had the sha256 that the manifest says."
    others = sorted(used.keys() - verified)
    how = sorted({how for number in others if number in found for how in found[number].how - {IN_PLACE, CACHED}})
    how += [] if found.keys() >= {*others} else ["no record of it"]
    commands = [f"python shards/verify.py {shlex.quote(str(folder))}" for folder, _ in split.runs]
    named = f"attempt{'s' if len(others) > 1 else ''} {', '.join(map(str, others[:NUMBERS_SHOWN]))}"
    named += ", ..." if len(others) > NUMBERS_SHOWN else ""
    return (
        f"The contents of shards were not verified in {named} ({', '.join(how) or 'not all of them'}): "
        f"{' and '.join(commands)} verifies them as they are now."
    )


def table(tallies: list[EpochAudit]) -> Table:
    """Return the table of counts, one row per epoch."""
    shown = Table(*COLUMNS, box=None, header_style="", pad_edge=False)
    for column in shown.columns:
        column.justify = "right"
    for t in tallies:
        steps = str(t.steps) if t.steps == t.of_steps else f"{t.steps} of {t.of_steps}"
        counts = (t.used, t.replaced, t.dropped, len(t.lost), len(t.repeated), len(t.moved), t.unclear)
        shown.add_row(str(t.epoch + 1), steps, *map(str, counts))
    return shown


def details(tally: EpochAudit, split: Split) -> list[str]:
    """Return the problems of an epoch, one line each: wrong steps, then lost, repeated and moved samples with keys."""
    said = [f"epoch {tally.epoch + 1}, {note}" for note in tally.notes[:NOTES_SHOWN]]
    if len(tally.notes) > NOTES_SHOWN:
        said.append(f"epoch {tally.epoch + 1}: and {len(tally.notes) - NOTES_SHOWN} more such steps")
    for what, numbers in (("lost", tally.lost), ("repeated", tally.repeated), ("moved", tally.moved)):
        if numbers:
            shown = ", ".join(f"{n} ({split.samples.key(n)})" for n in numbers[:NUMBERS_SHOWN])
            rest = f" and {len(numbers) - NUMBERS_SHOWN} more" if len(numbers) > NUMBERS_SHOWN else ""
            said.append(f"epoch {tally.epoch + 1}, {what}: {shown}{rest}")
    return said


def of_sources(tallies: Sequence[EpochAudit], split: Split) -> Iterator[str]:
    """Yield the number of deliveries of every source of a mixture, and how far it is from its share."""
    if isinstance(split, MixedSplit):
        counts = [sum(own) for own in zip(*(tally.of_sources for tally in tallies), strict=True)]
        shares = asked(split, sum(counts))
        for number, (source, count, share) in enumerate(zip(split.sources, counts, shares, strict=True), start=1):
            passes = f"{count / source.samples:.2f} passes over its {plural(source.samples, 'sample')}"
            yield (
                f"source {number}, {source.folder}: {plural(count, 'sample')}, {count - share:+.2f} from its "
                f"share; {passes}"
            )


def report(run: RunDir, split: Split, console: Console) -> int:
    """Print the audit of a run; return the exit code."""
    tallies, problems, used = audit(run, split)
    final = final_steps(run)
    if run.outcome() != FINISHED:
        console.print(f"The run has not finished: the audit covers the {final} steps up to its newest checkpoint.")
    if not tallies:
        console.print("There is no checkpoint yet, so no step is final: nothing can be audited.")
        return EXIT_CODE
    console.print(table(tallies))
    for line in of_sources(tallies, split):
        console.print(line, highlight=False, markup=False)
    for line in [*problems, *(line for tally in tallies for line in details(tally, split))]:
        console.print(line)
    say(console, contents(run, split, used))
    clean = not problems and all(tally.clean for tally in tallies)
    console.print("Clean: nothing was lost or repeated." if clean else "NOT CLEAN: the lines above say where.")
    return 0 if clean else 1


def run(arguments: list[str], console: Console) -> int:
    """Audit the run that the arguments name; return the exit code. Raises UserError."""
    given = dict(known_pairs(arguments, KEYS))
    if not given.get("run"):
        raise ConfigError("No run is given.", "python launch/audit.py run=runs/NAME")
    found = RunDir.open(Path(given["run"]))
    return report(found, open_split(found, given.get("data.path")), console)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
