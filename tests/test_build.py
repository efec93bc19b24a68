"""What cannot be trained is refused before anything is started: the value, the rule and the remedy."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_ssl.build
from dist_ssl.build import check, memory_estimate
from dist_ssl.config.percentage import Share
from dist_ssl.config.precision import PRECISIONS
from dist_ssl.config.run_keys import PRECISION_NAMES
from dist_ssl.core.plan import Curve, EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.data.data_keys import Data
from dist_ssl.data.storage import manifest
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, DataError, UserError
from dist_ssl.evaluate.knn import NoProbe
from dist_ssl.methods.byol import BYOL
from dist_ssl.parts import parts
from dist_ssl.train import train
from launch import settings
from launch.run_dir import PROJECT
from tests.jobs import run_job, same_bits, small_config, small_job
from tests.web import serving

HELD = ("batch_size=12", "lanes=12", "threads=1", "decode_threads=1", "data.source=null")


def config(shards: Path, *words: str) -> dict[str, Any]:
    """A config that the small shards can be trained with; `words` spoil it."""
    return settings.compose([*HELD, f"data.path={shards}", *words], PROJECT / "configs")


def test_a_check_tells_the_datas_identity(demo_shards: Path) -> None:
    assert check(config(demo_shards), ranks=4) == manifest.read(demo_shards).identity


def test_a_run_goes_on_with_the_data_it_began_with(demo_shards: Path) -> None:
    identity = manifest.read(demo_shards).identity
    assert check(config(demo_shards, f"data.identity={identity}"), ranks=1) == identity


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_every_divisor_of_the_lanes_is_a_number_of_ranks(demo_shards: Path, ranks: int) -> None:
    check(config(demo_shards), ranks)


@pytest.mark.parametrize(
    "group",
    [
        *("method", "aux", "encoder", "optim", "views", "schedule", "difficulty", "engine", "probe", "metrics"),
        "tracker",
    ],
)
def test_every_option_of_the_config_tree_can_be_built(demo_shards: Path, group: str) -> None:
    for path in sorted((PROJECT / "configs" / group).glob("*.yaml")):
        check(config(demo_shards, f"{group}={path.stem}", "schedule.image_size=32"), ranks=1)


def test_a_split_without_labels_cannot_be_probed(demo_shards: Path, tmp_path: Path) -> None:
    known = manifest.read(demo_shards)
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    rows = {name: (list(split.shards), split.samples) for name, split in known.splits.items()}
    assert not isinstance(small_job(World(), small_config(folder), tmp_path / "labelled").probe, NoProbe)
    shards, samples = rows["val"]
    rows["val"] = (shards, replace(samples, labels=np.full_like(samples.labels, -1)))
    manifest.write(folder, rows)
    assert isinstance(small_job(World(), small_config(folder), tmp_path / "unlabelled").probe, NoProbe)


REFUSED = {
    "lanes that ranks cannot share": ((), 5, "5 ranks cannot share lanes=12", "1, 2, 3, 4, 6, 12"),
    "no lanes": (("lanes=0",), 1, "lanes=0", "lanes=48"),
    "a batch that is no multiple": (("batch_size=40",), 1, "batch_size=40 is no multiple of lanes=12", "batch_size=36"),
    "images without pixels": (("data.max_pixels=0",), 1, "data.max_pixels=0", "Leave it out"),
    "no range": (("data.range=0",), 1, "data.range=0", "data.range=4095"),
    "no white of a channel": (("data.range=[1,0,3]",), 1, "data.range=[1,0,3] is not possible", "data.range=4095"),
    "whites of other channels": (
        ("data.range=[1,2]",),
        1,
        "data.range=[1,2] is of 2 channels",
        "white of each channel",
    ),
    "a text as white": (("data.range=bright",), 1, "data.range='bright' is not possible", "Correct the value"),
    "no background": (("data.alpha=grey",), 1, "data.alpha='grey'", "white"),
    "bytes without a unit": (("data.ahead_bytes=64000000",), 1, "data.ahead_bytes=64000000 is not a size", "256MB"),
    "candidates of one view": (
        ("method=single_branch", "schedule.candidates=4"),
        1,
        "schedule.candidates=4 is not possible with this method",
        "mocov3, simclr or byol",
    ),
    "no candidates": (("schedule.candidates=0",), 1, "schedule.candidates=0", "schedule.candidates=4"),
    "candidates from the end on": (("schedule.candidates_from=1",), 1, "schedule.candidates_from=1", "Correct it"),
    "no batch": (("batch_size=0",), 1, "batch_size=0", "batch_size=12"),
    "a batch larger than the data": (("batch_size=72",), 1, "batch_size=72 is more than the 60 samples", "smaller"),
    "parts that the samples cannot be cut into": (
        ("engine.accumulate=5",),
        1,
        "engine.accumulate=5 does not divide the 12 samples of a rank",
        "1, 2, 3, 4, 6, 12",
    ),
    "a norm group that splits ranks": (("method.norm_group=8",), 2, "method.norm_group=8 does not fit", "2, 3, 6, 12."),
    "a norm group that other ranks have room for": (
        ("method.norm_group=4",),
        2,
        "method.norm_group=4 does not fit the 6 samples",
        "keeps its groups: resume it on 1, 3, 6 or 12 ranks.",
    ),
    "a norm group that other ranks have room for in parts": (
        ("method.norm_group=3", "engine.accumulate=2"),
        3,
        "method.norm_group=3 does not fit the 2 samples",
        "resume it on 1 or 2 ranks.",
    ),
    "a norm group of the task that splits ranks": (
        ("aux=rotation", "aux.norm_group=8"),
        2,
        "aux.norm_group=8 does not fit",
        "2, 3, 6, 12",
    ),
    "a norm group larger than a part": (
        ("method.norm_group=6", "engine.accumulate=4"),
        1,
        "method.norm_group=6 does not fit the 3 samples",
        "of these: 3.",
    ),
    "parts of one sample and norm groups": (
        ("method.norm_group=4", "engine.accumulate=12"),
        1,
        "method.norm_group=4 does not fit the 1 sample",
        "Use a smaller engine.accumulate than 12",
    ),
    "looking ahead without momentum": (
        ("optim=sgd", "optim.momentum=0", "optim.nesterov=true"),
        1,
        "optim.nesterov=true",
        "optim.nesterov=false",
    ),
    "a precision that does not exist": (("precision=fp8",), 1, "precision=fp8", "bf16, fp32, fp64, tf32"),
    "an average that never moves": (("ema=1",), 1, "ema=1 is not possible", "ema=0.999"),
    "an average that is not kept": (("probe.branch=ema",), 1, "probe.branch=ema is not possible", "ema=0.999"),
    "a word for a number": (("batch_size=many",), 1, "batch_size='many'", "int"),
    "a fraction for a count": (("seed=1.5",), 1, "seed=1.5", "int"),
    "yes for a count": (("lanes=true",), 1, "lanes=True", "int"),
    "nothing for a count": (("epochs=null",), 1, "epochs=None", "int"),
    "a word deep inside": (("views.view1.hue=red",), 1, "views.view1.hue='red'", "float"),
    "images of three channels": (
        ("data.mean=[0.5]", "data.std=[0.2]"),
        1,
        "data.mean=[0.5] has 1 number: the images in",
        "Set data.mean and data.std to 3 numbers each",
    ),
    "too few channels": (("data.mean=[0.5,0.5]",), 1, "data.mean=[0.5, 0.5]", "as many numbers as"),
    "a duration without a unit": (("save_every=30",), 1, "'30' is not a duration", "30 seconds"),
    "a warm-up by the clock": (("schedule.warmup=5 minutes",), 1, "schedule.warmup", "epochs or steps"),
    "a freeze by the clock": (
        ("method=swav", "method.freeze_prototypes=1 hour"),
        1,
        "method.freeze_prototypes is timed",
        "epochs or steps",
    ),
    "a teacher warmed up by the clock": (
        ("method=dino", "method.teacher_warmup=1 minute"),
        1,
        "method.teacher_warmup is timed",
        "epochs or steps",
    ),
    "a warm-up as long as the run": (("schedule.warmup=24 epochs",), 1, "schedule.warmup=24 epochs", "shorten"),
    "a key that the class does not have": (("+method.hiden=3",), 1, "method.hiden", "hidden"),
    "a key that nothing reads": (("+epoch=5",), 1, "epoch", "epochs"),
    "a key of a view that does not exist": (("+views.view1.blurp=1",), 1, "views.view1.blurp", "blur_p"),
    "a class outside": (("method._target_=os.system",), 1, "method._target_=os.system is outside", "defined there"),
    "a class that is not there": (
        ("optim._target_=dist_ssl.optim.Adam",),
        1,
        "optim._target_=dist_ssl.optim.Adam",
        "",
    ),
    "a module that is not there": (
        ("encoder._target_=dist_ssl.models.nets.A",),
        1,
        "encoder._target_=dist_ssl.models.nets.A",
        "",
    ),
    "no class": (("~encoder._target_",), 1, "encoder._target_", ""),
    "a number that the run gives": (("+schedule.batch_size=24",), 1, "schedule.batch_size", ""),
    "no checkpoints": (("keep_last=0",), 1, "keep_last=0", ""),
    "no window": (("window=0",), 1, "window=0", ""),
    "no epochs": (("epochs=0",), 1, "", "epochs"),
    "a seed below 0": (("seed=-1",), 1, "seed=-1", ""),
    "a clip that is no number": (("engine.clip=much",), 1, "engine.clip='much'", "float"),
    "a clip that turns gradients round": (("engine.clip=-1",), 1, "engine.clip=-1 is not possible", "more than 0"),
    "a number for the name of a part": (("optim.constant=[1]",), 1, "optim.constant=1 is not possible", "str"),
    "an engine outside": (("engine._target_=os.system",), 1, "engine._target_=os.system", "defined there"),
    "a key that the engine does not have": (("+engine.clipp=1",), 1, "engine.clipp", "clip"),
    "views that patches do not cover": (("encoder=vit_small",), 1, "schedule.image_size=20", "16, say"),
    "a full size that patches do not cover": (
        ("encoder=vit_tiny_demo", "schedule=progressive", "schedule.image_size=21"),
        1,
        "schedule.image_size=21 does not fit the encoder",
        "20, say",
    ),
    "local views that patches do not cover": (
        ("encoder=vit_tiny_demo", "method=dino", "method.local_views=2", "schedule.local_size=10", "views=demo_crops"),
        1,
        "schedule.local_size=10",
        "multiple of 4",
    ),
    "local views that nothing is cut by": (
        ("method=swav", "method.local_views=2"),
        1,
        "No part of views is for the 2 local views",
        "views=demo_crops",
    ),
    "local views of no side": (
        ("method=swav", "method.local_views=2", "schedule.local_size=null", "views=demo_crops"),
        1,
        "schedule.local_size=null",
        "schedule.local_size=96",
    ),
    "only local views": (
        ("+views.view1.local=true", "+views.view2.local=true"),
        1,
        "No part of views is for the 2 global views",
        "without local",
    ),
    "tokens of an encoder that has none": (
        ("schedule.keep_tokens=0.5",),
        1,
        "with this encoder, TinyResNet",
        "vit_small",
    ),
    "patches of an encoder that has none": (("schedule.patch_size=4",), 1, "schedule.patch_size=4", "patch_size."),
    "no tokens at all": (("encoder=vit_tiny_demo", "schedule.keep_tokens=0"), 1, "schedule.keep_tokens=0", "0.5, say"),
    "a share that leaves no token": (
        ("encoder=vit_tiny_demo", "schedule.keep_tokens=0.01"),
        1,
        "schedule.keep_tokens=0.01 keeps none of the 25 tokens of schedule.image_size=20",
        "schedule.keep_tokens=0.04",
    ),
    "patches that views are no multiple of": (
        ("encoder=vit_tiny_demo", "schedule.patch_size=8"),
        1,
        "schedule.image_size=20 does not fit schedule.patch_size=8",
        "multiple of 8",
    ),
    "patches that local views are no multiple of": (
        ("encoder=vit_tiny_demo", "method=dino", "method.local_views=2", "views=demo_crops", "schedule.patch_size=10"),
        1,
        "schedule.local_size=12 does not fit schedule.patch_size=10",
        "multiple of 10",
    ),
    "patches that tiles are no multiple of": (
        ("encoder=vit_tiny_demo", "method=fast_moco", "schedule.patch_size=4"),
        1,
        "schedule.image_size/method.parts=10 does not fit schedule.patch_size=4",
        "multiple of 4",
    ),
    "a probe that patches do not cover": (
        ("encoder=vit_tiny_demo", "probe.crop=30"),
        1,
        "probe.crop=30",
        "multiple of 4",
    ),
    "heads that do not share the width": (("encoder=vit_tiny_demo", "encoder.heads=5"), 1, "encoder.heads=5", "120"),
    "no heads": (("encoder=vit_tiny_demo", "encoder.heads=0"), 1, "encoder.heads=0", "encoder.heads=12"),
    "no patches": (("encoder=vit_tiny_demo", "encoder.patch=0"), 1, "encoder.patch=0", ""),
    "a projector without layers": (("method.projector_layers=0",), 1, "method.projector_layers=0", "at least 1"),
    "a probe of pixels outside of the image": (
        ("probe.crop=32", "probe.resize=28"),
        1,
        "probe.resize=28",
        "Correct it",
    ),
    "a probe of nothing": (("probe.crop=0",), 1, "probe.crop=0", "Correct it"),
    "a bank of no images": (("probe.bank=0",), 1, "probe.bank=0", "Correct it"),
    "a teacher of a method without one": (
        ("method=simclr", "probe.branch=teacher"),
        1,
        "the method has no teacher",
        "probe.branch=student",
    ),
    "a branch that no method has": (("probe.branch=pupil",), 1, "probe.branch='pupil'", ""),
    "a probe that never comes": (("probe.every=soon",), 1, "'soon' is not a duration", "1 epoch"),
    "a level of no px": (("data.pyramid=[0]",), 1, "data.pyramid=[0] is not possible: 0 is no side", "[160,256]"),
    "levels in no order": (("data.pyramid=[256,160]",), 1, "data.pyramid=[256,160]", "data.pyramid=[160,256]"),
    "a level twice": (("data.pyramid=[160,160]",), 1, "data.pyramid=[160,160]", "data.pyramid=[160]"),
    "no levels": (("data.pyramid=[]",), 1, "data.pyramid=[] names no level", "leave it out"),
    "a level for levels": (("data.pyramid=160",), 1, "data.pyramid=160", "list"),
    "a crop enlarged by less than nothing": (("data.max_upsample=0.9",), 1, "data.max_upsample=0.9", "at least 1"),
    "a port that is no number": (("metrics.port=any",), 1, "metrics.port='any'", "int"),
    "a folder that is a number": (("metrics.textfile=1",), 1, "metrics.textfile=1", "str"),
    "an address that is a number": (("metrics.bind=9400",), 1, "metrics.bind=9400", "str"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused(demo_shards: Path, what: str) -> None:
    words, ranks, named, remedy = REFUSED[what]
    with pytest.raises(ConfigError) as raised:
        check(config(demo_shards, *words), ranks)
    assert named in raised.value.problem
    assert remedy in str(raised.value)
    assert raised.value.remedy


def test_a_hyperparameter_without_a_metric_is_refused_before_the_start(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BYOL, "curves", property(lambda self: {"momentun": Curve(0.5, 0.5)}))
    with pytest.raises(UserError, match=r"'momentun' has no row .*\n.*dist_ssl/metrics/table\.py.*'momentum'"):
        check(config(demo_shards, "method=byol"), ranks=1)


def test_an_encoder_that_timm_does_not_know_is_refused_with_the_nearest(demo_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.name=resnet19") as raised:
        check(config(demo_shards, "encoder=resnet18", "encoder.name=resnet19"), ranks=1)
    assert "Did you mean 'resnet18'?" in raised.value.remedy


def test_a_stem_that_does_not_exist_is_refused_with_those_that_do(demo_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.stem='tiny'") as raised:
        check(config(demo_shards, "encoder=resnet18", "encoder.stem=tiny"), ranks=1)
    assert "standard" in str(raised.value)
    assert "small" in str(raised.value)


def test_other_data_of_a_server_is_refused_without_its_password(demo_shards: Path) -> None:
    with serving(demo_shards) as server:
        address = f"http://me:pa55w0rd@{server.url.removeprefix('http://')}"
        half = (0.5, 0.5, 0.5)
        data = Data(address, "train", half, half, Share.parse("1 %"), identity="0" * 32)
        with pytest.raises(DataError, match="is not the run's") as caught:
            data.open(data.access(1))
    assert "pa55w0rd" not in str(caught.value)


def test_other_data_than_the_runs_is_refused_with_both_hashes(demo_shards: Path) -> None:
    with pytest.raises(DataError) as raised:
        check(config(demo_shards, "data.identity=0123abcd"), ranks=1)
    assert "0123abcd" in raised.value.problem
    assert manifest.read(demo_shards).identity in raised.value.problem
    assert "data.path" in raised.value.remedy


def test_a_level_that_is_not_there_is_refused_with_the_way_to_make_it(demo_shards: Path) -> None:
    with pytest.raises(DataError, match=r"no level of 24 px: it has none") as raised:
        check(config(demo_shards, "data.pyramid=[24]"), ranks=1)
    assert f"python shards/make.py out={demo_shards} pyramid=[24]" in raised.value.remedy


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_is_not_there_is_refused_with_the_nearest(demo_shards: Path, split: str) -> None:
    with pytest.raises(DataError, match=f"'{split}l'") as raised:
        check(config(demo_shards, f"data.{split}={split}l"), ranks=1)
    assert f"'{split}'" in raised.value.remedy


def test_a_folder_without_shards_is_refused_with_the_way_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json") as raised:
        check(config(tmp_path), ranks=1)
    assert "shards/make.py" in raised.value.remedy


def test_every_precision_that_the_config_may_name_has_its_dtypes() -> None:
    assert tuple(PRECISIONS) == PRECISION_NAMES


def test_a_job_that_outgrows_its_memory_ends_before_its_first_step(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("schedule=progressive", "schedule.start_scale=0.5", "epochs=8", "ranks_per_node=1")
    job = small_job(World(), small_config(demo_shards, *words), tmp_path)
    needs = memory_estimate(small_config(demo_shards, *words), parts(small_config(demo_shards, *words), World(), 1), 1)
    sizes = [needs(job.schedule.plan(epoch)).total for epoch in range(8)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    monkeypatch.setattr(dist_ssl.build, "memory_size", lambda world: sizes[-1] - 1)
    late = small_job(World(), small_config(demo_shards, *words), tmp_path / "late")
    first = sizes.index(sizes[-1]) + 1
    with pytest.raises(ConfigError, match=f"Epoch {first} does not fit into memory: its 2 views of 16 px, batch 12 on"):
        train(late)
    assert not (tmp_path / "late" / "plan.jsonl").exists()
    assert not list((tmp_path / "late" / "checkpoints").glob("step_*"))
    monkeypatch.setattr(dist_ssl.build, "memory_size", lambda world: sizes[-1])
    fitting = small_job(World(), small_config(demo_shards, *words), tmp_path / "fitting")
    fitting.coordinator.check_memory(fitting.fresh)


def test_a_run_that_is_counted_is_trained_to_the_same_bits(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("aux=rotation", "ema=0.9", "epochs=2")
    own = small_config(demo_shards, *words)
    _, plain = run_job(World(), own, tmp_path / "plain")
    counted: list[EpochPlan] = []
    monkeypatch.setattr(dist_ssl.build, "is_small", lambda method, plans, ranks, room: bool(counted.extend(plans)))
    _, found = run_job(World(), own, tmp_path / "counted")
    assert [plan.epoch for plan in counted] == [0, 1]
    assert same_bits(plain, found)


class Silent(World):
    """Rank 0 of a world whose other ranks say what it says."""

    def collect(self, value: Any) -> list[Any]:
        return [value] * self.size

    def share(self, value: Any) -> Any:
        return value


def test_ranks_that_torchrun_put_on_one_node_share_its_shards(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = small_config(demo_shards, "engine=fsdp", "engine.replicate=nodes", "ranks_per_node=1")
    found = parts(own, World(), 4)
    shared, whole = (memory_estimate(own, found, 4, ranks)(found.schedule.plan(0)).total for ranks in (4, 1))
    assert shared < whole
    monkeypatch.setattr(dist_ssl.build, "memory_size", lambda world: shared)
    place = dist_ssl.build.Place(tmp_path, 1, lambda: True)
    for local_size in (4, 1):
        made = dist_ssl.build.coordinator(own, found, Silent(0, 4, 0, local_size), place)
        with nullcontext() if local_size == 4 else pytest.raises(ConfigError, match="does not fit into memory"):
            made.check_memory(Progress(epochs=1))


def test_images_of_five_channels_are_accepted_with_what_is_left_out(demo_shards: Path, tmp_path: Path) -> None:
    own = tmp_path / "five"
    shutil.copytree(demo_shards, own)
    content = json.loads((own / manifest.NAME).read_text())
    (own / manifest.NAME).write_text(json.dumps({**content, "channels": 5}))
    said: list[str] = []
    five = ("data.mean=[0.5,0.5,0.5,0.5,0.5]", "data.std=[0.2,0.2,0.2,0.2,0.2]")
    found = check(config(own, *five, "difficulty=model", "schedule.candidates=2"), 1, said.append, 10**12)
    assert found == manifest.read(own).identity
    assert "Left out of the views, as it needs red, green and blue: saturation, hue, gray_p. The images have 5." in said
    assert not [line for line in said if "Left out" in line and "5." not in line]
    with pytest.raises(ConfigError, match=r"data.mean=\[0.485, 0.456, 0.406\] has 3 numbers: .* have 5 channels"):
        check(config(own, "data.mean=[0.485,0.456,0.406]", "data.std=[0.2,0.2,0.2]"), 1)
