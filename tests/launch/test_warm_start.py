"""A run starts from existing weights of every origin, keeps them as its own, and refuses what does not fit."""

import io
import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dist_ssl.checkpoint.folder_names import INITIAL
from dist_ssl.config.command import known_error
from dist_ssl.config.instantiate import instantiate
from dist_ssl.config.meta_device import on_meta_device
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, ConfigError, DataError
from dist_ssl.methods.emp_ssl import Widened
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.models.vit import vit
from dist_ssl.saved_encoder import SavedEncoder
from launch import forking, hub_weights, model_card, preparation, settings, slurm, warm_start
from launch.export_targets import TARGETS
from launch.run_dir import PROJECT, RunDir
from launch.run_files import write_yaml
from launch.warm_start import WeightSource, initial_weights, of_function, source_of
from tests.jobs import SMALL, attempt, run_job, same_bits, small_job
from tests.launch.test_checkpoint_encoder import saved_job
from tests.launch.test_export_targets import saved_of
from tests.launch.test_forking import trained
from tests.test_saved_encoder import DESCRIPTION, shaken

NAME = "test_vit.r160_in1k"
"""The smallest transformer of which timm has weights."""
TRANSFORMER = ("encoder=vit_small_dino", "encoder.name=test_vit", "schedule.image_size=16")


def words(data: Path, runs: Path, *more: str) -> list[str]:
    """A run of a few steps; without the width of the default encoder where another one is chosen."""
    other = any(word.startswith("encoder=") for word in more)
    small = [word for word in SMALL if not (other and word.startswith("encoder."))]
    places = [f"data.path={data}", "data.source=null", f"runs={runs}"]
    return [*small, "nodes=1", "cluster=local", "epochs=2", "probe.every=9 epochs", *places, *more]


def started(data: Path, runs: Path, *more: str, trusted: bool = False, checked: bool = False) -> tuple[RunDir, str]:
    """A run that has its initial weights, and what was printed. `checked`: its whole config was checked before."""
    console = Console(file=io.StringIO(), width=10000)
    given = words(data, runs, *more)
    config = preparation.new_config(given, console) if checked else settings.compose(given, PROJECT / "configs")
    run = preparation.begin(given, config, initial_weights(config, trusted, console))
    assert isinstance(console.file, io.StringIO)
    return run, console.file.getvalue()


def plain(run: RunDir) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key != "format"}


def encoders_of(run: RunDir) -> list[dict[str, Tensor]]:
    """The tensors of student and teacher of a job that starts, by the encoder's names."""
    job = small_job(World(), plain(run), run.folder)
    state = job.engine.state()
    job.stream.close()
    job.ledger.close()
    prefixes = [f"model/{branch}.encoder." for branch in ("student", "teacher")]
    found = [{n.removeprefix(p): x for n, x in state.items() if n.startswith(p)} for p in prefixes]
    return [own for own in found if own]  # type: ignore[misc]


def weights_of(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the weights of the demo's encoder."""
    save_file(weights_of(shaken(TinyResNet(4))), tmp_path / "it's.safetensors")
    return tmp_path / "it's.safetensors"


def test_a_run_starts_from_a_file_student_and_teacher_alike(demo_shards: Path, tmp_path: Path, file: Path) -> None:
    run, text = started(demo_shards, tmp_path / "runs", f"init={file}")
    own = sha256((run.folder / INITIAL).read_bytes()).hexdigest()
    assert text.splitlines()[-1] == f"init={file}: matched 35 of 35 tensors of {file}, sha256 {own[:12]}."
    assert (run.config["init"], run.config["init_sha256"]) == (str(file), own)
    expected = load_file(file)
    assert [same_bits(found, expected) for found in encoders_of(run)] == [True, True]


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_a_run_starts_from_the_encoder_of_another_one(branch: str, demo_shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    job, config, _ = saved_job(demo_shards, other, "method=byol", f"probe.branch={branch}")
    write_yaml(other / "config.yaml", {"format": 1, **config})
    run, text = started(demo_shards, tmp_path / "runs", f"init={other}", "method=simclr")
    assert f"init={other}: matched 35 of 35 tensors of step_00000001, {branch}, sha256" in text
    state: Any = job.engine.state()
    (found,) = encoders_of(run)
    assert found
    assert all(torch.equal(x, state[f"model/{branch}.encoder.{name}"]) for name, x in found.items())


def test_a_run_of_others_needs_a_word(demo_shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    _, config, _ = saved_job(demo_shards, other, "method=simclr")
    write_yaml(other / "config.yaml", {"format": 1, **config})
    (other / "checkpoints").chmod(0o777)
    with pytest.raises(ConfigError, match=r"is not yours alone, and a run would start from weights .*checkpoints can"):
        started(demo_shards, tmp_path / "runs", f"init={other}")
    started(demo_shards, tmp_path / "runs", f"init={other}", trusted=True)
    assert slurm.main([*words(demo_shards, tmp_path / "runs", f"init={other}", "name=x")]) == 2
    assert not (tmp_path / "runs" / "x").exists()


def test_a_file_of_ours_says_what_it_is_of(demo_shards: Path, tmp_path: Path) -> None:
    SavedEncoder(shaken(TinyResNet(4)), DESCRIPTION).write(tmp_path / "ours.safetensors")
    run, text = started(demo_shards, tmp_path / "runs", f"init={tmp_path / 'ours.safetensors'}")
    colours = "data.mean=[0.4,0.5,0.6] data.std=[0.2,0.3,0.4]"
    assert text.splitlines()[-1] == f"  They have seen images normalised by {colours}, unlike those of this run."
    assert same_bits(encoders_of(run)[0], load_file(tmp_path / "ours.safetensors"))


def test_a_file_that_was_fine_tuned_is_said_to_be(demo_shards: Path, tmp_path: Path) -> None:
    described = replace(DESCRIPTION, finetuned="3 epochs on 9 images of 2 classes")
    SavedEncoder(TinyResNet(4), described).write(tmp_path / "ours.safetensors")
    _, text = started(demo_shards, tmp_path / "runs", f"init={tmp_path / 'ours.safetensors'}")
    assert "\n  They were fine-tuned with labels: 3 epochs on 9 images of 2 classes.\n" in text


def test_what_starts_from_a_fine_tuned_file_says_so_too(demo_shards: Path, tmp_path: Path) -> None:
    described = replace(DESCRIPTION, finetuned="3 epochs on 9 images of 2 classes")
    SavedEncoder(TinyResNet(4), described).write(tmp_path / "ours.safetensors")
    first, _ = started(demo_shards, tmp_path / "runs", f"init={tmp_path / 'ours.safetensors'}")
    _, text = started(demo_shards, tmp_path / "runs", f"init={first.folder / INITIAL}")
    assert "They were fine-tuned with labels: 3 epochs on 9 images of 2 classes." in text
    other = tmp_path / "other"
    _, config, _ = saved_job(demo_shards, other, "method=simclr")
    write_yaml(other / "config.yaml", {"format": 1, **config})
    assert source_of(str(other), trusted=False).finetuned == ""
    shutil.copy(first.folder / INITIAL, other / INITIAL)
    found = source_of(str(other), trusted=False).finetuned
    assert found == "3 epochs on 9 images of 2 classes, before this pre-training"
    (other / INITIAL).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        source_of(str(other), trusted=False)


@pytest.mark.parametrize(
    ("said", "heads"),
    [
        ({}, [3] * 12),
        ({"model_args": {"img_size": 96}}, [3] * 12),
        ({"model_args": {"num_heads": 4}}, []),
        ({"model_args": [1]}, []),
        ({"architecture": "no_such_network"}, []),
    ],
)
def test_a_folder_of_timm_says_how_many_heads_it_has(said: dict[str, Any], heads: list[int], tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **said}))
    assert source_of(str(tmp_path), trusted=False).heads == heads


def test_the_layer_that_emp_ssl_adds_is_left_out(demo_shards: Path, tmp_path: Path) -> None:
    own = {**DESCRIPTION.__dict__, "extra_layer": 9}
    SavedEncoder(shaken(Widened(TinyResNet(4), 9)), type(DESCRIPTION)(**own)).write(tmp_path / "ours.safetensors")
    run, text = started(demo_shards, tmp_path / "runs", f"init={tmp_path / 'ours.safetensors'}")
    assert "matched 35 of 35 tensors" in text
    assert re.search(r"  Left out, as no part of the encoder: pre\.0\.bias, pre\.0\.weight, .*pre\.1\.\w+\.", text)
    whole = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(x, whole[f"encoder.{name}"]) for name, x in encoders_of(run)[0].items())


def test_another_number_of_heads_is_refused_where_it_is_known(demo_shards: Path, tmp_path: Path) -> None:
    node = {"_target_": "dist_ssl.models.vit.vit", "width": 16, "depth": 1, "heads": 2, "patch": 8}
    described = type(DESCRIPTION)(**{**DESCRIPTION.__dict__, "encoder": node})
    SavedEncoder(vit(16, 1, 2, 8), described).write(tmp_path / "ours.safetensors")
    more = ["encoder=vit_tiny_demo", "encoder.width=16", "encoder.depth=1", "encoder.patch=8"]
    more.append(f"init={tmp_path / 'ours.safetensors'}")
    with pytest.raises(ConfigError, match="its attention has 2 heads, the encoder's 4") as caught:
        started(demo_shards, tmp_path / "runs", *more)
    assert "encoder.heads=2" in caught.value.remedy
    started(demo_shards, tmp_path / "runs", *more, "encoder.heads=2")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub, as its client lays it out, with drawn weights in place of timm's; there is no network."""
    folder = tmp_path / "hub"
    revision = folder / f"models--timm--{NAME}" / "snapshots" / "0123"
    (revision.parents[1] / "refs").mkdir(parents=True)
    (revision.parents[1] / "refs" / "main").write_text("0123")
    revision.mkdir(parents=True)
    save_file(shaken(timm.create_model("test_vit")).state_dict(), revision / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return revision / "model.safetensors"


def test_a_run_starts_from_timms_weights_in_the_cache(demo_shards: Path, tmp_path: Path, hub: Path) -> None:
    for name in (NAME, "test_vit"):
        run, text = started(demo_shards, tmp_path / "runs", *TRANSFORMER, f"init=timm:{name}")
        expected = load_file(hub)
        count = len(expected) - 2
        assert f"init=timm:{name}: matched {count} of {count} tensors of timm/{NAME}, sha256" in text
        assert "Left out, as no part of the encoder: head.bias, head.weight." in text
        assert "They have seen images normalised by data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5], unlike" in text
        found = encoders_of(run)[0]
        assert len(found) == count
        assert all(torch.equal(x, expected[name]) for name, x in found.items())
        (run.folder / "overrides.yaml").write_text(f"['init=timm:{name}', 'init=/secret', 'seed=1']")
        assert model_card.command_of(run) == f"init=timm:{name} seed=1"


def test_other_sizes_are_resized_and_it_is_said(demo_shards: Path, tmp_path: Path, hub: Path) -> None:
    more = ("+encoder.img_size=32", "+encoder.patch_size=8", f"init=timm:{NAME}")
    run, text = started(demo_shards, tmp_path / "runs", *TRANSFORMER, *more)
    assert "  pos_embed: resized from 10 x 10 to 4 x 4 patches.\n" in text
    assert "  patch_embed.proj.weight: resized from patches of 16 px to 8 px.\n" in text
    assert encoders_of(run)[0]["patch_embed.proj.weight"].shape[2:] == (8, 8)


def test_without_a_network_there_is_one_clear_message(demo_shards: Path, tmp_path: Path, hub: Path) -> None:
    shutil.rmtree(hub.parents[2])
    with pytest.raises(DataError) as caught:
        started(demo_shards, tmp_path / "runs", *TRANSFORMER, f"init=timm:{NAME}")
    problem = caught.value.problem
    assert problem.startswith(
        f"init=timm:{NAME}: timm/{NAME} is not in the cache {hub.parents[3]}, and cannot be fetched"
    )
    assert "\n" not in problem
    assert "init=FILE.safetensors" in caught.value.remedy
    assert not (tmp_path / "runs").exists()


def test_names_that_timm_does_not_have_are_refused(demo_shards: Path, tmp_path: Path, hub: Path) -> None:
    for name in ("test_vit.r160_in2k", "hf-hub:timm/test_vit", ""):
        with pytest.raises(ConfigError, match="timm has no pretrained weights of this name"):
            started(demo_shards, tmp_path / "runs", *TRANSFORMER, f"init=timm:{name}")


def test_weights_that_timm_has_as_a_pickle_are_refused(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    known = timm.get_pretrained_cfg(NAME)
    for change in ({"hf_hub_id": None}, {"hf_hub_filename": "x.pth"}):
        other = type(known)(**{**known.__dict__, **change})
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _, other=other: other)
        with pytest.raises(ConfigError, match="timm has these weights as a pickle alone") as caught:
            hub_weights.of_timm(NAME)
        assert f"timm.create_model('{NAME}', pretrained=True).state_dict()" in caught.value.remedy


@pytest.mark.parametrize(
    ("named", "read"),
    [
        ("open_clip_pytorch_model.bin", "open_clip_model.safetensors"),
        ("pytorch_model.bin", "model.safetensors"),
        ("other.bin", "other.safetensors"),
    ],
)
def test_the_safetensors_file_beside_a_pickle_is_read(
    named: str, read: str, monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    known = timm.get_pretrained_cfg(NAME)
    other = type(known)(**{**known.__dict__, "hf_hub_filename": named})
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: other)
    hub.rename(hub.with_name(read))
    assert hub_weights.of_timm(NAME).file == hub.with_name(read)


PLAIN = {"_target_": "dist_ssl.models.vit.vit", "width": 16, "depth": 1, "heads": 2, "patch": 8}
CLIP = {"_target_": "dist_ssl.models.encoders.timm_encoder", "name": "vit_base_patch16_clip_224"}
QUICK = "encoder.name=vit_base_patch16_clip_quickgelu_224"


@pytest.mark.parametrize(
    ("node", "encoder", "heads", "lines"),
    [
        (PLAIN, "", [], ["With how many heads they were trained is not known; the encoder has 2."]),
        (PLAIN, " ".join(f"encoder.{key}={value}" for key, value in PLAIN.items()), [2], []),
        (CLIP, "encoder.name=vit_base_patch16_clip_224", [12], []),
        (
            CLIP,
            QUICK,
            [12],
            [
                f"They are of an encoder with {QUICK}, here it has encoder.name={CLIP['name']}: "
                "check that it computes the same."
            ],
        ),
        (
            {**CLIP, "act_layer": "quick_gelu"},
            "encoder.name=vit_base_patch16_clip_224",
            [12],
            [
                "They are of an encoder with encoder.act_layer=None, here it has encoder.act_layer=quick_gelu: "
                "check that it computes the same."
            ],
        ),
    ],
)
def test_what_no_shape_shows_is_said(node: dict[str, Any], encoder: str, heads: list[int], lines: list[str]) -> None:
    with on_meta_device():
        own = instantiate(node, "encoder")
    assert of_function(WeightSource("x", {}, encoder, heads), own, node) == lines


def test_a_folder_of_transformers_is_a_source_whose_heads_are_known(demo_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    save_file(TARGETS["timm"](saved_of("defaults left out")).renamed, folder / "model.safetensors")
    more = ["encoder=vit_tiny_demo", "encoder.width=16", "encoder.depth=1", "encoder.patch=16", f"init={folder}"]
    said = {"num_attention_heads": 2, "num_hidden_layers": 1, "hidden_act": "quick_gelu"}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="its attention has 2 heads, the encoder's 4"):
        started(demo_shards, tmp_path / "runs", *more)
    _, text = started(demo_shards, tmp_path / "runs", *more, "encoder.heads=2")
    assert "  They were trained with the activation 'quick_gelu'.\n" in text
    assert "is not known" not in text
    for content in ("[", '{"num_hidden_layers": 1e99}', json.dumps({**said, "num_hidden_layers": 1 << 40})):
        (folder / "config.json").write_text(content)
        assert source_of(str(folder), trusted=False).heads == []


def test_weights_of_another_encoder_are_refused_with_the_one_that_they_are_of(
    demo_shards: Path, tmp_path: Path, hub: Path
) -> None:
    with pytest.raises(ConfigError, match="matched 0 of 35 tensors") as caught:
        started(demo_shards, tmp_path / "runs", f"init=timm:{NAME}")
    assert "\n  missing: stem.0.weight, " in caught.value.problem
    assert "\n  left over: blocks.0.attn.proj.bias, " in caught.value.problem
    assert caught.value.remedy.endswith("These are weights of encoder.name=test_vit.")
    tensors = load_file(hub)
    tensors["visual.norm.weight"] = tensors.pop("norm.weight")
    save_file(tensors, hub)
    with pytest.raises(ConfigError, match=r"missing: norm\.weight\n  left over: visual\.norm\.weight") as caught:
        started(demo_shards, tmp_path / "runs", *TRANSFORMER, f"init=timm:{NAME}")
    assert caught.value.remedy.startswith("Convert them with timm"), "the encoder is the right one"


def test_a_renamed_tensor_is_refused_by_name_and_no_folder_is_left(
    demo_shards: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(file)
    tensors["stages.1.renamed"] = tensors.pop("stages.1.conv1.weight")
    save_file(tensors, file)
    assert slurm.main(words(demo_shards, tmp_path / "runs", f"init={file}")) == 2
    text = capsys.readouterr().out
    assert f"init={file} does not fit the encoder: matched 34 of 35 tensors of {file}." in text
    assert "\n  missing: stages.1.conv1.weight\n  left over: stages.1.renamed\n" in text
    assert not list((tmp_path / "runs").glob("*"))


def test_a_sweep_of_which_one_run_does_not_fit_leaves_no_folder(
    demo_shards: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(demo_shards, tmp_path / "runs", f"init={file}", "encoder.width=4,5")
    assert slurm.main(["-m", *(word for word in given if word != "encoder.width=4")]) == 2
    assert "of another shape: stem.0.weight [4, 3, 3, 3], in the encoder [5, 3, 3, 3]" in capsys.readouterr().out
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x80\x02}q\x00.", "is no whole safetensors file: .* reading a pickle executes what is in it"),
        (b"", "is no whole safetensors file"),
        (None, "is neither a file nor a run folder"),
    ],
)
def test_other_files_are_refused(content: bytes | None, problem: str, demo_shards: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=problem):
        started(demo_shards, tmp_path / "runs", f"init={tmp_path / 'x.pth'}")


def test_a_folder_that_is_no_run_and_a_device_are_refused(demo_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is not a run folder"):
        started(demo_shards, tmp_path / "runs", f"init={tmp_path / 'empty'}")
    with pytest.raises(DataError, match="/dev/zero cannot be read: it is no regular file"):
        started(demo_shards, tmp_path / "runs", "init=/dev/zero")


def test_a_name_that_is_too_long_is_one_line() -> None:
    with pytest.raises(OSError, match="File name too long") as caught:
        warm_start.source_of("x" * 5000, False)
    known = known_error(caught.value)
    assert known is not None
    assert known.problem == f"A path is too long: {'x' * 60}..."


def test_expected_weights_are_compared(demo_shards: Path, tmp_path: Path, file: Path) -> None:
    run, _ = started(demo_shards, tmp_path / "runs", f"init={file}")
    own = run.config["init_sha256"]
    started(demo_shards, tmp_path / "runs", f"init={file}", f"init_sha256={own}")
    with pytest.raises(ConfigError, match=f"has init_sha256={own}, not abc: they are other weights"):
        started(demo_shards, tmp_path / "runs", f"init={file}", "init_sha256=abc")
    with pytest.raises(ConfigError, match="init_sha256=abc has no effect without init"):
        started(demo_shards, tmp_path / "runs", "init_sha256=abc")


def test_a_resume_needs_no_source_and_may_not_change_it(demo_shards: Path, tmp_path: Path, file: Path) -> None:
    run, _ = started(demo_shards, tmp_path / "runs", f"init={file}", "save_every=2 steps", "name=cut", checked=True)
    whole, _ = started(demo_shards, tmp_path / "runs", f"init={file}", "save_every=2 steps", "name=whole", checked=True)
    _, expected = run_job(World(), plain(whole), whole.folder)
    assert attempt(World(), plain(run), run.folder, 1, batches=0) is None, "before the first checkpoint"
    file.unlink()
    console = Console(quiet=True)
    _, config = preparation.resume([], run.folder, console)
    assert config["init_sha256"] == run.config["init_sha256"]
    assert attempt(World(), config, run.folder, 2, batches=3) is None
    final = attempt(World(), config, run.folder, 3, batches=99)
    assert final is not None
    assert same_bits(final, expected)
    for word in ("init=timm:resnet50", "init=null", "init_sha256=abc"):
        with pytest.raises(ConfigError, match=r"init(_sha256)?=\S+ is not what the run began with"):
            preparation.resume([word], run.folder, console)


def test_a_source_that_changes_does_not_change_the_run_and_a_changed_copy_ends_it(
    demo_shards: Path, tmp_path: Path, file: Path
) -> None:
    run, _ = started(demo_shards, tmp_path / "runs", f"init={file}")
    before = encoders_of(run)[0]
    save_file({name: x + 1 for name, x in load_file(file).items()}, file)
    assert same_bits(encoders_of(run)[0], before)
    other, _ = started(demo_shards, tmp_path / "runs", f"init={file}")
    assert other.config["init_sha256"] != run.config["init_sha256"]
    shutil.copyfile(other.folder / INITIAL, run.folder / INITIAL)
    with pytest.raises(CheckpointError, match=r"init\.safetensors is not what the run began with"):
        encoders_of(run)


def test_a_fork_takes_the_weights_over(demo_shards: Path, tmp_path: Path, file: Path) -> None:
    run, _ = started(demo_shards, tmp_path / "runs", f"init={file}", "name=first", checked=True)
    trained(run)
    file.unlink()
    console = Console(quiet=True)

    def forked(*more: str) -> RunDir:
        source, checkpoint = forking.source_of(f"{run.folder}@latest")
        config, overrides, progress = forking.forked_config(source, checkpoint, ["epochs=3", *more], console)
        return forking.begin(config, overrides, source, checkpoint, progress)

    fork = forked("name=fork")
    assert fork.config["init_sha256"] == run.config["init_sha256"]
    assert (fork.folder / INITIAL).read_bytes() == (run.folder / INITIAL).read_bytes()
    assert trained(fork)
    with pytest.raises(ConfigError, match="init=None is not what the run has"):
        forked("name=other", "init=null")
    (run.folder / INITIAL).write_bytes(b"other")
    with pytest.raises(CheckpointError, match="is not what the run began with"):
        forked("name=third")
    assert not (tmp_path / "runs" / "third").exists()


def test_a_dry_run_reads_no_weights(demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(words(demo_shards, tmp_path / "runs", "init=nowhere.safetensors", "dry_run=true")) == 0
    assert "init: nowhere.safetensors" in capsys.readouterr().out


def test_timm_itself_is_not_asked_for_weights(demo_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.pretrained=True is not possible") as caught:
        started(demo_shards, tmp_path / "runs", "encoder=resnet18", "+encoder.pretrained=true", checked=True)
    assert "init=timm:resnet18" in caught.value.remedy
