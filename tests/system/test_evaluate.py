"""A real run is evaluated by every protocol, in numbers that are computed anew here; wrong commands are refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.neighbors import KNeighborsClassifier

from dist_ssl.distributed.world import World
from dist_ssl.evaluate.knn import KNN
from dist_ssl.evaluate.linear import linear_probe
from dist_ssl.protocols.engine import Branch
from launch import evaluate
from launch.frozen import Frozen
from launch.run_dir import PROJECT, RunDir
from tests.jobs import small_config, small_job
from tests.system.launching import Launch, words

LENGTH = ("epochs=2", "probe.every=9 epochs", "keep_last=5", "nodes=1")
BEGINNING = "protocol=unlabelled"


@pytest.fixture(scope="module")
def run(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of a method with a teacher."""
    runs = tmp_path_factory.mktemp("runs")
    code, text = Launch(*words(demo_shards, runs, "name=done", *LENGTH)).finish()
    assert code == 0, text
    return runs / "done"


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
    config = evaluate.config_of(RunDir.open(run), evaluate.Options(run=str(run), threads=1), {})
    frozen = Frozen.load(config, run / "checkpoints" / "step_00000005", 1)
    found, numbers = linear_probe(*frozen.both()), content["numbers"]
    assert numbers["linear_accuracy"] == found.last
    assert numbers["best_epoch_accuracy"] == found.best >= found.last
    assert numbers["learning_rate"] == found.learning_rate
    sweep = {key.rpartition(" ")[2]: value for key, value in numbers.items() if key.startswith("sweep_accuracy ")}
    assert sweep == {f"{rate:g}": value for rate, value in found.sweep.items()}
    assert f"linear accuracy {100 * found.last:.2f} %".split() in [line.split() for line in text.splitlines()]


WRONG = {
    "an unknown key": (("bnk=3",), "There is no key 'bnk'.", "'bank'"),
    "an unknown protocol": (("protocol=know",), "protocol='know' is not possible", "knn, linear, retrieval"),
    "an unknown branch": (("branch=pupil",), "branch='pupil' is not possible", "student"),
    "a word for a number": (("k=many",), "k='many' is not possible: it takes a value of type int", ""),
    "no neighbours": (("k=0",), "k=0 is not possible: it must be more than 0", ""),
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
        "None of the 1 images has another one",
        "queries=",
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
    code, text = Launch(*words(demo_shards, tmp_path, *own)).finish()
    assert code == 0, text
    run = tmp_path / "spread"
    script = run / "code" / "launch" / "evaluate.py"
    script.write_text(script.read_text().replace('"Written to ', '"By its own code: '))
    command = [sys.executable, str(PROJECT / "launch" / "evaluate.py"), f"run={run}", "threads=1", "protocol=retrieval"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
    assert written(alone, capsys, BEGINNING)[1]["numbers"]["queries"] == 60


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
