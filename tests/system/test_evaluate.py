"""A real run is evaluated by every protocol, in numbers that are computed anew here; wrong commands are refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, ConfigError
from dist_ssl.evaluate.knn import KNN
from dist_ssl.evaluate.linear import linear_probe
from dist_ssl.evaluate.linear_recipes import LINEAR, LinearRecipe
from dist_ssl.protocols.engine import Branch
from dist_ssl.runtime import jsonl
from launch import evaluate, frozen
from launch.checkpoint_choice import Watch, evaluate_named, follow
from launch.evaluation import config_of, evaluated
from launch.evaluation_options import DataValues, Options
from launch.evaluation_protocols import PROTOCOLS
from launch.frozen import Frozen
from launch.run_dir import PROJECT, RunDir
from tests.jobs import small_config, small_job
from tests.monitoring.prometheus import free_port
from tests.ranks import Ranks
from tests.system.launching import Launch, changeable_by_others, words

BEGINNING = "protocol=unlabelled"


@pytest.fixture(scope="module")
def run(followed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of a method with a teacher."""
    run = Path(shutil.copytree(followed, tmp_path_factory.mktemp("runs") / "done"))
    shutil.rmtree(run / "evaluations")
    return run


def written(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, Mapping[str, Any], str]:
    """The name and the content of the file that is written, and what is printed."""
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    code = evaluate.main([f"run={run}", "threads=1", *more])
    text = capsys.readouterr().out
    assert code == 0, text
    (file,) = (run / "evaluations").glob("*")
    return file.name, json.loads(file.read_text()), text


def refused(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The message of a command that is refused; nothing is written."""
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    assert evaluate.main([f"run={run}", "threads=1", *more]) == 2
    assert not (run / "evaluations").exists()
    return capsys.readouterr().out


def changed(run: Path, to: Path, config: Mapping[str, Any]) -> Path:
    """The run with another config."""
    shutil.copytree(run, to)
    (to / "config.yaml").write_text(yaml.safe_dump({"format": 1, **config}))
    return to


def published(run: Path, data: Path, folder: Path, branch: Branch, k: int) -> float:
    """The accuracy of scikit-learn's classifier on the features of the run's last checkpoint, whole splits."""
    folder.mkdir()
    shutil.copytree(run / "checkpoints", folder / "checkpoints")
    job = small_job(World(), small_config(data, "nodes=1", "probe.bank=100", "probe.queries=100"), folder)
    assert job.checkpoint.restore(job.engine, job.fresh).epoch == 2
    assert isinstance(job.probe, KNN)
    bank, labels = job.probe.bank[0].features(job.engine, job.probe.bank[1], branch)
    asked, right = job.probe.queries[0].features(job.engine, job.probe.queries[1], branch)
    job.stream.close()
    assert (len(bank), len(asked)) == (60, 20)
    peer = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    return float(peer.fit(bank, labels).score(asked, right))


@pytest.mark.parametrize("branch", ["student", "teacher"])
def test_knn_is_that_of_scikit_learn_on_the_checkpoint(
    branch: Branch, run: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, text = written(run, capsys, f"branch={branch}", "k=5")
    assert name == f"00000010_{branch}_knn_k5.json"
    found = content["numbers"]
    assert (found["bank"], found["queries"]) == (60, 20)
    assert found["knn_accuracy"] == pytest.approx(published(run, demo_shards, tmp_path / "again", branch, 5))
    settings = {"branch": branch, "k": 5, "temperature": 0.07, "resize": 32, "crop": 32, "patches": 128}
    settings |= {"train": "train", "val": "val"}
    assert content["settings"] == settings
    assert content["checkpoint"] == "step_00000010"
    assert content["data"] == yaml.safe_load((run / "config.yaml").read_text())["data"]["identity"]
    assert content["seconds"] > 0
    assert f"{100 * found['knn_accuracy']:.2f} %" in text


def test_checkpoints_and_branches_have_numbers_of_their_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(run, capsys, BEGINNING, "checkpoint=step_00000005")
    last = written(run, capsys, BEGINNING, "checkpoint=10")
    teacher = written(run, capsys, BEGINNING, "branch=teacher")
    assert [name for name, *_ in (first, last, teacher)] == [
        "00000005_student_unlabelled.json",
        "00000010_student_unlabelled.json",
        "00000010_teacher_unlabelled.json",
    ]
    ranks = [content["numbers"]["effective_rank"] for _, content, _ in (first, last, teacher)]
    assert len(set(ranks)) == 3
    assert last[1]["numbers"] == written(run, capsys, BEGINNING)[1]["numbers"], "every evaluation draws the same views"
    assert all(1 <= rank <= 20 for rank in ranks)
    assert -8 <= last[1]["numbers"]["uniformity"] < 0 < last[1]["numbers"]["alignment"] < 4


def test_retrieval_and_bags_of_patches(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, content, _ = written(run, capsys, "protocol=retrieval", "queries=12")
    assert content["numbers"]["queries"] == 12
    assert 0 < content["numbers"]["mean_average_precision"] <= 1
    name, content, _ = written(run, capsys, "protocol=bag_of_patches", "patches=6", "k=3")
    assert name == "00000010_student_bag_of_patches_k3_patches6.json"
    assert 0 <= content["numbers"]["knn_accuracy"] <= 1
    assert content["settings"]["patches"] == 6
    assert content == {
        **written(run, capsys, "protocol=bag_of_patches", "patches=6", "k=3")[1],
        "seconds": content["seconds"],
    }


def test_the_linear_classifier_is_that_of_the_features(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content, text = written(run, capsys, "protocol=linear", "checkpoint=5")
    assert name == "00000005_student_linear.json"
    config = config_of(RunDir.open(run), Options(run=str(run), threads=1), {})
    frozen = Frozen.load(config, run / "checkpoints" / "step_00000005", 1)
    found, numbers = linear_probe(*frozen.both()), content["numbers"]
    assert numbers["linear_accuracy"] == found.last
    assert numbers["best_epoch_accuracy"] == found.best >= found.last
    assert numbers["learning_rate"] == found.learning_rate
    sweep = {key.rpartition(" ")[2]: value for key, value in numbers.items() if key.startswith("sweep_accuracy ")}
    assert sweep == {f"{rate:g}": value for rate, value in found.sweep.items()}
    assert f"linear accuracy {100 * found.last:.2f} %".split() in [line.split()[:4] for line in text.splitlines()]


def test_recipes_of_the_command_are_those_of_the_table() -> None:
    choices = get_type_hints(Options)["recipe"]
    assert {name for part in get_args(choices) for name in get_args(part)} == set(LINEAR)


def test_a_published_protocol_trains_on_crops_and_names_its_recipe(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LINEAR, "moco", replace(LINEAR["moco"], epochs=2, batch=20, rates=(1.0,)))
    name, content, text = written(run, capsys, "protocol=linear", "recipe=moco")
    assert name == "00000010_student_linear_moco.json"
    numbers = content["numbers"]
    assert content["settings"]["recipe"] == "moco"
    assert (numbers["bank"], numbers["queries"], numbers["learning_rate"]) == (60, 20, 1.0)
    assert not [key for key in numbers if key.startswith("sweep")]
    shown = [float(line.split()[-2]) for line in text.splitlines() if line.startswith("Epoch ")]
    assert len(shown) == 2
    assert shown[-1] == round(100 * numbers["linear_accuracy"], 2)
    assert max(shown) == round(100 * numbers["best_epoch_accuracy"], 2)
    name, content, text = written(run, capsys, "protocol=linear", "recipe=moco", "sweep=true")
    assert name == "00000010_student_linear_moco_sweep.json"
    swept = {float(key.split()[-1]) for key in content["numbers"] if key.startswith("sweep_accuracy ")}
    assert swept == set(LINEAR["moco"].swept.rates)
    assert "Choosing one of 7 learning rates" in text


def test_the_protocol_of_patches_is_on_their_means(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content, _ = written(run, capsys, "protocol=linear", "recipe=emp_ssl", "patches=3", "checkpoint=5")
    assert name == "00000005_student_linear_emp_ssl_patches3.json"
    frozen = loaded(World(), run, 5, LINEAR["emp_ssl"])
    found = linear_probe(*frozen.both(frozen.drawn(3, 1)), recipe=LINEAR["emp_ssl"])
    assert content["numbers"]["linear_accuracy"] == found.last
    assert content["settings"]["patches"] == 3


def test_neighbours_are_the_nearest_and_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    assert evaluate.main([f"run={run}", "threads=1", "protocol=neighbours", "k=3", "queries=4"]) == 0
    assert "same class" in capsys.readouterr().out
    sheet, file = sorted((run / "evaluations").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (sheet.name, file.name) == tuple(f"00000010_student_neighbours_queries4_k3.{end}" for end in ("png", "json"))
    numbers = json.loads(file.read_text())["numbers"]
    frozen = loaded(World(), run, 10)
    train, held = frozen.labelled()
    (bank, labels), (asked, right) = frozen.features(train, 99), frozen.features(held, 4)
    near, rows = (bank @ asked.T / bank.norm(dim=1)[:, None] / asked.norm(dim=1)).topk(3, dim=0)
    assert numbers["mean_similarity"] == pytest.approx(float(near.mean()), abs=1e-6)
    assert numbers["same_class"] == pytest.approx(float((labels[rows] == right).double().mean()))
    with Image.open(sheet) as image:
        assert image.width > 4 * 96
        assert image.height > 4 * 96


def test_without_a_held_out_split_no_image_is_its_own_neighbour(
    run: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = changed(run, tmp_path / "alone", small_config(demo_shards, "data.val=null"))
    assert evaluate.main([f"run={alone}", "threads=1", "protocol=neighbours", "k=2", "queries=50"]) == 0
    numbers = json.loads(next((alone / "evaluations").glob("*.json")).read_text())["numbers"]
    assert numbers["bank"] == 60
    assert numbers["mean_similarity"] < 1 - 1e-4
    assert evaluate.main([f"run={alone}", "threads=1", "protocol=neighbours", "bank=1", "queries=1"]) == 2
    assert "no other one to be compared with" in capsys.readouterr().out


def test_every_evaluation_is_a_line_beside_the_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluations.jsonl").unlink(missing_ok=True)
    _, first, _ = written(run, capsys, BEGINNING, "checkpoint=5")
    name, last, _ = written(run, capsys, BEGINNING, "branch=teacher")
    rows = jsonl.read(run / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[1].items() >= {"branch": "teacher", "protocol": "unlabelled", "file": name, **last["numbers"]}.items()
    assert rows[0].items() >= first["numbers"].items()


def loaded(world: World, run: Path, step: int, recipe: LinearRecipe = LINEAR["fast"]) -> Frozen:
    """The encoder of a checkpoint, on the ranks of a world."""
    config = config_of(RunDir.open(run), Options(run=str(run), threads=1), {})
    return Frozen.load(config, run / "checkpoints" / f"step_{step:08d}", 3, world=world, recipe=recipe)


def measured(world: World, run: Path, step: int) -> list[Mapping[str, float]]:
    """The numbers of some protocols."""
    torch.set_num_threads(1)
    frozen = loaded(world, run, step, replace(LINEAR["swav"], epochs=2, batch=16))
    return [PROTOCOLS[name](frozen).numbers for name in ("knn", "linear", "neighbours")]


def test_several_ranks_have_the_numbers_of_one(run: Path, ranks: Ranks) -> None:
    (expected,) = ranks.run(measured, 1, run, 10)
    assert ranks.run(measured, 2, run, 10) == [expected] * 2


def hindered(world: World, run: Path) -> list[str]:
    """The lines of a watch on whose second rank a file cannot be opened."""
    torch.set_num_threads(1)
    original = frozen.read
    lines: list[str] = []

    def read(folder: Path, wants: Any) -> Any:
        if world.rank == 1 and folder.name == "step_00000005":
            raise CheckpointError("Too many open files.", "Raise the limit.")
        return original(folder, wants)

    frozen.read = read  # type: ignore[attr-defined]
    try:
        options = Options(run=str(run), threads=1, watch="all")
        data: DataValues = {}
        watch = Watch(RunDir.open(run), options, data, lines.append)

        def one(name: str) -> None:
            evaluated(watch.run, options, data, run / "checkpoints" / name, world, lines.append)
            watch.passed.add(name)

        follow(watch, world, one)
        with pytest.raises(ConfigError, match="has no checkpoint 7"):
            evaluate_named(watch.run, "7", world, one)
    finally:
        frozen.read = original  # type: ignore[attr-defined]
    return lines


def test_what_one_rank_cannot_read_leaves_no_other_waiting(run: Path, ranks: Ranks) -> None:
    for lines in ranks.run(hindered, 2, run):
        assert lines[1:] == [
            "step_00000005 is passed over: Too many open files.",
            "The run has finished, and its checkpoints have been evaluated.",
        ]


@pytest.mark.chaos
def test_ranks_that_torchrun_starts_write_one_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, alone, _ = written(run, capsys, "k=5")
    shutil.rmtree(run / "evaluations")
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--master-port={free_port()}", "--nproc-per-node=2"]
    command = [*torchrun, str(PROJECT / "launch" / "evaluate.py"), f"run={run}", "threads=1", "k=5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to ") == 1
    (file,) = (run / "evaluations").iterdir()
    content = json.loads(file.read_text())
    assert (content["ranks"], alone["ranks"]) == (2, 1)
    assert content["numbers"] == alone["numbers"]


WRONG = {
    "an unknown key": (("bnk=3",), "There is no key 'bnk'.", "'bank'"),
    "an unknown protocol": (("protocol=know",), "protocol='know' is not possible", "knn, linear, neighbours"),
    "an unknown branch": (("branch=pupil",), "branch='pupil' is not possible", "student"),
    "a word for a number": (("k=many",), "k='many' is not possible: it takes a value of type int", ""),
    "no neighbours": (("k=0",), "k=0 is not possible: it must be at least 1", ""),
    "no images": (("bank=0",), "bank=0 is not possible", ""),
    "more views than there are draws": (("protocol=bag_of_patches", "patches=5000"), "it must be from 1 to 4096", ""),
    "pixels from outside": (
        ("resize=20",),
        "resize=20 is not possible: it must be at least the side of the crop, 32",
        "",
    ),
    "patches of kNN": (("patches=3",), "patches=3 is not used by protocol=knn", "bag_of_patches"),
    "pairs that there are not": (
        ("protocol=retrieval", "queries=1"),
        "None of the 1 image has another one",
        "queries=",
    ),
    "crops of kNN": (("recipe=swav",), "recipe=swav is not used by protocol=knn", "protocol=linear"),
    "an unknown recipe": (("protocol=linear", "recipe=mocov9"), "recipe='mocov9' is not possible", "'mocov3'"),
    "patches of crops": (
        ("protocol=linear", "recipe=moco", "patches=3"),
        "Only recipe=emp_ssl uses patches",
        "emp_ssl",
    ),
    "a sweep of a sweep": (("protocol=linear", "sweep=true"), "recipe=fast always chooses", "choose a recipe"),
    "a sheet of a mile": (("protocol=neighbours", "queries=5000"), "it must be from 1 to 200", ""),
    "one checkpoint of all": (
        ("watch=all", "checkpoint=5"),
        "watch=all chooses the checkpoints",
        "Leave checkpoint out",
    ),
    "no value": (("k",), "k has no value", "Write k="),
    "another checkpoint": (("checkpoint=7",), "has no checkpoint 7", "step_00000005, step_00000010"),
    "one image": (("protocol=unlabelled", "queries=1"), "queries=1 is not possible", "more"),
    "data elsewhere": (("data.path=nowhere",), "nowhere", "data.path=..."),
    "no such split": (("data.val=vall",), "vall", "val"),
}


def test_a_run_of_two_ranks_with_shards_and_a_bank_by_its_own_code(demo_shards: Path, tmp_path: Path) -> None:
    """One process reads what ranks hold in pieces; code that has changed since is not used."""
    own = ("name=spread", "method=single_branch", "engine=fsdp", "nodes=2", "probe.every=9 epochs", "epochs=2")
    code, text = Launch(*words(demo_shards, tmp_path, *own), forked=True).finish()
    assert code == 0, text
    run = tmp_path / "spread"
    script = run / "code" / "launch" / "evaluate.py"
    script.write_text(script.read_text().replace('"Written to ', '"By its own code: '))
    command = [sys.executable, str(PROJECT / "launch" / "evaluate.py"), f"run={run}", "threads=1", "protocol=retrieval"]
    done = subprocess.run(command, capture_output=True, text=True, umask=0)
    assert done.returncode == 0, done.stderr
    assert not changeable_by_others(run), "otherwise a resume would refuse it"
    assert not list(run.rglob("*.nbi")), "what Numba compiled lies elsewhere"
    assert "was started with different code: this uses the code in its own folder" in done.stdout
    assert "By its own code: " in done.stdout
    (file,) = (run / "evaluations").iterdir()
    assert json.loads(file.read_text())["numbers"]["queries"] == 20


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, problem, remedy = WRONG[name]
    text = refused(run, capsys, *arguments)
    assert problem in text
    assert remedy in text
    assert len(text.strip().splitlines()) == 2


def test_no_run_and_no_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([]) == 2
    assert "No run is given" in capsys.readouterr().out
    bare = changed(run, tmp_path / "bare", small_config(tmp_path))
    shutil.rmtree(bare / "checkpoints")
    assert "has no checkpoint yet" in refused(bare, capsys)


def test_a_damaged_checkpoint_is_refused_and_stays(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = Path(shutil.copytree(run, tmp_path / "spoilt"))
    file = next((spoilt / "checkpoints" / "step_00000010").glob("rank_*"))
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[:header] + bytes(len(content) - header))
    text = refused(spoilt, capsys)
    assert "is damaged" in text
    assert "checkpoint=..." in text
    assert file.is_file(), "an evaluation beside a run touches none of its files"
    assert written(spoilt, capsys, BEGINNING, "checkpoint=5")[0].startswith("00000005")


def test_a_method_without_a_teacher_and_data_without_a_held_out_split(
    run: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = changed(run, tmp_path / "single", small_config(demo_shards, "method=simclr"))
    text = refused(single, capsys, "branch=teacher")
    assert "branch=teacher is not possible: the method has no teacher.\n  Use branch=student." in text
    alone = changed(run, tmp_path / "alone", small_config(demo_shards, "data.val=null"))
    assert "There is no held-out split" in refused(alone, capsys)
    assert "data.val=train is trained on: not held out." in refused(alone, capsys, "data.val=train")
    assert written(alone, capsys, BEGINNING)[1]["numbers"]["queries"] == 60
    plain = changed(run, tmp_path / "plain", small_config(demo_shards))
    assert written(plain, capsys, BEGINNING, "data.val=null")[1]["numbers"]["queries"] == 60


def test_a_file_that_cannot_be_written_costs_no_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    (run / "evaluations").touch()
    try:
        assert evaluate.main([f"run={run}", "threads=1", *BEGINNING.split()]) == 2
    finally:
        (run / "evaluations").unlink()
    text = capsys.readouterr().out
    assert "effective rank" in text
    assert "cannot be written" in text
