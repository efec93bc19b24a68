"""Pre-training from Python: a call trains as the command does, and an interrupt loses nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dist_ssl
from dist_ssl.errors import ConfigError
from launch.fit import arguments_of, fit
from launch.run_dir import PROJECT
from launch.variables import ADDRESS, ADDRESS_FILE
from tests.jobs import SMALL
from tests.system.launching import await_that, status

INTERRUPTED = """
import dist_ssl, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start what is in the background without it
try:
    dist_ssl.fit(*sys.argv[1:], epochs=1000)
except KeyboardInterrupt as stopped:
    print("STOPPED", stopped, flush=True)
"""


def small(data: Path, runs: Path) -> tuple[str, ...]:
    own = (f"data.path={data}", "data.source=null", f"runs={runs}", "name=mine", "schedule.warmup=null")
    return (*SMALL, *own)


def test_a_call_returns_the_encoder_of_its_run(
    demo_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = dist_ssl.fit(*small(demo_shards, tmp_path), method="mocov3", epochs=1)
    assert f"Run folder: {tmp_path / 'mine'}" in capfd.readouterr().out
    assert (encoder.description.run, encoder.description.step) == ("mine", 5)
    with pytest.raises(ConfigError, match="refused, as the lines above say"):
        dist_ssl.fit(*small(demo_shards, tmp_path), method="mocov4")
    assert "Did you mean 'mocov3'?" in capfd.readouterr().out


def test_an_interrupted_call_can_be_gone_on_with(demo_shards: Path, tmp_path: Path) -> None:
    words = [*small(demo_shards, tmp_path), "method=mocov3"]
    command = [sys.executable, "-c", INTERRUPTED, *words]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        await_that(lambda: status(tmp_path / "mine")["step"] >= 2, "the run trains")
        process.send_signal(signal.SIGINT)
        shown = process.communicate()[0]
    assert "nothing is lost" in shown
    assert f"STOPPED The run is saved in {tmp_path / 'mine'}. Go on: dist_ssl.fit(resume=" in shown


def test_values_are_written_as_on_a_command_line() -> None:
    found = arguments_of(("data.path=a",), {"nodes": 2, "probe": None, "engine.bitwise": True, "tracker": ["a", "b"]})
    assert found == ["cluster=local", "data.path=a", "nodes=2", "probe=null", "engine.bitwise=true", "tracker=[a,b]"]
    assert arguments_of((), {"resume": "runs/x"}) == ["cluster=local", "resume=runs/x"]
    for word in ("-m", "follow=runs/x", "dry_run=true"):
        with pytest.raises(ConfigError, match="fit trains one run"):
            arguments_of((word,), {})


def test_a_login_is_in_no_command_line_and_stays_out_of_the_callers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "addresses"
    secrets.touch(mode=0o600)
    secrets.write_text("https://u:fromfile@host/y\n")
    monkeypatch.setenv(ADDRESS_FILE, str(secrets))
    monkeypatch.delenv(ADDRESS, raising=False)
    before, given = dict(os.environ), "https://g4711:opensesame@host/x"
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], *, env: dict[str, str], **_: object) -> None:
        started.append((command, env))
        raise FileNotFoundError

    monkeypatch.setattr("launch.fit.subprocess.Popen", start)
    for words, keys in (((f"data.path={given}",), {}), ((), {"data.path": given})):
        with pytest.raises(FileNotFoundError):
            fit(*words, "method=simclr", **keys)
        assert dict(os.environ) == before
    for command, environment in started:
        assert not any("sesame" in word or "fromfile" in word for word in command)
        assert "data.path=https://host/x" in command
        assert environment[ADDRESS].splitlines() == [given, "https://u:fromfile@host/y"]
        assert ADDRESS_FILE not in environment
    assert len(started) == 2
