"""What documented commands are tried with: a folder that has what they name, and settings of tenths of a second."""

import itertools
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.checkpoint.folder_names import published
from launch import plan, slurm
from launch.export_targets import TARGETS
from shards import make
from shards.sources import demo
from tests import in_process
from tests.launch.test_export_targets import kept, saved_of

SIZES = ("batch_size=24", "lanes=24", "window=8", "log_every=1 step", "threads=1", "decode_threads=1", "cluster=local")
SHORT = (*SIZES, "epochs=1", "probe.bank=24", "probe.queries=12")
NO_WARMUP = {"schedule=accelerated", "schedule=one_cycle"}
"""Schedules that have none to be left out: an epoch is shorter than that of the others."""
RESNET = ("+encoder.channels=[4,4,8,8]", "+encoder.layers=[1,1,1,1]")
ENCODERS = {
    "encoder=resnet18": (*RESNET, "schedule.image_size=32", "probe.crop=32"),
    "encoder=resnet50": (*RESNET, "schedule.image_size=32", "probe.crop=32", "probe.resize=null"),
    "encoder=vit_small": ("encoder.depth=1", "encoder.width=48", "encoder.heads=3", "schedule.image_size=32"),
    "encoder=vit_small_dino": (
        *("+encoder.depth=1", "+encoder.embed_dim=48", "+encoder.num_heads=3"),
        *("schedule.image_size=32", "probe.crop=32", "probe.resize=null"),
    ),
}
"""What makes an encoder small."""
PLACES = {
    "s3://bucket/set": "data/set",
    "data/cifar10": "data/third",
    "https://host/folder": "data/mine",
    "data.path=https://host/set": "data.path=data/set",
    "data.manifest=data/index": "data.manifest=data/set",
    "s3://bucket/folder": "data/moved",
    "/shared/runs": "runs",
    "runs/emp": "runs/NAME",
    "runs/trial": "runs/NAME",
    "init=timm:resnet50": "init=resnet.safetensors",
    "train-{000..146}.tar": "train-{000000..000001}.tar",
    "data.pyramid=[160,256]": "data.pyramid=[16]",
    "schedule.patch_size=10": "schedule.patch_size=8",
    "train=50000": "train=12",
    "val=10000": "val=6",
    "FILE": "written",
}
"""What stands for a place that only a reader has: a server, a data set, weights that would be downloaded."""
PUBLISHED = r"\+recipe=(?!demo_|speedrun)"
ONLY_SHOWN = {
    r"slurm\.py.* cluster\.": "submits a job: Slurm's batch file is printed and nothing else",
    rf"slurm\.py.* {PUBLISHED}": "a published run needs its data set and days of GPUs",
    r"slurm\.py.* data=garments": "downloads Fashion-MNIST; tests/shards has what follows",
}
"""Commands of the launcher that are run with dry_run=true, and why."""


def reason_of(command: str, table: dict[str, str]) -> str:
    """Why a command is in a table of exceptions; empty where it is not."""
    return next((reason for pattern, reason in table.items() if re.search(pattern, command)), "")


def draw_pictures(folder: Path) -> None:
    """Pictures of two classes, in sub-folders."""
    for number in range(40):
        path = folder / ("cats", "dogs")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 36 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def export_a_transformer() -> None:
    """A folder of transformers and a file of ONNX, by the names that documents give them."""
    saved = saved_of("own transformer")
    for library, name in (("huggingface", "FOLDER"), ("onnx", "FILE.onnx")):
        problem, _ = kept(saved, TARGETS[library](saved), Path(name))
        assert not problem


def launched(*words: str, code: int = 0) -> None:
    assert slurm.main(list(words)) == code


def train_what_commands_name() -> None:
    """Runs NAME and OTHER, which have finished, and STOPPED; files of weights."""
    with pytest.MonkeyPatch.context() as patch:
        in_process.here(patch)
        data = ("data=shards", "data.path=data/mine", "data.val=val")
        small = (*SHORT, "schedule.warmup=null", *data, "nodes=1", "method=mocov3", "method.hidden=16", "method.dim=8")
        resnet = ("encoder=resnet50", *ENCODERS["encoder=resnet50"])
        launched(*small, *resnet, "name=NAME")
        launched(*small, "name=OTHER", "encoder.width=4", "schedule.image_size=16")
        in_process.here(patch, in_process.AttemptCutShort)
        stopped = ("name=STOPPED", "epochs=2", "lanes=24", "engine.bitwise=true", "engine.virtual_ranks=8")
        launched(*small, *stopped, "encoder.width=4", "schedule.image_size=16", code=75)
    shutil.copy("runs/NAME/encoder.safetensors", "resnet.safetensors")


def write_transformer(path: Path) -> None:
    """Weights by timm's names of the transformer that `encoder=vit_small_dino` is with our small settings."""
    import timm
    from safetensors.torch import save_model

    model = timm.create_model("vit_small_patch16_224", depth=1, embed_dim=48, num_heads=3, num_classes=0)
    save_model(model, str(path))


def fill_folder() -> None:
    """Write what commands name into the current folder."""
    draw_pictures(Path("pictures"))
    for name in ("a", "b"):
        shutil.copy("pictures/cats/0.jpg", f"{name}.jpg")
    for number, name in enumerate(("mine", "set", "third")):
        options = demo.DemoOptions(train=60 + 12 * number, val=20, shard_bytes=20000)
        make.make("demo", Path("data") / name, Console(quiet=True), options)
    shutil.copytree("data/mine", "data/moved")
    Path("data/tars").mkdir()
    for name in ("train-000000", "train-000001", "val-000000"):
        shutil.copy(f"data/mine/{name}.tar", "data/tars")
    write_transformer(Path("weights.safetensors"))
    assert make.main(["out=data/mine", "pyramid=[16]"]) == 0
    train_what_commands_name()
    assert plan.main([*SHORT, "schedule=accelerated", "steps=1", "data.path=data/mine", "data.source=null"]) == 0


NUMBERS = itertools.count(1)


def in_this_folder(words: list[str], fresh: bool = True) -> list[str]:
    """The words with places of the folder; what a command writes has a new name each time."""
    step = max(published(Path("runs/NAME/checkpoints")))
    found = []
    for word in words:
        for there, here in PLACES.items():
            word = re.sub(rf"(?<![\w/]){re.escape(there)}(?![\w/])", here, word)
        word = word.replace("@12000", f"@{step}").replace("step_00012000", f"step_{step:08d}")
        if fresh and word.startswith(("out=", "name=")):
            key, _, value = word.partition("=")
            word = f"{key}={Path(value).with_stem(f'{Path(value).stem}_{next(NUMBERS)}')}"
        found.append(word)
    return found


def of_the_launcher(command: str, words: list[str]) -> list[str]:
    """The words of a start, a resume or a fork, with small settings."""
    if resumed := next((word for word in words if word.startswith("resume=")), None):
        if any(word.startswith("extend=") for word in words):
            return [copied("NAME"), "extend=1 epoch"]
        return [copied("STOPPED"), "cluster=local", *(word for word in words if word != resumed)]
    if any(word.startswith("fork=") for word in words):
        return [*words, "epochs=2", "optim.base_lr=1e-4", "cluster=local", f"name=fork_{next(NUMBERS)}"]
    if reason_of(f"slurm.py {shlex.join(words)}", ONLY_SHOWN) or "dry_run=true" in words:
        return [*words, *(["dry_run=true"] if "dry_run=true" not in words else [])]
    return [*words, *small_settings(words), *([] if named(words) else [f"name=run_{next(NUMBERS)}"])]


def named(words: list[str]) -> bool:
    """Whether the run, or those of a sweep, have names already."""
    return "-m" in words or any(word.startswith("name=") for word in words)


def small_settings(words: list[str]) -> list[str]:
    """Settings with which a run, or its plan, takes tenths of a second."""
    keys = {word.partition("=")[0] for word in words}
    encoder = next((own for word, own in ENCODERS.items() if word in words), None)
    tiny = ["schedule.image_size=16"] + ([] if keys & {"+recipe", "data"} else ["encoder.width=4"])
    width = ["method.hidden=16", "method.dim=8"] if "+recipe=demo_emp_ssl" not in words else []
    warmup = [] if NO_WARMUP & set(words) else ["schedule.warmup=null"]
    data = [] if "data.path" in keys else ["data.path=data/mine"]
    crop = ["probe.resize=null"] if encoder and "data" not in keys else []
    drawn = [] if "data" in keys else ["data.source=null"]
    if "schedule=trapezoid" in words:
        warmup += ["epochs=2", "schedule.anneal=1 epoch"]
    return [*SHORT, *warmup, *width, *(encoder or tiny), *dict.fromkeys(crop), *data, *drawn]


def copied(name: str) -> str:
    """The word that resumes a new copy of a run."""
    copy = f"runs/{name}_{next(NUMBERS)}"
    shutil.copytree(f"runs/{name}", copy)
    return f"resume={copy}"


def small(script: str, command: str, words: list[str]) -> list[str]:
    """The words of a command in this folder, with small settings."""
    words = in_this_folder(words)
    if script == "launch/slurm.py":
        return of_the_launcher(command, words)
    if script == "launch/plan.py":
        steps = [] if any(word.startswith(("steps=", "measured=")) for word in words) else ["steps=1"]
        return [*words, *small_settings(words), *steps, f"out=plan_{next(NUMBERS)}.png"]
    if script == "launch/evaluate.py":
        few = ["queries=12"] if "protocol=unlabelled" in words else ["bank=24", "queries=12"]
        asked = ("bank=", "queries=")
        return [re.sub("patches=16", "patches=2", word) for word in words if not word.startswith(asked)] + few
    if script == "launch/finetune.py":
        return [*words, "epochs=1", "batch=6", "workers=0", "device=cpu"]
    if script == "shards/make.py" and "pyramid=[160,256]" in words:
        return ["pyramid=[16,24]" if word == "pyramid=[160,256]" else word for word in fresh_set(words)]
    if script == "shards/show.py":
        return [word.replace("level=160", "level=16") for word in words]
    return words


def fresh_set(words: list[str]) -> list[str]:
    """The words with which levels are added to a new copy of a data set, where no source is named."""
    if any(word.startswith("source=") for word in words):
        return words
    copy = next(word.removeprefix("out=") for word in words if word.startswith("out="))
    shutil.copytree("data/third", copy)
    return words
