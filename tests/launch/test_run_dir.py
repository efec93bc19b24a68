"""A run folder is made once, its attempts have numbers of their own, and what is no run is refused with a remedy."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.end_names import FAILED
from dist_ssl.runtime.strange_files import read_regular
from launch import audit, prologue, report, run_dir, run_files, slurm, status
from launch.ending import Ending
from launch.run_dir import PROJECT, SNAPSHOT, AttemptDir, RunDir
from launch.run_files import read_yaml, write_yaml
from tests.fuzzing import bounded_memory

CONFIG = {"epochs": 3, "method": {"_target_": "dist_ssl.methods.mocov3.MoCoV3"}, "name": None}


@pytest.fixture
def small_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of few files, with what Python leaves behind."""
    project = tmp_path / "project"
    for name in SNAPSHOT:
        (project / name / "__pycache__").mkdir(parents=True)
        (project / name / "__pycache__" / "code.cpython-311.pyc").write_bytes(b"old")
        (project / name / "code.py").write_text(f"NAME = '{name}'\n")
    monkeypatch.setattr(run_dir, "PROJECT", project)
    return project


@pytest.fixture
def run(tmp_path: Path, small_project: Path) -> RunDir:
    """A run that has begun."""
    made = RunDir.create(tmp_path / "runs", "first", "mocov3")
    made.begin(CONFIG, ["method=mocov3", "epochs=3"])
    return made


def test_a_run_is_opened_as_it_began(run: RunDir) -> None:
    again = RunDir.open(run.folder)
    assert again.config == {"format": 1, **CONFIG}
    assert again.overrides == ["method=mocov3", "epochs=3"]
    assert again.newest_attempt() == 0
    assert again.outcome() is None


def test_the_snapshot_holds_the_code_and_nothing_compiled(run: RunDir) -> None:
    kept = sorted(str(path.relative_to(run.code)) for path in run.code.rglob("*") if path.is_file())
    assert kept == sorted(f"{name}/code.py" for name in SNAPSHOT)


def test_the_snapshot_of_this_project_can_run_alone() -> None:
    assert all((PROJECT / name).is_dir() for name in SNAPSHOT)
    assert {"dist_ssl", "launch", "configs"} <= set(SNAPSHOT)


@pytest.mark.parametrize("name", ["a:b", "a\nb", "a\tb"])
def test_a_name_that_would_break_a_path_or_a_script_is_refused(tmp_path: Path, name: str) -> None:
    rule = "its path has a colon or a control character"
    for runs, own, what in ((tmp_path, name, "name="), (tmp_path / name, "run", rule), (tmp_path / name, None, rule)):
        with pytest.raises(ConfigError, match=what) as raised:
            RunDir.create(runs, own, "mocov3")
        assert "\n" not in raised.value.problem
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_run_that_may_not_be_read_is_named(run: RunDir) -> None:
    run.folder.chmod(0o700)
    os.seteuid(12345)
    try:
        with pytest.raises(ConfigError, match="may not be read"):
            RunDir.open(run.folder)
    finally:
        os.seteuid(0)


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        RunDir.create(tmp_path / "file" / "runs", "run", "mocov3")


def test_a_name_that_is_taken_is_refused_with_the_way_to_resume(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="exists already") as raised:
        RunDir.create(run.folder.parent, "first", "mocov3")
    assert f"resume={run.folder}" in raised.value.remedy


@pytest.mark.parametrize(
    "name",
    [
        "a\n#SBATCH --wrap=x",
        "../a",
        "a/b",
        ".hidden",
        "-x",
        "a\x1b[2J",
        " ",
        "a;b",
        "a$(b)",
        "targets",
        "mlflow",
        "a.node_0000",
    ],
)
def test_a_name_that_is_not_one_folders_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a run"):
        RunDir.create(tmp_path, name, "simclr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["try 2", "a.node_1", "größer", "T=0.1,lr=3e-2", "7", 7])
def test_ordinary_names_are_kept(tmp_path: Path, name: str) -> None:
    assert RunDir.create(tmp_path, name, "simclr").folder == tmp_path / str(name)


def test_runs_without_a_name_get_distinct_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir.time, "strftime", lambda form: "1121-0907")
    made = [RunDir.create(tmp_path, None, "mocov3").folder.name for _ in range(3)]
    assert made == ["mocov3-1121-0907", "mocov3-1121-0907-2", "mocov3-1121-0907-3"]


def test_a_folder_that_is_no_run_is_refused_with_the_nearest_one(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="is not a run folder") as raised:
        RunDir.open(run.folder.parent / "frist")
    assert raised.value.remedy == f"Did you mean '{run.folder}'?"
    with pytest.raises(ConfigError, match="is not a run folder") as raised:
        RunDir.open(run.folder.parent / "another")
    assert raised.value.remedy == "Valid names: first.", "the folders above are no part of the comparison"


@pytest.mark.parametrize(("failures", "opened"), [(1, True), (3, True), (9, False)])
def test_a_file_server_that_hiccups_makes_a_run_no_other_folder(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, failures: int, opened: bool
) -> None:
    left, pauses = [failures], list[float]()

    def failing(path: Path, most: int) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_regular(path, most)

    monkeypatch.setattr(run_files, "read_regular", failing)
    monkeypatch.setattr("dist_ssl.runtime.tries.time.sleep", pauses.append)
    if opened:
        assert RunDir.open(run.folder).folder == run.folder
    else:
        with pytest.raises(OSError, match="Stale file handle"):
            RunDir.open(run.folder)
    assert pauses[:failures] == list(run_files.PAUSES[:failures])


def test_a_link_to_what_no_read_can_get_is_said_at_once_where_somebody_else_has_put_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would take 5 s and hold up `status`; other commands ended in a stack trace."""
    run.config_file.unlink()
    run.config_file.symlink_to("/proc/self/mem")
    pauses: list[float] = []
    monkeypatch.setattr("dist_ssl.runtime.tries.time.sleep", pauses.append)
    for command in (status.main, audit.main, report.main):
        assert command([f"run={run.folder}"]) == 2
        assert f"{run.config_file} cannot be used: Input/output error" in capsys.readouterr().out.replace("\n", "")
    assert pauses, "this one is the user's own"
    pauses.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(OSError, match="Input/output error"):
        RunDir.open(run.folder)
    assert not pauses


def test_a_job_begins_its_attempt_once_the_file_server_answers_again(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left, new_attempt = [2], RunDir.new_attempt
    run.submit(run.config)

    def failing(own: RunDir, config: dict[str, Any]) -> AttemptDir:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return new_attempt(own, config)

    monkeypatch.setattr(RunDir, "new_attempt", failing)
    monkeypatch.setattr("dist_ssl.runtime.tries.time.sleep", lambda seconds: None)
    assert prologue.main([str(run.folder)]) == 0
    assert capsys.readouterr().out == "1\n"


def test_the_current_folder_is_no_run(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder.parent)
    with pytest.raises(ConfigError, match=r"^\. is not a run folder"):
        RunDir.open(Path())
    with pytest.raises(ConfigError) as raised:
        RunDir.open(Path("frist"))
    assert raised.value.remedy == "Did you mean 'first'?"


def test_where_there_are_no_runs_the_remedy_is_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder") as raised:
        RunDir.open(tmp_path / "runs" / "first")
    assert "launch/slurm.py" in raised.value.remedy


def test_an_incomplete_run_folder_is_no_run(tmp_path: Path) -> None:
    made = RunDir.create(tmp_path, "half", "mocov3")
    made.code.mkdir()
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunDir.open(made.folder)


def test_a_run_of_another_version_is_refused_with_both_numbers(run: RunDir) -> None:
    write_yaml(run.folder / "config.yaml", {"format": 99, **CONFIG})
    with pytest.raises(ConfigError, match="format 99: this version reads 1"):
        RunDir.open(run.folder)


def test_attempts_are_numbered_from_one_and_keep_their_own_config(run: RunDir) -> None:
    first, second = run.new_attempt({"nodes": 4}), run.new_attempt({"nodes": 2})
    assert (first.number, second.number, run.newest_attempt()) == (1, 2, 2)
    assert (first.config, second.config) == ({"nodes": 4}, {"nodes": 2})
    assert first.folder.name == "0001"
    assert first.log("rank_00000").parent.is_dir()
    assert first.meeting.parent == first.folder


def test_a_rank_gives_its_reason_in_the_room_kept_for_it(run: RunDir) -> None:
    attempt = run.new_attempt({})
    attempt.reserve_reason(3)
    room = next(path for path in attempt.folder.rglob("rank_00003*")).stat().st_size
    assert attempt.reason(3) == ""
    attempt.give_reason(3, "The disk is full.\n  Free some space.")
    assert attempt.reason(3) == "The disk is full.\n  Free some space."
    assert next(path for path in attempt.folder.rglob("rank_00003*")).stat().st_size == room
    attempt.give_reason(3, "\N{EURO SIGN}" * 10_000)
    assert attempt.reason(3).startswith("\N{EURO SIGN}" * 1000)
    assert next(path for path in attempt.folder.rglob("rank_00003*")).stat().st_size == room


def test_a_rank_that_gave_no_reason_has_none(run: RunDir) -> None:
    assert run.new_attempt({}).reason(0) == ""


def test_a_rank_without_an_agent_gives_its_reason_too(run: RunDir) -> None:
    attempt = run.new_attempt({})
    attempt.give_reason(0, "started by torchrun")
    assert attempt.reason(0) == "started by torchrun"


def test_every_attempt_has_a_number_of_its_own(run: RunDir) -> None:
    together = Barrier(8)

    def begin(who: int) -> tuple[int, int]:
        together.wait()
        attempt = run.new_attempt({"who": who})
        return attempt.number, who

    with ThreadPoolExecutor(8) as pool:
        made = dict(pool.map(begin, range(8)))
    assert sorted(made) == list(range(1, 9))
    assert all(AttemptDir(run, number).config == {"who": who} for number, who in made.items())


def test_the_outcome_is_the_newest_attempts(run: RunDir) -> None:
    first = run.new_attempt({})
    (first.folder / "outcome.json").write_text(json.dumps({"outcome": "stopped", "reason": ""}))
    assert run.outcome() == "stopped"
    run.new_attempt({})
    assert run.outcome() is None


def test_yaml_is_written_whole_and_in_order(tmp_path: Path) -> None:
    values = {"b": 1, "a": {"d": None, "c": [0.5, "x"]}}
    write_yaml(tmp_path / "x.yaml", values)
    assert read_yaml(tmp_path / "x.yaml") == values
    assert list(read_yaml(tmp_path / "x.yaml")) == ["b", "a"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def laughs(levels: int, row: str, first: str) -> bytes:
    """A YAML file of few lines, each of which refers ten times to the one before it."""
    lines = [f"a0: &a0 {first}", *(row.format(name=k, before=", ".join([f"*a{k - 1}"] * 10)) for k in range(1, levels))]
    return "\n".join(lines).encode()


LAUGHS = [
    laughs(9, "a{name}: &a{name} [{before}]", "x"),
    laughs(9, "a{name}: &a{name} {{<<: [{before}]}}", "{k: 1}"),
    b"a: &a [" + b"*a, " * 15_000 + b"1]",
    b"a: &a {b: *a}",
    laughs(4, "a{name}: &a{name} [{before}]", "x" * 20_000),
]


@pytest.mark.parametrize("content", LAUGHS, ids=["lists", "merged", "cyclic", "a cycle of mappings", "a text"])
def test_references_of_yaml_do_not_make_much_out_of_little(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with bounded_memory(), pytest.raises(ConfigError, match="is damaged"):
        read_yaml(tmp_path / "x.yaml")


def test_a_value_that_stands_twice_is_read(tmp_path: Path) -> None:
    shared = {"mean": [0.5, 0.5]}
    write_yaml(tmp_path / "x.yaml", {"first": shared, "second": shared})
    assert b"&id" in (tmp_path / "x.yaml").read_bytes()
    assert read_yaml(tmp_path / "x.yaml") == {"first": shared, "second": shared}


def test_a_copy_of_an_attempt_is_no_attempt(run: RunDir) -> None:
    run.new_attempt(CONFIG)
    (run.folder / "attempts" / "0001_old").mkdir()
    (run.folder / "attempts" / "7").mkdir()
    assert run.newest_attempt() == 1


def test_the_last_config_is_that_of_the_newest_attempt_that_has_one(run: RunDir) -> None:
    assert run.last_config() == run.config
    run.new_attempt({**CONFIG, "threads": 3})
    (run.folder / "attempts" / "0002").mkdir()  # killed before its config was written
    assert run.last_config()["threads"] == 3
    for content in (b"", b"threads: ["):  # the power was lost
        (run.folder / "attempts" / "0002" / "config.yaml").write_bytes(content)
        assert run.last_config()["threads"] == 3


def test_of_many_damaged_configs_few_are_read(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.new_attempt({**CONFIG, "threads": 3})
    for _ in range(50):  # each takes seconds where somebody has made it as large as it may be
        run.new_attempt(CONFIG).config_file.write_bytes(b"threads: [")
    looked: list[Path] = []
    monkeypatch.setattr(run_dir, "read_yaml", lambda path: looked.append(path) or read_yaml(path))
    assert run.last_config() == read_yaml(run.config_file)
    assert len(looked) <= 5


def test_what_configs_hold_is_parsed_once_however_often_it_is_asked_for(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.new_attempt({**CONFIG, "threads": 3})
    for number in range(3):
        run.new_attempt(CONFIG).config_file.write_text(f"threads: [ {number}" + "a, " * 20_000)  # by somebody else
    parsed: list[str] = []
    loader = run_files.LOADER
    monkeypatch.setattr(run_files, "LOADER", lambda text: parsed.append(text) or loader(text))
    run_files._value_or_error.cache_clear()
    for _ in range(3):
        RunDir.open(run.folder)
        assert run.last_config()["threads"] == 3
    assert len(parsed) == len(set(parsed)) == 5


def test_what_a_command_changes_in_a_config_is_not_what_the_next_one_reads(run: RunDir) -> None:
    run.config["method"]["_target_"] = "other"
    assert run.config["method"] == CONFIG["method"]
    run.extend(["3 epochs"])
    assert run.config["extend"] == ["3 epochs"]


def test_a_config_that_is_too_large_is_said_to_be(run: RunDir) -> None:
    with pytest.raises(ConfigError, match=r"has \d+ bytes: at most 65536") as caught:
        run.new_attempt({"data": {"path": [f"data/{number}" for number in range(10_000)]}})
    assert "data.path" in caught.value.remedy
    run.config_file.write_text("a" * 70_000)
    with pytest.raises(ConfigError, match=r"config\.yaml has more than 64 kB"):
        RunDir.open(run.folder)


def test_what_a_run_stands_on_is_on_disk_before_it_counts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    own = os.fsync

    def fsync(file: int) -> None:
        synced.add(Path(f"/proc/self/fd/{file}").readlink().name)
        own(file)

    monkeypatch.setattr(os, "fsync", fsync)
    for change in (lambda: run.note_job("7"), lambda: Ending(FAILED).write(run.folder / "outcome.json")):
        synced.clear()
        change()
        assert synced, "the content is synced before the rename"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"outc', b'"finished"', b"\xff", b"{}"])
def test_a_report_that_a_kill_cut_short_is_none(run: RunDir, content: bytes) -> None:
    attempt = run.new_attempt(CONFIG)
    (attempt.folder / "outcome.json").write_bytes(content)
    assert run.outcome() is None
    assert Ending.read(attempt.folder / "outcome.json") is None


@pytest.mark.parametrize("content", [b"", b"a: [", b"words", b"- 1", b"\xff\xfe", b"\t"])
def test_a_config_that_is_damaged_is_named_with_a_remedy(run: RunDir, content: bytes) -> None:
    (run.folder / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged") as caught:
        RunDir.open(run.folder)
    assert "Put back a copy" in caught.value.remedy


def test_a_damaged_neighbour_does_not_matter(run: RunDir) -> None:
    (run.folder.parent / "other").mkdir()
    (run.folder.parent / "other" / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunDir.open(run.folder.parent / "nothing")


def test_the_code_of_a_run_is_for_its_owner_alone_whatever_the_modes_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    for name in SNAPSHOT:
        (project / name / "inner").mkdir(parents=True)
        (project / name / "inner" / "a.py").write_text("a = 1")
    for path in project.rglob("*"):
        path.chmod(0o777)
    monkeypatch.setattr(run_dir, "PROJECT", project)
    run = RunDir(tmp_path / "run")
    run.begin({}, [])
    copied = list(run.code.rglob("*"))
    assert len(copied) == 3 * len(SNAPSHOT)
    assert not [path for path in copied if path.stat().st_mode & 0o022]


def test_attempts_are_listed_and_not_counted(run: RunDir) -> None:
    run.new_attempt({**CONFIG, "threads": 3})
    for name in ("99999999999", "00002", "9" * 100, "\u0663\u0663\u0663\u0663"):
        (run.folder / "attempts" / name).mkdir()
    assert run.attempts() == [1, 99_999_999_999]
    assert run.last_config()["threads"] == 3, "without a look at a hundred billion folders"
    assert run.new_attempt({}).number == 100_000_000_000


def test_a_number_that_cannot_grow_does_not_hold_up_the_next_attempt(run: RunDir) -> None:
    (run.folder / "attempts" / ("9" * 18)).mkdir(parents=True)
    assert [run.new_attempt({}).number for _ in range(2)] == [10**18, 10**18 + 1]


@pytest.mark.parametrize(
    "content", ["1;evil 0", "$(evil) 0", "--help 0", "7", "", "7 -1", "\u0667 0", "7_ 0", "7" * 999]
)
def test_what_is_no_job_of_slurm_reaches_no_command(run: RunDir, content: str) -> None:
    (run.folder / "job").write_text(content)
    with pytest.raises(ConfigError, match="does not hold the number of a Slurm job"):
        run.job  # noqa: B018


@pytest.mark.parametrize("job", ["7", "12345678", "71_3"])
def test_the_numbers_of_jobs_are_kept(run: RunDir, job: str) -> None:
    run.note_job(job)
    assert run.job == (job, 0)


@pytest.mark.parametrize("name", ["a\n#SBATCH --wrap=x", "other:code"])
def test_a_run_that_was_renamed_can_be_looked_at_and_starts_nothing(run: RunDir, name: str) -> None:
    moved = run.folder.rename(run.folder.parent / name)
    found = RunDir.open(moved)
    assert found.config["epochs"] == 3
    for start in (found.python_path, lambda: found.submit({}), lambda: found.new_attempt({})):
        with pytest.raises(ConfigError, match="its path has a colon or a control character"):
            start()
    assert sorted(path.name for path in moved.iterdir()) == ["code", "config.yaml", "overrides.yaml", "source.json"]


def test_a_harmless_name_that_no_new_run_could_have_is_resumed(run: RunDir) -> None:
    moved = RunDir.open(run.folder.rename(run.folder.parent / ".it's (old) & kept"))
    assert moved.new_attempt({}).number == 1
    assert str(moved.code.resolve()) in moved.python_path()


def test_a_resume_of_a_renamed_run_says_so_before_anything_of_it_is_run(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = run.folder.rename(run.folder.parent / "other:code")
    assert slurm.main([f"resume={moved}", "dry_run=true"]) == 2
    assert "Give the folder, or the one that it is in, another name." in capsys.readouterr().out


def test_a_new_run_is_closed_to_others_where_the_folder_above_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    monkeypatch.setattr(os, "removexattr", lambda place, name: removed.append(str(place)))
    tmp_path.chmod(0o2777)
    before = os.umask(0)
    try:
        made = RunDir.create(tmp_path, "mine", "mocov3")
    finally:
        os.umask(before)
    assert not made.folder.stat().st_mode & 0o022
    assert removed == [str(made.folder)], "the default access list that it has inherited"
