"""A config that somebody else wrote makes the launcher execute nothing and read nothing of the environment."""

import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch.utils.collect_env

from dist_ssl.errors import ConfigError
from launch import settings, slurm
from launch.run_dir import PROJECT
from tests.system.launching import words


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that is there once code of a config has run."""
    return tmp_path / "canary"


def refusal(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """What the launcher prints when it refuses these words."""
    assert slurm.main(list(given)) == 2
    text = capsys.readouterr().out
    assert "Traceback" not in text
    return text


def test_what_these_tests_are_about_can_happen(canary: Path) -> None:
    torch.utils.collect_env.run(f"touch {canary}")
    assert canary.exists()
    canary.unlink()
    pickle.loads(pickle.dumps(Touch(canary)))
    assert canary.exists()


CALLS = {
    "a shell command": ["encoder._target_=torch.utils.collect_env.run", "+encoder.command='touch {canary}'"],
    "a shell command of another group": ["method._target_=os.system", "+method.command='touch {canary}'"],
    "a program": ["encoder._target_=subprocess.call", "+encoder.args=[touch,'{canary}']"],
    "Python": ["encoder._target_=builtins.exec", "+encoder.source='open(\\'{canary}\\', \\'w\\')'"],
    "a pickle": ["encoder._target_=torch.load", "+encoder.f='{pickle}'", "+encoder.weights_only=false"],
    "code of a folder": ["encoder._target_=torch.hub.load", "+encoder.repo_or_dir='{folder}'", "+encoder.source=local"],
    "a pickle through timm": ["encoder=resnet18", "+encoder.checkpoint_path='{pickle}'"],
    "a pickle in place of timm's": ["encoder=resnet18", "+encoder.pretrained_cfg={{file: '{pickle}'}}"],
    "a model's folder": ["encoder=resnet18", "encoder.name='local-dir:{folder}'"],
    "a model of the hub": ["encoder=resnet18", "encoder.name='hf-hub:somebody/model'"],
    "a half of a schedule": ["schedule.planner=torch.utils.collect_env.run", "+schedule.command='touch {canary}'"],
}


@pytest.mark.parametrize("what", CALLS)
def test_a_config_calls_nothing(
    what: str, canary: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "weights.pt").write_bytes(pickle.dumps(Touch(canary)))
    (folder / "hubconf.py").write_text(f"open({str(canary)!r}, 'w')\n")
    given = [word.format(canary=canary, folder=folder, pickle=folder / "weights.pt") for word in CALLS[what]]
    base = words(demo_shards, tmp_path / "runs", "nodes=1")
    base = [word for word in base if "encoder=resnet18" not in given or not word.startswith("encoder.")]
    text = refusal(capsys, *base, *given)
    assert "is outside dist_ssl" in text or "is not possible" in text or "is not a model of timm" in text
    assert not canary.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("by", ["word", "added word", "group", "file"])
@pytest.mark.parametrize("place", ["pkg://theirs", "file://{folder}"])
def test_a_config_imports_no_package_and_reads_no_other_folder(
    by: str, place: str, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra imports a package in which it looks for configs."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    found = f"[{place.format(folder=tmp_path)}]"
    kinds = {"word": "hydra.searchpath={}", "added word": "+hydra.searchpath={}", "group": "+hydra={{searchpath: {}}}"}
    if by == "file":
        config = tmp_path / "configs" / "config.yaml"
        config.write_text(f'{config.read_text()}\n"h\\x79dra":\n  searchpath: {found}\n')
    given = [kinds[by].format(found)] if by in kinds else []
    with pytest.raises(ConfigError, match="configs are read from configs/ alone"):
        settings.compose(given, tmp_path / "configs")
    assert not canary.exists()
    assert "theirs" not in sys.modules


HIDDEN = {
    "a tag that few readers know": "a: !!python/object/apply:pathlib.PosixPath [x]\nhydra: {searchpath: [pkg://theirs]}",
    "a tag that no reader knows": "a: !theirs x\nhydra: {searchpath: [pkg://theirs]}",
    "a reference": "a: &own {searchpath: [pkg://theirs]}\nhydra: *own",
    "a merged key": "<<: {hydra: {searchpath: [pkg://theirs]}}",
    "a value of another key": "a: {searchpath: [pkg://theirs]}\nhydra: ${a}",
    "a broken line": "hydra: {searchpath: [pkg://theirs]}\n}",
}


@pytest.mark.parametrize("how", HIDDEN)
def test_a_file_that_hides_settings_of_hydra_imports_no_package(
    how: str, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one reader of YAML refuses, another may read."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    config = tmp_path / "configs" / "config.yaml"
    config.write_text(f"{config.read_text()}\n{HIDDEN[how]}\n")
    with pytest.raises(ConfigError, match=r"configs are read from configs/ alone|no YAML that configs may have"):
        settings.compose([], tmp_path / "configs")
    assert not canary.exists()


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:pathlib.PosixPath ['https://u:pw@host']", "!!binary aHR0cHM6Ly8="]
)
@pytest.mark.parametrize("file", ["config.yaml", "data/shards.yaml"])
def test_a_tag_makes_no_value_that_is_not_plain(value: str, file: str, tmp_path: Path) -> None:
    """A check of texts would pass it over."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    path = tmp_path / "configs" / file
    path.write_text(f"{path.read_text()}\nown: {value}\n")
    with pytest.raises(ConfigError, match=r"own has a tag of YAML") as caught:
        settings.compose(["data=shards", "data.path=data/demo"], tmp_path / "configs")
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("way", ["oc.env:SERVICE_TOKEN", "env:SERVICE_TOKEN", "oc.decode:${{oc.env:SERVICE_TOKEN}}"])
def test_a_config_reads_nothing_of_the_environment(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "hush4711")
    text = refusal(capsys, "dry_run=true", f"name=${{{way}}}".replace("{{", "{").replace("}}", "}"))
    assert "hush" not in text
