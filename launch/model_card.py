"""The model card of an exported encoder: how it was trained, on what, how well it does, how it is loaded and used."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import xxhash
import yaml

from dist_ssl.config.bounds import RGB
from dist_ssl.data.images.deep_rows import FULL
from dist_ssl.data.images.image_rules import counted
from dist_ssl.errors import plural
from dist_ssl.evaluate.confidence import shown_interval
from dist_ssl.metrics.sinks import read_reports
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.strange_files import writable
from dist_ssl.saved_encoder import SavedEncoder
from launch.evaluation import OF_QUERIES
from launch.handover import files
from launch.hub_weights import PREFIX
from launch.run_dir import RunDir
from launch.run_files import read_report
from launch.settings import PLACES
from launch.source_commit import SOURCE, UNKNOWN

RECIPE = (
    *("method", "aux", "encoder", "epochs", "extend", "batch_size", "optim", "schedule", "views"),
    *("seed", "precision", "init_sha256"),
)
"""Keys of the config that say how the encoder was trained."""

OF_IMAGES = ("mean_average_precision", "mean_similarity", "same_class", "effective_rank", "uniformity", "alignment")
"""Other numbers that are measured on the images that were asked for; no interval follows from their count."""
MOST_IMAGES = 10**12
"""Images that a report may name; more is no count."""


def card(run: RunDir, saved: SavedEncoder, lines: Sequence[str], checked: str) -> str:
    """Return the text of the card. `lines`: of Python that load the file; `checked`: what its check has found."""
    own, config = saved.description, run.config
    code = "\n".join(lines)
    colours = "RGB" if own.rules.channels == RGB else counted(own.rules.channels)
    white = 255 if own.bits == 8 else FULL
    images = f"shorter side {own.resize} px, centre {own.crop} px, {colours} / {white}, mean {own.mean}, std {own.std}"
    numbers = "\n".join(f"| {name} | {value} |" for name, value in measured(run, own.step, own.branch))
    text = f"""# {own.run}: {own.method}, {own.branch}, step {own.step}

Features [N, {saved.num_features}] of images: {images}.

```python
{code}
```

Checked when it was exported: {checked}

| measured at this step | |
|---|---|
{numbers or "| nothing yet | |"}

| | |
|---|---|
| data | {split_of(config)}, identity {own.data} |
| command | `{command_of(run)}` |
| code | {revision(run)} |

```yaml
{recipe(config)}```
"""
    return writable(text)


def recipe(config: Mapping[str, Any]) -> str:
    """Return the keys of the config that say how the encoder was trained, as YAML."""
    return yaml.safe_dump({key: config[key] for key in RECIPE if key in config}, sort_keys=False)


def measured(run: RunDir, step: int, branch: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of what was measured of a branch at a step: by the run's probe, by evaluations."""
    probe = run.last_config().get("probe")
    probed = isinstance(probe, dict) and probe.get("branch") == branch
    last: dict[str, Any] = {}
    for report in read_reports(run.metrics):
        last |= report if report["step"] == step and probed else {}
    images = (read_report(run.status) or {}).get("queries")
    yield from ((f"run: {key}", shown(key, last[key], images)) for key in ("knn_accuracy", "loss") if key in last)
    for row in jsonl.read(run.evaluations):
        if (row.get("step"), row.get("branch")) == (step, branch):
            kept = {key: value for key, value in row.items() if isinstance(value, float) and key != "time"}
            own = row.get("queries")
            yield from ((f"{row.get('protocol')}: {key}", shown(key, value, own)) for key, value in kept.items())


def shown(key: str, value: float, images: object) -> str:
    """Return a number with that of the images that it is from, and the confidence interval of an accuracy."""
    kind = key.partition(" ")[0]
    if type(images) is not int or not 0 < images < MOST_IMAGES or kind not in (*OF_QUERIES, *OF_IMAGES):
        return f"{value:.4g}"
    own = f" {shown_interval(value, images)}" if kind in OF_QUERIES and 0 <= value <= 1 else ""
    return f"{value:.4g} of {plural(images, 'image')}{own}"


def command_of(run: RunDir) -> str:
    """Return the keys that the run was started with, quoted for a shell, without places on the machine where it ran.

    A place may also be added, as `++data.path=...`, or stand in a group, as `data={path: ...}`.
    """
    return shlex.join(word for word in run.overrides if not _of_a_place(word))


def _of_a_place(override: str) -> bool:
    key, _, value = override.lstrip("+~").partition("=")
    if key == "init" and value.startswith(PREFIX):
        return False
    inside = value.lstrip("'\" ").startswith("{") and any(place.startswith(f"{key}.") for place in PLACES)
    return key in PLACES or inside


def split_of(config: Mapping[str, Any]) -> str:
    """Return the last part of the data's path, of each place that it names, and the split that was trained on."""
    path, weights = config["data"]["path"], config["data"].get("weights")
    places = path if isinstance(path, list) else [path]
    names = " and ".join(str(place).rstrip("/").rpartition("/")[2] for place in places)
    shares = f", weights {', '.join(map(str, weights))}" if weights else ""
    return f"{names}{shares}, split {config['data']['train']}"


def revision(run: RunDir) -> str:
    """Return the version of the package, the commit, and a hash of the code that the run has in its folder."""
    try:
        released = version("dist_ssl")
    except PackageNotFoundError:
        released = "unknown"
    content = xxhash.xxh3_128()
    for place, data in sorted(files(run.code).items()):
        content.update(str(place).encode() + b"\0" + data)
    source = {**UNKNOWN, **(read_report(run.folder / SOURCE) or {})}
    changed = f" with {len(source['changed'])} files changed" if source["changed"] else ""
    commit = f", commit {source['commit']}{changed}" if source["commit"] else ""
    return f"dist_ssl {released}{commit}, xxh3 {content.hexdigest()}"
