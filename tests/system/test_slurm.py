"""On a real Slurm: the literal command finishes; preempted or out of time it goes on by itself with the same bits."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dist_ssl.runtime.end_names import FAILED, FINISHED, REFUSED
from launch import following
from launch import slurm as launcher
from launch.ending import STOPPED_CODE, Ending
from launch.run_dir import PROJECT, RunDir
from tests import slurm as cluster
from tests.slurm import Slurm
from tests.system.launching import (
    ENDLESS,
    WAIT_SECONDS,
    Launch,
    assert_same_training,
    await_that,
    losses,
    nothing_left,
    saved,
    status,
    train_undisturbed,
    words,
)

LONG = (*ENDLESS, "nodes=2", "save_every=10 steps")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if lacking := cluster.missing():
        pytest.skip(f"no {', '.join(lacking)}")
    with cluster.running(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        yield found


@pytest.fixture(scope="module")
def trained(slurm: Slurm, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The same training three times: preempted, out of time, and undisturbed on this machine.

    Per run the step after which it had been stopped and gone on. All three are ended by command: no machine is so fast
    that a run ends before it is disturbed.
    """
    runs = tmp_path_factory.mktemp("trained")
    whole_nodes = "cluster.cpus_per_task=8"  # else both jobs share two of them, and both are preempted
    given = submitted(demo_shards, runs, *LONG, whole_nodes, "wait=true")
    preempted, timed = runs / "preempted", runs / "timed"
    launches = [
        Launch(*given, "name=preempted", environment=slurm.environment),
        Launch(*given, "cluster.stop_ahead=15 minutes", "name=timed", environment=slurm.environment),
    ]
    await_that(lambda: status(preempted)["step"] > 20, "some steps")
    want_nodes_of(slurm, job_of(preempted))
    await_that(lambda: status(timed)["step"] > 20, "some steps")
    with little_time_left(slurm, job_of(timed)):
        await_that(lambda: endings(timed), "the job has stopped")
    await_that(lambda: endings(preempted), "the job has stopped")
    stopped = {str(run): max(saved(run)) for run in (preempted, timed)}
    for run in (preempted, timed):
        await_that(lambda run=run: max(saved(run)) > max(stopped.values()) + 10, "it has gone on")
        slurm.ask("scancel", job_of(run))
    for launch in launches:
        code, text = launch.finish()
        assert code == STOPPED_CODE, text
    train_undisturbed(demo_shards, runs / "undisturbed", max(stopped.values()) + 10, *LONG)
    return stopped


def submitted(data: Path, runs: Path, *more: str) -> list[str]:
    """The words of a Slurm job with small settings."""
    return words(data, runs, "cluster=slurm", "cluster.cpus_per_task=2", "cluster.stop_ahead=40 seconds", *more)


def run(slurm: Slurm, *given: str, seconds: float = WAIT_SECONDS) -> tuple[int, str]:
    return Launch(*given, environment=slurm.environment).finish(seconds)


def endings(folder: Path) -> list[Ending]:
    """How every attempt ended that left a word, in order."""
    found = [Ending.read(path) for path in sorted(folder.glob("attempts/*/outcome.json"))]
    return [ending for ending in found if ending]


def job_of(folder: Path) -> str:
    """The id of the run's newest job."""
    return RunDir(folder).job[0]


def want_nodes_of(slurm: Slurm, job: str) -> None:
    """Let somebody with more right ask for the nodes of a job."""
    nodes = slurm.ask("squeue", "--noheader", "--format=%N %D", f"--jobs={job}").split()
    urgent = ("--partition=urgent", "--exclusive", f"--nodelist={nodes[0]}", f"--nodes={nodes[1]}")
    slurm.ask("sbatch", *urgent, "--output=/dev/null", "--wrap=sleep 1")


@contextmanager
def little_time_left(slurm: Slurm, job: str) -> Iterator[None]:
    """A running job has five to six minutes left while the block runs, and as many as before after it."""
    record = slurm.record(job)
    hours, minutes, _ = record["RunTime"].split(":")
    slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={int(hours) * 60 + int(minutes) + 6}")
    yield
    slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={record['TimeLimit']}")


def test_the_literal_command_trains_on_four_nodes(
    slurm: Slurm,
    demo_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = words(demo_shards, tmp_path, "nodes=4", "name=four", "epochs=2", "wait=true", "cluster=auto")
    code, text = run(slurm, *given)
    assert code == 0, text
    folder = tmp_path / "four"
    job = job_of(folder)
    assert f"Submitted job {job}." in text
    assert f"Follow it: python launch/slurm.py follow={folder}" in text
    assert f"Cancel it: scancel {job}" in text
    assert "Finished. kNN accuracy" in text
    assert [ending.outcome for ending in endings(folder)] == [FINISHED]
    assert {p.name for p in (folder / "attempts" / "0001").glob("node_*.json")} == {
        f"node_000{n}.json" for n in range(4)
    }
    assert status(folder)["epoch"] == 2
    await_that(lambda: slurm.state(job) == "COMPLETED", "the job has completed")
    assert nothing_left(folder)
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    assert launcher.main([f"follow={folder}"]) == 0
    assert "Finished." in capsys.readouterr().out
    assert launcher.main([f"resume={folder}"]) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_preempted_job_comes_back_with_the_same_bits(trained: dict[str, int]) -> None:
    run, after = next((Path(name), step) for name, step in trained.items() if name.endswith("preempted"))
    first, *_ = endings(run)
    assert (first.outcome, first.signal, first.again) == ("stopped", "SIGTERM", "preempted")
    assert_same_training(run, run.parent / "undisturbed", after)


def test_a_job_out_of_time_comes_back_with_the_same_bits(trained: dict[str, int]) -> None:
    run, after = next((Path(name), step) for name, step in trained.items() if name.endswith("timed"))
    found = endings(run)
    assert found, "the job was never out of time"
    assert {(e.outcome, e.signal, e.again) for e in found} == {("stopped", "SIGUSR2", "time limit")}
    assert_same_training(run, run.parent / "undisturbed", after)


def test_a_cancelled_job_stays_away_and_its_run_can_be_resumed(slurm: Slurm, demo_shards: Path, tmp_path: Path) -> None:
    given = submitted(demo_shards, tmp_path, "name=cancelled", *LONG)
    launch = Launch(*given, "wait=true", environment=slurm.environment)
    folder = tmp_path / "cancelled"
    await_that(lambda: status(folder)["step"] > 5, "some steps")
    job = job_of(folder)
    code, text = run(slurm, f"resume={folder}")
    assert code == 2, text
    assert f"Job {job} of {folder} is still in the queue: running" in text
    slurm.ask("scancel", job)
    code, text = launch.finish()
    assert code == STOPPED_CODE, text
    assert f"Job {job} was cancelled: a resume continues from the last checkpoint." in text
    assert slurm.state(job) == "CANCELLED"
    await_that(lambda: nothing_left(folder), "its processes are gone")
    time.sleep(3)
    assert slurm.state(job) == "CANCELLED"
    assert endings(folder) == []
    code, text = run(slurm, f"resume={folder}")
    assert code == 0, text
    assert job_of(folder) != job
    slurm.ask("scancel", job_of(folder))


def test_a_killed_rank_ends_the_job(slurm: Slurm, demo_shards: Path, tmp_path: Path) -> None:
    given = submitted(demo_shards, tmp_path, "name=killed", *LONG, "wait=true")
    launch = Launch(*given, environment=slurm.environment)
    folder = tmp_path / "killed"
    await_that(lambda: status(folder)["step"] > 5, "some steps")
    workers = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())]
    victim = next(p for p in workers if "launch.worker" in p.info["cmdline"])
    victim.kill()
    await_that(lambda: endings(folder), "the attempt has ended")
    code, text = launch.finish()
    assert code == 1, text
    (ending,) = endings(folder)
    assert (ending.outcome, ending.again) == (FAILED, "")
    assert re.match(r"Rank [01] was ended by SIGKILL", ending.reason)
    await_that(lambda: nothing_left(folder), "its processes are gone")


@pytest.mark.chaos
def test_a_job_whose_node_dies_comes_back_by_itself(slurm: Slurm, demo_shards: Path, tmp_path: Path) -> None:
    given = submitted(demo_shards, tmp_path, "name=struck", *LONG, "timeout=20 seconds")
    code, text = run(slurm, *given)
    assert code == 0, text
    folder = tmp_path / "struck"
    await_that(lambda: saved(folder), "a checkpoint")
    job = job_of(folder)
    host, node = sorted(slurm.ask("scontrol", "show", "hostnames", slurm.record(job)["NodeList"]).split())
    assert slurm.record(job)["BatchHost"] == host
    with slurm.dead(node):
        await_that(lambda: endings(folder), "the attempt has ended")
        (ending,) = endings(folder)
        assert (ending.outcome, ending.again, ending.lost) == (FAILED, "something was lost", True)
        before = max(saved(folder))
        await_that(lambda: slurm.record(job)["ExcNodeList"] == node, "it is left out, by its job")
        # Slurm notices the dead node after SlurmdTimeout, minutes; until then the job waits for what it had there
        slurm.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=dead")
        await_that(lambda: max(saved(folder)) > before, "it has gone on")
        assert node not in slurm.record(job)["NodeList"]
        slurm.ask("scancel", job)
        await_that(lambda: nothing_left(folder), "its processes are gone")


def test_a_job_that_is_submitted_inside_an_allocation_has_nothing_of_it(
    slurm: Slurm, demo_shards: Path, tmp_path: Path
) -> None:
    given = submitted(demo_shards, tmp_path, "nodes=2", "name=inside", "epochs=2", "wait=true")
    within = ("salloc", "--quiet", "--nodes=3", "--ntasks=6", "--cpus-per-task=2")
    foreign = {"SBATCH_TIMELIMIT": "1", "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    code, text = Launch(*given, environment={**slurm.environment, **foreign}, within=within).finish()
    assert code == 0, text
    assert "Finished." in text
    record = slurm.record(job_of(tmp_path / "inside"))
    assert (record["NumNodes"], record["NumTasks"], record["TimeLimit"]) == ("2", "2", "01:00:00")


def test_a_node_without_the_gpus_that_were_granted_is_refused_by_name(
    slurm: Slurm, demo_shards: Path, tmp_path: Path
) -> None:
    own = ("nodes=1", "ranks_per_node=2", f"cluster.gpus_per_node={cluster.GPUS}")
    code, text = run(slurm, *submitted(demo_shards, tmp_path, "name=bare", *own, "wait=true"))
    assert code == 2, text
    assert f"{cluster.GPUS} GPUs were requested for each node, and {socket.gethostname()} shows 0." in text
    (ending,) = endings(tmp_path / "bare")
    assert (ending.outcome, ending.again) == (REFUSED, "")


def test_a_run_in_an_allocation_stops_there_and_goes_on_and_a_killed_command_leaves_nothing(
    slurm: Slurm, demo_shards: Path, tmp_path: Path
) -> None:
    folder, within = tmp_path / "held", ("salloc", "--quiet", "--nodes=2", "--exclusive")
    given = words(demo_shards, tmp_path, "cluster=allocation", "name=held", *LONG)
    code, text = run(slurm, *given)
    assert code == 2, text
    assert "this shell is in no allocation of Slurm" in text
    launch = Launch(*given, environment=slurm.environment, within=within)
    await_that(lambda: status(folder)["step"] > 5, "some steps")
    command_of(launch).send_signal(signal.SIGINT)
    code, text = launch.finish()
    assert code == STOPPED_CODE, text
    assert max(saved(folder)) == status(folder)["step"], "the last step made is the step saved"
    for node in (0, 1):
        assert Ending.read(folder / f"attempts/0001/node_000{node}.json"), "each node had an agent"
        assert (folder / f"attempts/0001/logs/node_000{node}.log").is_file()
    before = max(saved(folder))
    launch = Launch(f"resume={folder}", environment=slurm.environment, within=within)
    await_that(lambda: status(folder)["step"] > before + 5, "it has gone on")
    command_of(launch).kill()
    launch.finish()
    await_that(lambda: nothing_left(folder), "its processes are gone")
    assert max(saved(folder)) > before


def command_of(launch: Launch) -> psutil.Process:
    """The launcher that salloc has started."""
    children = psutil.Process(launch.process.pid).children(recursive=True)
    return next(p for p in children if str(PROJECT / "launch" / "slurm.py") in p.cmdline())


def test_a_sweep_is_one_array(slurm: Slurm, demo_shards: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"  # stands before Python as a container does
    image.write_text(f'#!/bin/sh\necho "$SLURM_PROCID" >>{tmp_path}/started\nexec "$@"\n')
    image.chmod(0o755)
    own = [f"cluster.python='{image} {sys.executable}'", "cluster.srun_args=['--cpu-bind=none']"]
    given = submitted(demo_shards, tmp_path, "nodes=1", "name=seeds", "epochs=2", "wait=true", *own)
    code, text = run(slurm, "-m", *given, "seed=0,1")
    assert code == 0, text
    jobs = [job_of(tmp_path / f"seeds-{number}") for number in (1, 2)]
    assert [job.partition("_")[2] for job in jobs] == ["0", "1"]
    assert len({job.partition("_")[0] for job in jobs}) == 1
    assert text.count("Finished.") == 2
    assert losses(tmp_path / "seeds-1") != losses(tmp_path / "seeds-2")
    assert (tmp_path / "started").read_text() == "0\n0\n", "the agents of both, and nothing else"


def test_of_an_array_only_the_preempted_task_comes_back(slurm: Slurm, demo_shards: Path, tmp_path: Path) -> None:
    # the last task of an array bears the id of the whole array: a careless requeue would revive the cancelled one
    given = submitted(demo_shards, tmp_path, *LONG, "nodes=1", "name=pair")
    code, text = run(slurm, "-m", *given, "seed=0,1")
    assert code == 0, text
    cancelled, preempted = tmp_path / "pair-1", tmp_path / "pair-2"
    await_that(lambda: min(status(cancelled)["step"], status(preempted)["step"]) > 5, "both train")
    slurm.ask("scancel", job_of(cancelled))
    want_nodes_of(slurm, job_of(preempted))
    await_that(lambda: RunDir(preempted).newest_attempt() == 2, "the preempted one is back")
    assert [ending.again for ending in endings(preempted)] == ["preempted"]
    assert slurm.record(job_of(preempted))["PreemptTime"] == "None", "a later failure would count as a preemption"
    assert slurm.state(job_of(cancelled)) == "CANCELLED"
    assert RunDir(cancelled).newest_attempt() == 1
    slurm.ask("scancel", job_of(preempted))


def test_a_job_that_cannot_begin_says_why(
    slurm: Slurm,
    demo_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setattr(following, "LATE_SECONDS", 1.0)
    given = submitted(demo_shards, tmp_path, "nodes=1", "name=broken", "wait=true")
    assert launcher.main([*given, "cluster.setup=['echo no such module >&2; exit 3']"]) == 1
    text = capsys.readouterr().out
    assert f"Job {job_of(tmp_path / 'broken')} ended without a report: no such module" in text


def test_the_words_of_sbatch_are_passed_on(slurm: Slurm, demo_shards: Path, tmp_path: Path) -> None:
    given = submitted(demo_shards, tmp_path, "nodes=1", "name=refused", "cluster.partition=nowhere")
    code, text = run(slurm, *given)
    assert code == 2, text
    assert "sbatch refused the job: sbatch: error: invalid partition specified: nowhere" in text
    assert "Traceback" not in text
    assert not (tmp_path / "refused").exists()


def test_nothing_is_left_in_the_queue(slurm: Slurm) -> None:
    def empty() -> bool:
        words = ("squeue", "--noheader")
        return not subprocess.run(words, env=slurm.environment, capture_output=True, text=True, check=True).stdout

    await_that(empty, "the queue is empty")
