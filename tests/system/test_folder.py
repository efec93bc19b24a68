"""From a folder of pictures to an encoder in use, by real commands."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml

import dist_ssl
from dist_ssl.data.images.decode import UnreadableError, decode
from dist_ssl.data.storage.read import Reader
from launch import export
from launch.evaluation import config_of
from launch.evaluation_options import Options
from launch.frozen import Frozen
from launch.run_dir import RunDir
from tests.shards.pictures import odd_pictures
from tests.system.launching import Launch, changeable_by_others, saved

SHORT = ("epochs=2", "encoder=tiny", "encoder.width=4", "method.hidden=16", "method.dim=8", "schedule.image_size=16")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run on 40 pictures of all kinds, and what its command printed."""
    root = tmp_path_factory.mktemp("own")
    odd_pictures(root / "pictures")
    where = (f"data.path={root / 'pictures'}", f"data.into={root / 'data'}", f"runs={root / 'runs'}", "name=mine")
    launch = Launch("data=folder", "method=mocov3", *where, "nodes=1", "cluster=local", "threads=1", *SHORT)
    code, text = launch.finish()
    assert code == 0, text
    return root / "runs" / "mine", text


def test_a_folder_of_pictures_of_all_kinds_is_trained_on(finished: tuple[Path, str]) -> None:
    run, text = finished
    assert "40 pictures, 8 of them held out, 2 classes" in text
    assert "cannot be read; quarantine.jsonl lists them" in text
    assert "Finished. kNN accuracy" in text
    assert max(saved(run)) == 4
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["data"]["path"].startswith(os.fspath(run.parent.parent / "data" / "pictures-"))
    assert (recorded["batch_size"], recorded["data"]["val"]) == (12, "val")
    assert "data=folder" not in yaml.safe_load((run / "overrides.yaml").read_text())


def test_a_finished_run_has_an_encoder_that_its_last_lines_load(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, text = finished
    first, second = text.splitlines()[-2:]
    lines = [first.partition("Use the encoder: ")[2], second.strip()]
    assert lines[0] == f"import dist_ssl; encoder = dist_ssl.load_encoder('{run}')"
    monkeypatch.chdir(run.parent.parent / "pictures" / "a")
    space: dict[str, Any] = {}
    exec("\n".join(lines).replace("'a.jpg', 'b.jpg'", "'turned.jpg', 'cmyk.jpg', 'deep.png'"), space)
    assert space["features"].shape == (3, 32)
    config = config_of(RunDir.open(run), Options(run=str(run), threads=1), {})
    measured = Frozen.load(config, run / "checkpoints" / "step_00000004", 1)
    split = measured.held_out()
    features, _ = measured.features(split, 10**6)
    with Reader(split) as reader:
        kept = [data for data in map(reader.read, range(len(split.samples))) if readable(data)]
    torch.testing.assert_close(space["encoder"].embed(kept), features, rtol=1e-5, atol=1e-5)


def readable(data: bytes) -> bool:
    try:
        decode(data, 1)
    except UnreadableError:
        return False
    return True


def test_another_branch_is_exported_with_a_card(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, _ = finished
    assert export.main([f"run={run}", "to=safetensors", "branch=teacher"]) == 0
    text = capsys.readouterr().out
    out = run / "exports" / "00000004_teacher_safetensors.safetensors"
    assert "step_00000004, teacher: matched 35 of 35 tensors; dist_ssl differs by 0.0e+00" in text
    assert f"encoder = dist_ssl.load_encoder('{out}')" in text
    teacher, student = dist_ssl.load_encoder(out), dist_ssl.load_encoder(run)
    assert (teacher.description.branch, student.description.branch) == ("teacher", "student")
    assert not torch.equal(teacher.encoder.stages[0].conv1.weight, student.encoder.stages[0].conv1.weight)
    card = Path(f"{out}.md").read_text()
    identity = yaml.safe_load((run / "config.yaml").read_text())["data"]["identity"]
    for part in (
        "# mine: mocov3, teacher, step 4",
        f"identity {identity}",
        "width: 4",
        "matched 35 of 35",
        "encoder=tiny",
    ):
        assert part in card
    assert str(run.parent.parent / "pictures") not in card, "a card names no place on this machine"
    assert export.main([f"run={run}", "to=safetensors", f"out={tmp_path / 'x.safetensors'}"]) == 0
    assert "| run: knn_accuracy |" in (tmp_path / "x.safetensors.md").read_text()
    assert not changeable_by_others(run)


def test_an_onnx_file_has_the_recipe_of_its_run(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished
    assert export.main([f"run={run}", "to=onnx"]) == 0
    text, out = capsys.readouterr().out, run / "exports" / "00000004_student_onnx.onnx"
    assert "step_00000004, student: matched 35 of 35 tensors; onnxruntime differs by " in text
    assert f"session = onnxruntime.InferenceSession('{out}', providers=['CPUExecutionProvider'])" in text
    assert "features = session.run(None, {'images': images})[0]" in Path(f"{out}.md").read_text()
    said = {one.key: one.value for one in onnx.load(out).metadata_props}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert yaml.safe_load(said["recipe"])["method"] == config["method"]
    assert json.loads(said["data"]) == config["data"]["identity"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main([f"run={run}", "to=onnx"]) == 2
    text = capsys.readouterr().out
    assert "to=onnx needs onnx, onnxscript, onnxruntime.\n  pip install 'dist_ssl[onnx]', or pip install onnx " in text


def test_commands_that_cannot_be_done_are_refused(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, _ = finished
    for words, message in (
        (("to=timm",), "timm has no TinyResNet"),
        (("to=tim",), "to='tim' is not possible.\n  Did you mean 'timm'?"),
        ((), "to is not given"),
        (("to=safetensors", "brunch=teacher"), "There is no key 'brunch'.\n  Did you mean 'branch'?"),
        (("to=safetensors", "branch=ema"), "has no weights of branch=ema"),
        (("to=safetensors", "checkpoint=9"), "has no checkpoint 9"),
        (("to=safetensors", f"data.path={tmp_path}"), "Say where the run's data is now: data.path=..."),
        (("to=safetensors", f"out={run}/config.yaml/x.safetensors"), "x.safetensors cannot be written"),
        (("to=safetensors", "out=x.bin"), "out=x.bin does not end with .safetensors"),
        (("to=onnx", "out=x.safetensors"), "out=x.safetensors does not end with .onnx"),
        (("to=huggingface",), "transformers has no TinyResNet"),
    ):
        assert export.main([f"run={run}", *words]) == 2
        assert message in capsys.readouterr().out
    others = tmp_path / "others"
    shutil.copytree(run, others)
    (others / "code" / "launch" / "export.py").chmod(0o666)
    assert export.main([f"run={others}", "to=safetensors"]) == 2
    assert "is not yours alone" in capsys.readouterr().out
