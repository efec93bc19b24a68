"""Experiment trackers get every step once, by the table's names, and nothing they do disturbs a run."""

import importlib.util
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.metrics.sinks import COUNTERS, Series
from dist_ssl.metrics.trackers import detached
from dist_ssl.metrics.trackers.detached import Detached, Tracker, trackers
from dist_ssl.metrics.trackers.mlflow import MLflow, local_folder, make_own
from dist_ssl.metrics.trackers.tensorboard import TensorBoard
from dist_ssl.metrics.trackers.wandb import WeightsAndBiases
from dist_ssl.runtime.strange_files import is_ones_own
from launch import settings
from launch.run_dir import PROJECT
from tests.monitoring.prometheus import await_that

NAMES = ("tensorboard", "wandb", "mlflow")
ATTEMPTS = ((0, (5, 10, 15)), (10, (15, 20)))
"""Where two attempts start, and the steps that they report: the first was killed after step 15, its save is of 10."""
CONFIG = "method:\n  _target_: dist_ssl.methods.byol.BYOL\nepochs: 4\n"


def at(step: int) -> Progress:
    return Progress(epochs=4, step=step)


class Fake:
    """A tracker that fails, or stands still, where it is asked to."""

    def __init__(self, fails: tuple[int, ...] = (), gate: threading.Event | None = None) -> None:
        self.fails, self.gate = fails, gate
        self.kept: list[tuple[int, Mapping[str, float]]] = []

    def open(self, step: int) -> None:
        self._do(0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._do(step)
        self.kept.append((step, values))

    def close(self) -> None:
        self._do(99)

    def _do(self, step: int) -> None:
        if self.gate:
            self.gate.wait(600)
        if step in self.fails:
            raise OSError("the server is away")


NOWHERE = Path("nowhere") / "counters.json"


def reported(tracker: Tracker, *reports: tuple[int, dict[str, float]], counters: Path = NOWHERE) -> None:
    """One attempt, from its start to its end."""
    sink = Detached(tracker, "fake", counters)
    sink.open(at(0))
    for step, values in reports:
        sink.write(at(step), values)
    sink.close()


def test_names_are_those_of_the_table_and_counters_are_summed_up() -> None:
    fake = Fake()
    reported(
        fake, (5, {"loss": 2.0, "lr/student": 0.1, "fetch_retries": 2.0, "attempt": 1.0}), (6, {"fetch_retries": 3.0})
    )
    first = {"loss": 2.0, "learning_rate/student": 0.1, "fetch_retries_total": 2.0, "attempts_total": 1.0}
    assert fake.kept == [(5, first), (6, {"fetch_retries_total": 5.0})]


def test_counters_continue_over_attempts(tmp_path: Path) -> None:
    series, fake = Series(tmp_path / "checkpoints"), Fake()
    series.write({"fetch_retries": 7.0, "slow_images/CMYK": 2.0, "attempt": 1.0})
    report = {"fetch_retries": 1.0, "slow_images/CMYK": 1.0, "attempt": 2.0}
    reported(fake, (5, report), counters=tmp_path / COUNTERS)
    assert fake.kept == [(5, {"fetch_retries_total": 8.0, "slow_images_total/CMYK": 3.0, "attempts_total": 2.0})]


def test_a_value_that_is_not_finite_is_left_out() -> None:
    fake = Fake()
    reported(fake, (5, {"loss": float("nan"), "step": 5.0}))
    assert fake.kept == [(5, {"step": 5.0})]


@pytest.mark.parametrize(
    ("fails", "warning", "kept"),
    [
        ((0,), "cannot be opened and is left out: OSError: the server is away. Training goes on.", []),
        ((5, 6), "refuses reports: OSError", [7]),
        ((99,), "cannot be closed: OSError", [5, 6, 7]),
    ],
)
def test_a_failure_is_one_warning(
    caplog: pytest.LogCaptureFixture, fails: tuple[int, ...], warning: str, kept: list[int]
) -> None:
    fake = Fake(fails)
    reported(fake, *((step, {"loss": 1.0}) for step in (5, 6, 7)))
    assert [step for step, _ in fake.kept] == kept
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"The tracker fake {warning}")


def test_training_does_not_wait_for_a_tracker_that_stands_still(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "MOST_WAITING", 2)
    monkeypatch.setattr(detached, "PATIENCE", 0.01)
    gate = threading.Event()
    fake = Fake(gate=gate)
    reported(fake, *((step, {"loss": 1.0}) for step in range(9)))
    assert fake.kept == [], "every call has returned before the tracker moved"
    assert "is too slow: reports are given up" in caplog.text
    assert "does not answer" in caplog.text
    gate.set()


def test_a_sink_that_was_never_opened_can_be_closed() -> None:
    Detached(Fake(), "fake", NOWHERE).close()


def test_trackers_are_off_by_default_and_can_be_combined() -> None:
    def chosen(*words: str) -> dict[str, Any]:
        return dict(settings.compose(list(words), PROJECT / "configs")["tracker"])

    assert chosen() == {}
    assert chosen("tracker=tensorboard").keys() == {"tensorboard"}
    assert chosen("tracker=[wandb,mlflow]", "tracker.wandb.mode=online")["wandb"]["mode"] == "online"


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    chosen = settings.compose([f"tracker={name}"], PROJECT / "configs")["tracker"]
    monkeypatch.setattr(detached, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"{name}, which is not installed.\n.*pip install 'dist_ssl\[{name}\]'"):
        trackers(chosen, Path())


def test_every_tracker_has_an_extra_and_all_are_tested() -> None:
    assert {path.stem for path in (PROJECT / "configs" / "tracker").glob("*.yaml")} == {*NAMES, "none"}
    extras = (PROJECT / "pyproject.toml").read_text()
    for name in NAMES:
        assert f"\n{name} = [" in extras
        assert importlib.util.find_spec(name), "part of the extra `test`"


def resumed(folder: Path, make: type[TensorBoard] | type[WeightsAndBiases] | type[MLflow], **keys: Any) -> None:
    """Two attempts of one run, of which the second repeats a step."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    for number, (start, steps) in enumerate(ATTEMPTS, 1):
        sink = Detached(make(folder=folder, **keys), "real", NOWHERE)
        sink.open(at(start))
        for step in steps:
            sink.write(at(step), {"loss": 100 * number + step, "lr/student": 0.5})
        sink.write(at(steps[-1]), {"knn_accuracy": 0.1 * number})
        sink.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of this system."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("dist_ssl")]


def test_tensorboard_drops_what_a_resume_repeats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resumed(tmp_path / "a", TensorBoard)
    curves = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    curves.Reload()
    assert set(curves.Tags()["scalars"]) == {"loss", "learning_rate/student", "knn_accuracy_ratio"}
    assert [(point.step, point.value) for point in curves.Scalars("loss")] == [
        (5, 105),
        (10, 110),
        (15, 215),
        (20, 220),
    ]
    assert [event.step for event in curves.Scalars("knn_accuracy_ratio")] == [20]
    assert not warnings(caplog)


def records(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, in which W&B writes what it would send."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + length > len(data):  # still being written
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield whole
            whole = b""


def test_weights_and_biases_gets_every_step_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    resumed(tmp_path / "a", WeightsAndBiases, project="p")
    files = sorted((tmp_path / "a" / "wandb").glob("offline-run-*/*.wandb"))

    def known(path: Path) -> list[Any]:
        return [Record.FromString(data) for data in records(path)]

    def written(path: Path) -> bool:
        return any(record.HasField("exit") for record in known(path))

    await_that(lambda: all(map(written, files)), "W&B's own process has written what it was given")
    found = [record for path in files for record in known(path)]
    kept: list[tuple[int, str, Any]] = []
    for record in found:
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            kept.append((record.history.step.num, name, json.loads(item.value_json)))
    losses = [(step, value) for step, name, value in kept if name == "loss"]
    assert losses == [(5, 105), (10, 110), (15, 115), (20, 220)]
    assert [step for step, name, _ in kept if name == "knn_accuracy_ratio"] == [15, 20]
    own = {name for _, name, _ in kept if not name.startswith("_")}
    assert own == {"loss", "learning_rate/student", "knn_accuracy_ratio"}
    assert len({record.run.run_id for record in found} - {""}) == 1, "both attempts are one run"
    assert len(files) == 2
    assert not warnings(caplog)


def test_mlflow_gets_every_step_once_and_the_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow.tracking import MlflowClient

    resumed(tmp_path / "a", MLflow, experiment="trials")
    client = MlflowClient((tmp_path / "mlflow").as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("trials").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(5, 105), (10, 110), (15, 115), (20, 220)]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "knn_accuracy_ratio")] == [15, 20]
    assert run.data.metrics["learning_rate/student"] == 0.5
    assert run.data.params == {"method._target_": "dist_ssl.methods.byol.BYOL", "epochs": "4"}
    assert (run.info.run_name, run.info.status) == ("a", "FINISHED")
    assert not warnings(caplog)
    assert is_ones_own(tmp_path / "mlflow")
    kept = sorted(map(str, (tmp_path / "mlflow").rglob("*")))
    (tmp_path / "mlflow").chmod(0o777)
    reported(MLflow(tmp_path / "b", "trials"), (5, {"loss": 1.0}))
    [warning] = warnings(caplog)
    assert f"{tmp_path / 'mlflow'} belongs to another user, or others can change it.\n  Take the right" in warning
    assert sorted(map(str, (tmp_path / "mlflow").rglob("*"))) == kept, "MLflow was not opened"


def planted(folder: Path, how: str) -> None:
    """Prepare the folder of MLflow as another user may have prepared it, or as one's own may be."""
    (folder.parent / "elsewhere").mkdir()
    if how.endswith("link"):
        folder.symlink_to(folder.parent / "elsewhere")
    else:
        folder.mkdir()
    if how == "open experiment":
        (folder / "1").mkdir()
        (folder / "1").chmod(0o777)
    elif how == "file of another":
        (folder / "1").touch()
        os.chown(folder / "1", 12345, 12345)
    elif how.startswith("another's"):
        os.chown(folder, 12345, 12345, follow_symlinks=False)
    elif how == "link to nothing":
        folder.rmdir()
        folder.symlink_to(folder.parent / "nothing")


@pytest.mark.parametrize("uri", ["{}", "file://{}", "file:{}"])
@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ("own folder", False),
        ("own link", False),
        ("open experiment", True),
        ("link to nothing", True),
        *(
            pytest.param(how, True, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away"))
            for how in ("another's folder", "another's link", "file of another")
        ),
    ],
)
def test_mlflow_writes_only_where_nobody_else_can(tmp_path: Path, how: str, refused: bool, uri: str) -> None:
    place = tmp_path / "a b"
    planted(place, how)
    found = local_folder(uri.format(str(place) if uri == "{}" else quote(str(place))))
    assert found == place
    with pytest.raises(DataError, match=r"(?s)another user, .*tracker\.mlflow\.uri=") if refused else nullcontext():
        make_own(found)


@pytest.mark.parametrize("uri", ["http://host/a", "sqlite:///a.db", "databricks"])
def test_a_server_of_mlflow_is_no_folder(uri: str) -> None:
    assert local_folder(uri) is None
