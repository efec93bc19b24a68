"""The encoder of a checkpoint computes what the engine computes that wrote it, for every branch."""

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import dist_ssl
from dist_ssl.build import last_side
from dist_ssl.checkpoint.folder_names import ENCODER
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, DataError
from dist_ssl.parts import parts, probing
from dist_ssl.runtime.end_names import FINISHED
from dist_ssl.train import Job
from launch import credentials, last_lines, worker
from launch.checkpoint_encoder import of_checkpoint
from launch.ending import Ending
from launch.export import IMAGES, ExportOptions, export, sample
from launch.run_dir import RunDir
from launch.run_files import write_yaml
from launch.variables import ADDRESS
from tests.jobs import small_config, small_job
from tests.web import serving


def saved_job(data: Path, folder: Path, *words: str) -> tuple[Job, dict[str, Any], Path]:
    """A job whose weights are drawn anew, its config, and its checkpoint."""
    config = small_config(data, "nodes=1", *words)
    job = small_job(World(), config, folder)
    method: Any = job.engine.method  # type: ignore[attr-defined]
    torch.manual_seed(5)
    with torch.no_grad():
        for value in (*method.parameters(), *(x for x in method.buffers() if x.is_floating_point())):
            value.add_(0.1 * torch.rand_like(value))
    job.checkpoint.save(job.engine, job.fresh.begin(job.schedule.plan(0)).advance())
    job.checkpoint.wait()
    job.stream.close()
    job.ledger.close()
    return job, config, next((folder / "checkpoints").glob("step_*"))


@pytest.mark.parametrize(
    ("words", "branches"),
    [
        (("method=mocov3", "ema=0.9"), ("student", "teacher", "ema")),
        (("method=byol", "aux=rotation", "precision=fp64"), ("student", "teacher")),
        (("method=emp_ssl", "method.patches=4"), ("student",)),
    ],
    ids=["average", "auxiliary task", "extra layer"],
)
def test_every_branch_is_that_of_the_engine(
    words: tuple[str, ...], branches: tuple[Any, ...], demo_shards: Path, tmp_path: Path
) -> None:
    job, config, checkpoint = saved_job(demo_shards, tmp_path, *words)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64 if "precision=fp64" in words else torch.float32)
    found = {}
    for branch in branches:
        saved = of_checkpoint(config, "name", checkpoint, branch)
        found[branch] = saved(x.float())
        torch.testing.assert_close(found[branch], job.engine.embed(x, branch), rtol=1e-5, atol=1e-5)
        own = saved.description
        assert (own.branch, own.step, own.run, own.crop, own.resize) == (branch, 1, "name", 32, 32)
        assert own.mean == tuple(config["data"]["mean"])
    assert all(not torch.allclose(found[a], found[b]) for a in branches for b in branches if a < b)
    absent = {"student", "teacher", "ema"}.difference(branches)
    for branch in absent:
        with pytest.raises(CheckpointError, match=f"no weights of branch={branch}"):
            of_checkpoint(config, "name", checkpoint, branch)


def test_the_branch_of_the_probe_is_the_default_and_another_encoder_is_refused(
    demo_shards: Path, tmp_path: Path
) -> None:
    _, config, checkpoint = saved_job(demo_shards, tmp_path, "method=mocov3", "probe.branch=teacher")
    assert of_checkpoint(config, "name", checkpoint).description.branch == "teacher"
    wider = {**config, "encoder": {**config["encoder"], "width": 6}}
    with pytest.raises(CheckpointError, match="branch=teacher, matches 0 of 35 tensors"):
        of_checkpoint(wider, "name", checkpoint)
    file = next(checkpoint.glob("rank_*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-40:] = bytes(40)
    file.write_bytes(bytes(data))
    (checkpoint / "state.json").write_text((checkpoint / "state.json").read_text().replace("xxh3", "xxh4", 1))
    with pytest.raises(CheckpointError, match="is damaged"):
        of_checkpoint(config, "name", checkpoint)


def test_images_are_as_large_as_for_an_evaluation_also_before_the_views_have_grown(
    demo_shards: Path, tmp_path: Path
) -> None:
    words = ("schedule=progressive", "schedule.image_size=32", "probe.crop=null", "probe.resize=null")
    job, config, checkpoint = saved_job(demo_shards, tmp_path, "method=mocov3", *words)
    assert job.schedule.plan(0).image_size < 32
    side = last_side(parts(config, World(), 1))
    own = of_checkpoint(config, "name", checkpoint).description
    assert (own.resize, own.crop) == probing(config).sides(side) == (round(32 * 8 / 7), 32)


def test_an_export_is_of_the_branch_that_the_probe_measures_now(demo_shards: Path, tmp_path: Path) -> None:
    _, config, _ = saved_job(demo_shards, tmp_path, "method=mocov3")
    run = RunDir(tmp_path)
    write_yaml(tmp_path / "config.yaml", {"format": 1, **config})
    (tmp_path / "overrides.yaml").write_text("[]")
    run.new_attempt({**config, "probe": {**config["probe"], "branch": "teacher", "crop": 24, "resize": 28}})
    out = tmp_path / "x.safetensors"
    options = ExportOptions.parse([f"run={tmp_path}", "to=safetensors", f"out={out}"])
    assert export(options, run, Console(quiet=True)) == 0
    own = dist_ssl.load_encoder(out).description
    assert (own.branch, own.crop, own.resize) == ("teacher", 24, 28)


def test_an_export_reads_data_with_the_login_in_its_address(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    run = RunDir(tmp_path / "run")
    run.begin(small_config(demo_shards, "nodes=1", f"data.cache={tmp_path / 'cache'}"), [])
    with serving(demo_shards) as server:
        server.login = "Basic " + base64.b64encode(b"g4711:opensesame").decode()
        address = server.url.replace("://", "://g4711:opensesame@")
        words = credentials.set_aside(["run=x", "to=safetensors", f"data.path={address}"])
        assert not [word for word in words if "opensesame" in word]
        assert len(sample(run, ExportOptions.parse(words).data_path)) == IMAGES


def test_the_images_of_a_check_may_be_of_one_place_of_a_mixture_or_other_ones(
    demo_shards: Path, tmp_path: Path
) -> None:
    config = small_config(demo_shards, "nodes=1", "method=mocov3")
    mixture = {"path": ["/gone", "/away"], "weights": [3, 1], "identity": "xxh3:0"}
    write_yaml(tmp_path / "config.yaml", {"format": 1, **config, "data": {**config["data"], **mixture}})
    assert len(sample(RunDir(tmp_path), str(demo_shards))) == 16


@pytest.mark.parametrize("error", [RuntimeError("no room"), DataError("no room", "x")])
def test_whatever_prevents_the_encoder_of_a_finished_run_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: Any) -> None:
        raise error

    attempt = RunDir(tmp_path).new_attempt({})
    monkeypatch.setattr("launch.evaluation.checkpoint_of", broken)
    worker.write_encoder(attempt)
    assert "could not be written" in capsys.readouterr().err


def test_a_run_whose_encoder_cannot_be_written_has_finished_all_the_same(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, config, _ = saved_job(demo_shards, tmp_path, "method=mocov3")
    run, console = RunDir(tmp_path), Console(soft_wrap=True)
    attempt = run.new_attempt(config)
    (tmp_path / ENCODER).mkdir()
    worker.write_encoder(attempt)
    assert f"{tmp_path / ENCODER} could not be written" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("data: {source: null}\n")
    last_lines.say_how_it_ended(run, [], Ending(FINISHED), console)
    assert f"Write it: python launch/export.py run={tmp_path} to=safetensors" in capsys.readouterr().out
    (tmp_path / ENCODER).rmdir()
    worker.write_encoder(attempt)
    assert dist_ssl.load_encoder(tmp_path).description.run == tmp_path.name
