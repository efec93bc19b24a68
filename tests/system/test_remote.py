"""Runs that stream from a server end with the weights of runs from a folder, and tell nobody their credentials."""

import base64
import contextlib
import json
import os
import random
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import report
from launch.variables import ADDRESS, ADDRESS_FILE
from tests.jobs import run_job, same_bits, small_config
from tests.ranks import Ranks
from tests.system.launching import WAIT_SECONDS, Launch, await_that, delivered, losses, status, targets, weights, words
from tests.web import FAULTS, Server, serving

USER, PASSWORD, SIGNATURE, TOKEN = (
    f"{text}x{os.getpid()}" for text in ("g4711", "opensesame", "sig=abc123", "planted7")
)
"""Those of another process that runs these tests are not taken for its own."""
PLANTED = {"SERVICE_TOKEN": TOKEN, "AWS_SECRET_ACCESS_KEY": f"{TOKEN}/aws", "https_proxy": f"http://{TOKEN}@proxy:1"}
"""Secrets of the environment, in which every process of a run is started."""
SECRETS = (USER, PASSWORD, SIGNATURE, TOKEN)


@pytest.fixture
def server(demo_shards: Path) -> Iterator[Server]:
    """A server of the demo shards that wants credentials and breaks a tenth of what it is asked for.

    It is too busy for the first request of every training shard: who is hit by chance depends on the threads.
    """
    choice = random.Random(3)
    faults = [fault for fault in FAULTS if fault != "stall"]

    def fault(path: str) -> str:
        if "train" in path and server.asked(path.removeprefix("/")) == 1:
            return "503"
        return choice.choice(faults) if choice.random() < 0.1 else ""

    with serving(demo_shards) as server:
        server.login = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        server.signature = SIGNATURE
        server.fault = fault
        yield server


def address(server: Server) -> str:
    """The address with its credentials."""
    return f"http://{USER}:{PASSWORD}@{server.url.removeprefix('http://')}?{SIGNATURE}"


def scraped(run: Path) -> dict[int | None, str]:
    """What the endpoints of a run and of its nodes answer."""
    direct, found = urllib.request.build_opener(urllib.request.ProxyHandler({})), {}
    for node, place in targets(run).items():
        with direct.open(f"http://{place}/metrics", timeout=WAIT_SECONDS) as answer:
            found[node] = answer.read().decode()
    return found


def told(folder: Path) -> list[str]:
    """Files of a run, or of its metrics, that hold a secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if any(word.encode() in path.read_bytes() for word in SECRETS)]


def telling_processes() -> set[int]:
    """The processes of this machine whose command line holds a secret: everybody can read it."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if any(word.encode() in path.read_bytes() for word in SECRETS):
                found.add(int(path.parent.name))
    return found


def resumed(run: Path, server: Server, folder: Path) -> tuple[str, set[int]]:
    """Resume a run from a server that a file names, to its end; what it printed, and the processes that told a secret.

    These are looked at while all its ranks wait for the server.
    """
    file = folder / "addresses"
    file.touch(mode=0o600)
    file.write_text(f"{address(server)}\n")
    environment = {key: value for key, value in os.environ.items() if key != ADDRESS}
    kept = (f"data.cache={folder / 'cache'}", "tracker=[wandb,tensorboard]")
    held, go_on, fault = threading.Event(), threading.Event(), server.fault

    def hold(path: str) -> str:
        if "train" in path and (run / "attempts" / "0002").exists():  # the launcher has checked the data before
            held.set()
            go_on.wait()
        return fault(path)

    server.fault = hold
    launch = Launch(
        *(f"resume={run}", f"data.path={server.url}", *kept),
        environment=environment | PLANTED | {ADDRESS_FILE: str(file)},
    )
    try:
        await_that(lambda: launch.process.poll() is not None or held.is_set(), "a rank that waits for the server")
        telling, workers = telling_processes(), launch.processes("launch.worker")
    finally:
        go_on.set()  # the server's thread waits for it, whatever comes
    code, text = launch.finish()
    assert len(workers) == 2, text
    assert code == 0, text
    return text, telling


def test_a_run_from_a_bad_server_ends_like_one_from_the_folder(
    server: Server, ranks: Ranks, demo_shards: Path, tmp_path: Path
) -> None:
    config = small_config(demo_shards, "epochs=2", "probe.every=2 epochs")
    known = ranks.run(run_job, 2, config, tmp_path / "local")
    for name, cache in (("cached", tmp_path / "cache"), ("direct", None)):
        data = {**config["data"], "path": address(server), "cache": cache and str(cache)}
        found = ranks.run(run_job, 2, {**config, "data": data}, tmp_path / name)
        assert [ids for ids, _ in found] == [ids for ids, _ in known]
        assert all(same_bits(own, other) for (_, own), (_, other) in zip(found, known, strict=True))
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert sum(line.get("fetched_bytes", 0) for line in lines) > 0
        assert sum(line.get("fetch_retries", 0) for line in lines) > 0


def test_a_run_that_moves_to_a_server_ends_with_the_same_bits_and_tells_no_secret(
    server: Server, ranks: Ranks, demo_shards: Path, tmp_path: Path
) -> None:
    length = ("epochs=3", "probe.every=3 epochs", "save_every=2 steps")
    ranks.run(run_job, 2, small_config(demo_shards, *length), tmp_path / "local")
    run = tmp_path / "moved"
    with serving(demo_shards) as gate:
        gate.hold_after = 2 * 60  # it cannot end before it is killed: three epochs take 180 samples
        served = ("data.cache=null", f"data.path={address(gate)}", f"metrics.textfile={tmp_path / 'series'}")
        given = words(demo_shards, tmp_path, "nodes=2", "name=moved", *length, *served)
        launch = Launch(*given, environment={**os.environ, **PLANTED})
        await_that(lambda: status(run)["step"] > 2, "some steps")
        shown, telling = scraped(run), telling_processes()
        launch.kill_all()
    assert telling == {launch.process.pid}, "the command was typed so; what it starts must not repeat it"
    assert "dist_ssl_step" in (tmp_path / "series" / "moved.prom").read_text(), "a lost run leaves its metrics"
    assert shown.keys() == targets(run).keys() == {None, 0, 1}
    assert not [node for node, text in shown.items() if any(word in text for word in SECRETS)]
    assert not told(tmp_path / "series")
    assert not told(tmp_path / "targets")
    assert not told(run)
    text, telling = resumed(run, server, tmp_path)
    assert not telling, "what a file has told no process repeats"
    assert same_bits(weights(run), weights(tmp_path / "local"))
    assert losses(run) == losses(tmp_path / "local")
    assert delivered(run) == delivered(tmp_path / "local")
    assert list((tmp_path / "cache").glob("*.tar"))
    assert list(run.glob("wandb/offline-run-*/*.wandb")), "what the tracker would send is searched too"
    assert list(run.glob("tensorboard/events.*"))
    assert report.main([f"run={run}"]) == 0
    for path in ("report.html", "attempts/0001/logs/rank_00000.log", "attempts/0002/outcome.json", "counters.json"):
        assert (run / path).is_file(), "it is searched too"
    assert not told(run)
    assert not [word for word in SECRETS if word in text]
