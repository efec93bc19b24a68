"""The commit that a run's code was copied from: git's, that of a forked run, or none."""

import json
import subprocess
from pathlib import Path

import pytest

from launch.source_commit import UNKNOWN, copy_for_owner, source_of, write_source


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "dist_ssl").mkdir(parents=True)
    (folder / "dist_ssl" / "a.py").write_text("a = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "--quiet"], ["add", "dist_ssl"], [*who, "commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def commit_of(project: Path) -> str:
    done = subprocess.run(["git", "-C", str(project), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_and_changed_files_are_gits(project: Path) -> None:
    assert source_of(project) == {"commit": commit_of(project), "changed": []}
    (project / "dist_ssl" / "a.py").write_text("a = 2\n")
    (project / "dist_ssl" / "b.py").write_text("b = 1\n")
    (project / "plan.png").write_text("a picture that a command has written, no code")
    assert source_of(project) == {"commit": commit_of(project), "changed": ["dist_ssl/a.py", "dist_ssl/b.py"]}


def test_code_that_git_does_not_know_has_no_commit(project: Path, tmp_path: Path) -> None:
    (project / "installed").mkdir()
    assert source_of(project / "installed") == UNKNOWN, "the commit would be that of another project"
    (tmp_path / "plain").mkdir()
    assert source_of(tmp_path / "plain") == UNKNOWN


@pytest.mark.parametrize("within_a_project", [False, True])
def test_what_was_installed_from_a_repository_has_the_commit_that_pip_recorded(
    project: Path, tmp_path: Path, within_a_project: bool
) -> None:
    site = (project if within_a_project else tmp_path) / "site-packages"
    record = site / "dist_ssl-0.1.0.dist-info" / "direct_url.json"
    record.parent.mkdir(parents=True)
    origin: dict[str, object] = {"url": "https://example.org/dist_ssl.git"}
    for info, commit in (
        ({"vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}, "c0ffee"),
        ({"dir_info": {}}, None),
        ({"vcs_info": {"commit_id": 3}}, None),
    ):
        record.write_text(json.dumps({**origin, **info}))
        assert source_of(site) == {"commit": commit, "changed": []}
    record.write_text("{")
    assert source_of(site) == UNKNOWN


def test_without_git_there_is_no_commit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert source_of(project) == UNKNOWN


def test_a_fork_has_the_commit_of_the_run_whose_code_it_takes(project: Path, tmp_path: Path) -> None:
    run, fork = tmp_path / "run", tmp_path / "fork"
    (run / "code").mkdir(parents=True)
    (run / "overrides.yaml").write_text("[]\n")
    fork.mkdir()
    write_source(run, project)
    write_source(fork, run / "code")
    assert json.loads((fork / "source.json").read_text())["commit"] == commit_of(project)


@pytest.mark.parametrize("text", ['{"auths": {"registry": "pa55w0rd"}}', "pa55w0rd", '{"commit": "pa55w0rd"}'])
@pytest.mark.parametrize("of_a_run", [False, True])
def test_another_file_of_that_name_is_not_copied(tmp_path: Path, text: str, of_a_run: bool) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "secrets.json").write_text(text)
    (tmp_path / "source.json").symlink_to(tmp_path / "secrets.json")
    if of_a_run:
        (tmp_path / "overrides.yaml").write_text("[]\n")
    assert source_of(tmp_path / "code") == UNKNOWN


@pytest.mark.parametrize("links", [False, True])
def test_a_copy_is_closed_to_others_and_follows_links_only_where_it_is_meant_to(tmp_path: Path, links: bool) -> None:
    source, target = tmp_path / "theirs", tmp_path / "mine"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a.jsonl").write_text("{}")
    (tmp_path / "private").write_text("secret")
    (source / "inner" / "b.jsonl").symlink_to(tmp_path / "private")
    for path in (source, source / "inner", source / "inner" / "a.jsonl"):
        path.chmod(0o777)
    copy_for_owner(source, target, [], links=links)
    found = sorted(path.name for path in target.rglob("*.jsonl"))
    assert found == (["a.jsonl", "b.jsonl"] if links else ["a.jsonl"])
    assert not [path for path in (target, *target.rglob("*")) if path.stat().st_mode & 0o022 or path.is_symlink()]
