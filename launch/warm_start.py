"""A run that starts from existing weights: `init=timm:NAME`, `init=FILE.safetensors` or `init=runs/NAME`.

The launcher reads the weights once, gives them the encoder's names, and writes them into the run folder; their hash is
part of the config. They must fill the whole encoder, or the run is refused with the names of all tensors that do not
match. Only safetensors and our own checkpoints are read: nothing is unpickled.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dist_ssl.config.command import say
from dist_ssl.config.encoder_node import make_encoder
from dist_ssl.config.instantiate import SHOWN, defaults_of, resolve
from dist_ssl.config.meta_device import on_meta_device
from dist_ssl.errors import ConfigError, DataError, reason_of
from dist_ssl.models.size_bound import no_larger_than
from dist_ssl.runtime.strange_files import parsed_object, read_regular
from dist_ssl.saved_encoder import KEY, Description, description_of
from launch import hub_weights, trust
from launch.checkpoint_encoder import FINETUNED, of_checkpoint
from launch.evaluation import checkpoint_of
from launch.export_target import TIMM
from launch.run_dir import RunDir, of_a_run
from launch.weight_match import Match, heads_of, match
from launch.weight_names import in_timm_names
from shards.command_line import parse_path

MOST_BYTES = 1 << 36
"""Bytes of a file of weights, at most: 64 GiB."""
LIBRARY_CONFIG, MOST_CONFIG, MOST_LAYERS = "config.json", 1 << 20, 10_000
"""File beside weights in a folder of transformers or timm, its bytes, and blocks of a transformer, at most."""
SAME_HEADS = {"img_size", "dynamic_img_size", "num_classes", "global_pool", "drop_path_rate", "drop_rate"}
"""Arguments of timm's networks that change no attention."""
WORD = re.compile(" (?=encoder[.])")
"""Between two keys of an encoder."""
HARMLESS = (
    *("zero_init_last", "frozen_patches", "drop_path_rate", "dynamic_img_size", "img_size"),
    *("patch", "patch_size"),
)
"""Keys of encoders with which weights compute the same, and sizes, of which the match speaks."""
WAYS = "Write init=timm:NAME, init=FILE.safetensors or init=runs/NAME."


@dataclass(frozen=True)
class WeightSource:
    """Weights by the names of their library, and what is known of the encoder that they are of."""

    origin: str
    """The file or checkpoint, for people."""
    tensors: Mapping[str, Tensor]
    encoder: str = ""
    """The keys that describe it; empty where they are unknown."""
    heads: list[int] = field(default_factory=list)
    """Number of heads of every attention; empty where it is unknown."""
    colours: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation by which its images were normalised; None where they are unknown."""
    finetuned: str = ""
    """The training with labels that followed the pre-training, for people; empty where none is known."""
    note: str = ""
    """A sentence about what they were trained with, where it may differ from the encoder."""
    convert: str = ""
    """How to get the same weights by timm's names, in case these have others; empty where it is unknown."""


def initial_weights(config: dict[str, Any], trusted: bool, console: Console) -> bytes | None:
    """Return the content of the file with a run's initial weights, None without any; write its hash into the config.

    `trusted`: also from the run folder of somebody else. Prints what matches. Raises UserError where not all does.
    """
    init, expected = config["init"], config["init_sha256"]
    if init is None:
        if expected is not None:
            raise ConfigError(f"init_sha256={expected} has no effect without init.", WAYS)
        return None
    source = source_of(init, trusted)
    with on_meta_device():
        encoder = make_encoder(config["encoder"], len(config["data"]["mean"]))
    names, library = in_timm_names(source.tensors)
    found = match(encoder, names)
    refuse_other(init, source, found, encoder, str(config["encoder"].get("name")))
    mark = {FINETUNED: source.finetuned} if source.finetuned else {}
    content = save(found.weights, {"format": "pt", **mark})
    config["init_sha256"] = own = hashlib.sha256(content).hexdigest()
    if expected not in (None, own):
        raise ConfigError(
            f"init={init} has init_sha256={own}, not {expected}: they are other weights.",
            "Name the weights that have this hash, or leave init_sha256 out.",
        )
    of_another = "" if library == "timm" else f" by the names of {library}"
    say(console, f"init={init}: {found.count} of {source.origin}{of_another}, sha256 {own[:12]}.")
    notes = [*found.notes, *_of_head(found), *of_function(source, encoder, config["encoder"]), *_of_labels(source)]
    for line in [*notes, *_of_colours(source, config["data"])]:
        say(console, f"  {line}")
    return content


def refuse_other(init: str, source: WeightSource, found: Match, encoder: nn.Module, name: str) -> None:
    """Raise ConfigError where the weights are not those of such an encoder; it names every tensor that differs.

    `name`: that of the encoder in timm, if it has one.
    """
    hint = f" These are weights of {source.encoder}." if source.encoder else ""
    remedy = f"Choose the encoder that the weights are of: encoder=...{hint}"
    if problems := found.problems:
        lines = "".join(f"\n  {line}" for line in problems)
        of_other_names = found.missing and source.convert and source.encoder == f"encoder.name={name}"
        raise ConfigError(
            f"init={init} does not fit the encoder: {found.count} of {source.origin}.{lines}",
            source.convert if of_other_names else remedy,
        )
    own = heads_of(encoder)
    if source.heads and source.heads != own:
        shown = [", ".join(map(str, sorted(set(heads)))) or "no" for heads in (source.heads, own)]
        raise ConfigError(
            f"init={init} does not fit the encoder: its attention has {shown[0]} heads, the encoder's {shown[1]}, and "
            "the same weights would compute something else.",
            remedy,
        )


def of_function(source: WeightSource, encoder: nn.Module, node: Mapping[str, Any]) -> list[str]:
    """Return lines about what no shape of a tensor shows, and with which the same weights compute something else.

    `node`: the config of the encoder.
    """
    lines = [source.note] if source.note else []
    if (own := heads_of(encoder)) and not source.heads:
        counts = ", ".join(map(str, sorted(set(own))))
        lines.append(f"With how many heads they were trained is not known; the encoder has {counts}.")
    if not source.encoder:
        return lines
    given = dict(word.removeprefix("encoder.").partition("=")[::2] for word in WORD.split(source.encoder))
    theirs, ours = written_out({"_target_": TIMM, **given}), written_out(node)
    if differing := [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key) and key not in HARMLESS]:
        shown = [" ".join(f"encoder.{key}={one.get(key)}" for key in differing) for one in (theirs, ours)]
        lines.append(
            f"They are of an encoder with {shown[0]}, here it has {shown[1]}: check that it computes the same."
        )
    return lines


def written_out(node: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of an encoder's keys as texts, also of those that are left out."""
    whole = {**defaults_of(resolve(node["_target_"], "encoder._target_")), **node}
    return {key: text_of(value) for key, value in whole.items()}


def text_of(value: Any) -> str:
    """Return a value as a text, which is the same for 4, 4.0 and "4"."""
    try:
        return str(value) if isinstance(value, bool) else f"{float(value):g}"
    except (TypeError, ValueError):
        return str(value)


def _of_head(found: Match) -> list[str]:
    return [f"Left out, as no part of the encoder: {', '.join(found.head)}."] if found.head else []


def _of_labels(source: WeightSource) -> list[str]:
    return [f"They were fine-tuned with labels: {source.finetuned}."] if source.finetuned else []


def _of_colours(source: WeightSource, data: Mapping[str, Any]) -> list[str]:
    """Return a line where the weights have seen images that were normalised otherwise than those of the run."""
    own = (tuple(data["mean"]), tuple(data["std"]))
    if source.colours in (None, own):
        return []
    assert source.colours is not None
    mean, std = (",".join(f"{value:g}" for value in values) for values in source.colours)
    return [f"They have seen images normalised by data.mean=[{mean}] data.std=[{std}], unlike those of this run."]


def source_of(init: str, trusted: bool) -> WeightSource:
    """Return the weights that `init` names. Raises UserError."""
    if init.startswith(hub_weights.PREFIX):
        hub = hub_weights.of_timm(init.removeprefix(hub_weights.PREFIX))
        source = of_file(hub.file)
        source = replace(source, origin=hub.origin, convert=hub.convert)
        return replace(source, encoder=hub.encoder, heads=hub.heads, colours=hub.colours)
    path = parse_path(init, "init")
    if not init or not path.exists():
        raise ConfigError(f"init={init} is neither a file nor a run folder.", WAYS)
    if not path.is_dir():
        return of_file(path)
    file = path / hub_weights.FILE
    return of_file(file) if file.exists() and not of_a_run(path / "config.yaml") else of_run(path, trusted)


def of_file(path: Path) -> WeightSource:
    """Return the weights in a safetensors file. Raises DataError; ConfigError where its description is impossible."""
    try:
        content = read_regular(path, min(path.stat().st_size, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {reason_of(error)}.", "Name another file: init=FILE.safetensors"
        ) from error
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{path} is no whole safetensors file: {error}. Other kinds of files are not read, since reading a pickle "
            "executes what is in it.",
            "Convert weights that you trust, once: safetensors.torch.save_file(torch.load('x.pth', weights_only=True), "
            "'x.safetensors')",
        ) from error
    own = description_in(content, str(path))
    source = WeightSource(str(path), tensors, finetuned=str(metadata_in(content).get(FINETUNED, "")))
    return described(source, own) if own or path.name != hub_weights.FILE else of_library(source, path.parent)


def of_library(source: WeightSource, folder: Path) -> WeightSource:
    """Return a source with what the library's configuration says, beside the file in a folder of the hub's form."""
    try:
        said = parsed_object(read_regular(folder / LIBRARY_CONFIG, MOST_CONFIG)) or {}
    except (OSError, ValueError):
        return source
    if isinstance(name := said.get("architecture"), str):  # timm's
        changed = said.get("model_args") or {}
        heads_known = isinstance(changed, dict) and changed.keys() <= SAME_HEADS
        return replace(
            source, encoder=f"encoder.name={name}", heads=hub_weights.heads_of_timm(name) if heads_known else []
        )
    heads, layers, activation = (said.get(key) for key in ("num_attention_heads", "num_hidden_layers", "hidden_act"))
    if not (type(heads) is int and type(layers) is int and 0 < layers <= MOST_LAYERS):
        return source
    note = "" if activation in (None, "gelu") else f"They were trained with the activation {SHOWN.repr(activation)}."
    return replace(source, heads=[heads] * layers, note=note)


def description_in(content: bytes, origin: str) -> Description | None:
    """Return the description of the encoder in a safetensors file of ours, None in another. Raises UserError."""
    metadata = metadata_in(content)
    return description_of(parsed_object(metadata[KEY]), origin) if KEY in metadata else None


def metadata_in(content: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file, empty without any."""
    header = parsed_object(content[8 : 8 + int.from_bytes(content[:8], "little")]) or {}
    found = header.get("__metadata__")
    return found if isinstance(found, dict) else {}


def described(source: WeightSource, own: Description | None) -> WeightSource:
    """Return a source with what its description says. Raises ConfigError where it describes no encoder.

    Raises CheckpointError where it describes one that is much larger than the source.
    """
    if own is None:
        return source
    with no_larger_than(source.tensors, own.encoder, source.origin), on_meta_device():
        heads = heads_of(make_encoder(own.encoder, len(own.mean)))
    tensors = source.tensors
    if own.extra_layer is not None:  # EMP-SSL's, beside the encoder
        tensors = {name.removeprefix("encoder."): x for name, x in tensors.items()}
    words = " ".join(f"encoder.{key}={value}" for key, value in own.encoder.items())
    return replace(
        source, tensors=tensors, encoder=words, heads=heads, colours=(own.mean, own.std), finetuned=own.finetuned or ""
    )


def of_run(folder: Path, trusted: bool) -> WeightSource:
    """Return the encoder of a run's newest checkpoint, of the branch that its probe measures. Raises UserError."""
    run = RunDir.open(folder)
    trust.check_weights(run, trusted)
    checkpoint = checkpoint_of(run, "latest")
    config = {**run.config, "probe": run.last_config()["probe"]}
    saved = of_checkpoint(config, run.folder.resolve().name, checkpoint)
    origin = f"{checkpoint.name}, {saved.description.branch}"
    return described(WeightSource(origin, saved.tensors()), saved.description)
