"""`data=folder` becomes shards and ordinary keys: once per folder, and never against what the command says."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dist_ssl.data.storage import manifest
from dist_ssl.errors import ConfigError, DataError
from launch import preparation, science_keys, settings, slurm
from launch.run_dir import PROJECT
from shards.close_calls import CloseCall
from shards.picture_rules import KeyChoice
from tests.shards.pictures import files_in, folder_of


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards go below the current folder."""
    monkeypatch.chdir(tmp_path)


def packed(*words: str) -> tuple[dict[str, str], str]:
    """The overrides of a run with these, and what is printed."""
    console = Console(file=io.StringIO(), soft_wrap=True)
    (found,) = preparation.pack_folders([["data=folder", *words]], console)
    assert isinstance(console.file, io.StringIO)
    return dict(word.split("=", 1) for word in found), console.file.getvalue()


def test_a_folder_is_packed_once_beside_the_projects_data_and_what_was_chosen_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "my pictures", *(f"{n}.jpg" for n in range(12)))
    (tmp_path / "my pictures" / "notes.txt").write_text("x")
    before = files_in(tmp_path / "my pictures")
    found, text = packed("data.path=my pictures", "nodes=1")
    shards = Path(found["data.path"])
    assert shards.parent == Path("data")
    assert shards.name.startswith("my-pictures-")
    assert len(manifest.read(shards).split("train").samples) == 12
    assert found["data"] == "shards"
    assert (found["nodes"], found["encoder"], found["schedule.image_size"]) == ("1", "tiny", "16")
    assert "12 pictures, no labels, shorter sides 12 to 12 px" in text
    assert "Left out, because they are no images: 1 .txt" in text
    assert f"Packing them into {shards}" in text
    assert "  encoder=tiny   the pictures are small" in text
    assert "views.*.crop_min=" in text
    again, text = packed("data.path=my pictures", "nodes=1")
    assert again == found
    assert f"They are packed already, in {shards}." in text
    assert files_in(tmp_path / "my pictures") == before, "nothing is written into the folder"


def test_another_picture_makes_another_data_set(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    first, _ = packed("data.path=in")
    (tmp_path / "in" / "5.jpg").write_bytes((tmp_path / "in" / "1.jpg").read_bytes())
    second, text = packed("data.path=in", "data.into=elsewhere")
    assert Path(second["data.path"]).parent == Path("elsewhere")
    assert Path(second["data.path"]).name != Path(first["data.path"]).name
    assert re.search(r"train: 1 image repeats another one byte for byte; all are used: [15]\.", text)
    assert len(manifest.read(Path(first["data.path"])).split("train").samples) == 4


def test_what_the_command_says_wins(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n}.jpg" for n in range(8)))
    found, text = packed("data.path=in", "encoder=resnet18", "views=simclr", "epochs=3", "data.mean=[0.1,0.2,0.3]")
    assert {key: found[key] for key in ("encoder", "views", "epochs", "data.mean")} == {
        "encoder": "resnet18",
        "views": "simclr",
        "epochs": "3",
        "data.mean": "[0.1,0.2,0.3]",
    }
    assert not [key for key in found if key.startswith("views.")], "those were chosen for other views"
    assert "encoder=" not in text
    assert "data.std" in found
    found, _ = packed("data.path=in", "+recipe=demo_byol")
    assert {key.partition(".")[0] for key in found} == {"data", "+recipe"}


def test_a_learning_rate_for_a_larger_encoder_goes_with_that_encoder_only() -> None:
    from launch.own_pictures import open_choices

    chosen = [KeyChoice("encoder", "resnet18", "a"), KeyChoice("optim.base_lr", "1e-3", "b", beside="encoder")]
    assert [choice.key for choice in open_choices(chosen, [])] == ["encoder", "optim.base_lr"]
    assert open_choices(chosen, ["encoder=tiny"]) == []
    assert [choice.key for choice in open_choices(chosen, ["optim=lars"])] == ["encoder"]
    assert [choice.key for choice in open_choices(chosen, ["encoder.width=8"])] == ["encoder", "optim.base_lr"]


def test_labelled_folders_hold_out_enough_pictures_to_measure_an_accuracy(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{label}/{n}.jpg" for label in "ab" for n in range(15)))
    found, text = packed("data.path=in")
    assert "30 pictures, 6 of them held out, 2 classes (a, b), shorter sides" in text, (
        "which folders are classes is seen"
    )
    assert found["data.val"] == "val"
    assert len(manifest.read(Path(found["data.path"])).split("val").samples) == 6
    found, _ = packed("data.path=in", "data.hold_out=4")
    assert len(manifest.read(Path(found["data.path"])).split("val").samples) == 4
    found, _ = packed("data.path=in", "data.labels=false")
    assert found["data.val"] == "null"


def test_splits_of_the_folder_stay_what_they_are(tmp_path: Path) -> None:
    folder_of(
        tmp_path / "in", *(f"{part}/{label}/{n}.jpg" for part in ("train", "val") for label in "ab" for n in "12")
    )
    found, _ = packed("data.path=in")
    splits = manifest.read(Path(found["data.path"])).splits
    assert {name: len(split.samples) for name, split in splits.items()} == {"train": 4, "val": 4}


@pytest.mark.parametrize("word", ["data.hold_out=0", "data.labels=false"])
def test_folders_of_splits_inside_others_are_used_where_that_is_said(tmp_path: Path, word: str) -> None:
    folder_of(
        tmp_path / "in", *(f"pat{n}/{split}/{i}.jpg" for n in (1, 2) for split in ("train", "test") for i in "ab")
    )
    with pytest.raises(DataError, match=r"data\.hold_out=0 \(nothing is held out\) or data\.labels=false"):
        packed("data.path=in")
    _, said = packed("data.path=in", word)
    assert "all their pictures are used: pat1/, pat2/." in said
    assert "8 pictures" in said


def test_the_recorded_run_needs_no_folder(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n}.jpg" for n in range(12)))
    console = Console(quiet=True)
    (words,) = preparation.pack_folders([["data=folder", "data.path=in", "nodes=1", "cluster=local"]], console)
    run = preparation.begin(words, preparation.new_config(words, console))
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    _, config = preparation.resume([], run.folder, console)
    assert config["data"]["path"] == next(word.partition("=")[2] for word in words if word.startswith("data.path="))
    assert science_keys.science(config) == science_keys.science(run.config)
    assert {"into", "labels", "hold_out"}.isdisjoint(config["data"])


def test_a_dry_run_packs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "in", *(f"{n}.jpg" for n in range(12)))
    words = ["data=folder", "data.path=in", "nodes=1", "cluster=local", "dry_run=true"]
    assert slurm.main(words) == 0
    text = capsys.readouterr().out
    assert "image_size: 16" in text
    assert not (tmp_path / "data").exists()
    below = text.partition("dry_run: true")[2]
    assert "Chosen for these pictures" in below, "where a person sees it: below the config"
    assert text.count("Chosen for these pictures") == 1
    *_, last = below.strip().splitlines()
    assert last.startswith("in: 12 pictures, no labels, ")
    assert "without dry_run=true packs the pictures into data/in-" in last
    assert (
        slurm.main(["data=folder", "data.path=in", "nodes=1", "cluster=local", "dry_run=true", "-m", "seed=1,2"]) == 0
    )
    assert capsys.readouterr().out.count("Chosen for these pictures") == 1


def test_a_close_choice_is_said_unless_the_command_has_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "in", *(f"{n}.jpg" for n in range(12)))
    call = CloseCall([KeyChoice("encoder", "resnet18", "a")], "12 px are close")
    monkeypatch.setattr("launch.own_pictures.close_calls", lambda facts: [call])
    _, text = packed("data.path=in")
    assert "may be as good; to make it, add its words:\n  encoder=resnet18   12 px are close" in text
    _, text = packed("data.path=in", "encoder=tiny")
    assert "as good" not in text


def test_a_sweep_packs_once_and_says_it_once(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n}.jpg" for n in range(12)))
    console = Console(file=io.StringIO(), soft_wrap=True)
    runs = [["data=folder", "data.path=in", f"seed={seed}"] for seed in range(2)]
    found = preparation.pack_folders(runs, console)
    assert [words[-1] for words in found] == ["seed=0", "seed=1"]
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("Chosen for these pictures") == 1
    assert console.file.getvalue().count("Packing") == 1


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    found, _ = packed("data.path=in")
    with pytest.raises(ConfigError, match=r"holds shards, not pictures(?s:.*)data=shards"):
        packed(f"data.path={found['data.path']}")
    with pytest.raises(DataError, match=r"data\.path=none is not a folder"):
        packed("data.path=none")
    with pytest.raises(ConfigError, match=r"data\.path=None is not possible"):
        packed("data.path=null")
    with pytest.raises(ConfigError, match=r"data\.hold_out=4 leaves nothing of 4 images(?s:.*)data\.hold_out=0"):
        packed("data.path=in", "data.hold_out=4")
    with pytest.raises(DataError, match=r"data\.labels=true, but (?s:.*)leave data\.labels=true out"):
        packed("data.path=in", "data.labels=true")
    with pytest.raises(ConfigError, match=r"data\.hold_out=much is not possible"):
        packed("data.path=in", "data.hold_out=much")
    with pytest.raises(ConfigError, match=r"data\.labels='perhaps' is not possible"):
        packed("data.path=in", "data.labels=perhaps")


@pytest.mark.parametrize(
    "words", [("data.path=.",), ("data.path=in", "data.into=in/a b"), ("data.path=in", "data.into=in/../in")]
)
def test_nothing_is_written_among_the_pictures(tmp_path: Path, words: tuple[str, ...]) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    before = files_in(tmp_path)
    with pytest.raises(ConfigError, match=r"lies in the folder of the pictures(?s:.*)data\.into=\.\.\."):
        packed(*words)
    assert files_in(tmp_path) == before


def test_the_folder_for_shards_is_taken_literally(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    for name in ("2012", "it's, or it isn't"):
        found, _ = packed("data.path=in", f"data.into={name}")
        assert (tmp_path / name / Path(found["data.path"]).name / manifest.NAME).is_file()
    with pytest.raises(ConfigError, match=r"data\.into=None is not possible"):
        packed("data.path=in", "data.into=null")


def test_a_folder_that_another_command_packs_at_the_same_time_is_packed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch import own_pictures
    from shards import pack
    from shards.sources.imagefolder import pack_pictures

    folder_of(tmp_path / "in", "1.jpg", "2.jpg", "3.jpg", "4.jpg")

    def packed_before(*given: Any) -> None:
        pack_pictures(*given)
        pack_pictures(*given)

    monkeypatch.setattr(own_pictures, "pack_pictures", packed_before)
    first, _ = packed("data.path=in")
    assert len(manifest.read(Path(first["data.path"])).split("train").samples) == 4
    folder_of(tmp_path / "in", "5.jpg")

    def packed_beside(shards: Path, *given: Any) -> None:
        shards.with_name(f"{shards.name}.part").mkdir()
        with pack.locked(shards.with_name(f"{shards.name}.part")):
            pack_pictures(shards, *given)

    monkeypatch.setattr(own_pictures, "pack_pictures", packed_beside)
    with pytest.raises(DataError, match=r"is being written by another process(?s:.*)Wait for it(?s:.*)data\.into="):
        packed("data.path=in")


def test_an_existing_run_has_its_shards(capsys: pytest.CaptureFixture[str]) -> None:
    for way in ("resume=runs/x", "fork=runs/x@5"):
        assert slurm.main([way, "data=folder"]) == 2
        assert f"data=folder is for a new run: {way} has its shards" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"data\.source=folder is no source of shards"):
        preparation.new_config(["data='folder'", "data.path=x"], Console(quiet=True))


def test_the_keys_of_the_folder_are_those_of_its_config() -> None:
    from launch.own_pictures import OWN

    own = set(settings.compose(["data=folder", "data.path=x"], PROJECT / "configs")["data"])
    shards = set(settings.compose(["data=shards", "data.path=x"], PROJECT / "configs")["data"])
    assert {f"data.{key}" for key in own - shards} == set(OWN) - {"data.path"}


def test_a_folder_of_arrays_gets_their_channels_and_statistics(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 200, (20, 20, 5), dtype=np.uint8)
        np.save(tmp_path / "in" / f"{number}.npy", pixels)
    found, text = packed("data.path=in")
    assert manifest.read(Path(found["data.path"])).channels == 5
    assert found["data.mean"].count(",") == found["data.std"].count(",") == 4
    assert [found[f"views.view1.{key}"] for key in ("saturation", "hue", "gray_p")] == ["0.0"] * 3
    assert "8 pictures, no labels, shorter sides 20 to 20 px (median 20), 5 channels." in text
    assert "5 channels: these need red, green and blue" in text


def test_pictures_are_read_as_grey_where_it_is_said_and_that_is_another_data_set(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n}.jpg" for n in range(8)))
    colours, _ = packed("data.path=in")
    grey, _ = packed("data.path=in", "data.channels=1")
    assert colours["data.path"] != grey["data.path"]
    assert "," not in grey["data.mean"]
    assert "data.channels" not in grey
    with pytest.raises(ConfigError, match=r"data.channels=0 is not possible"):
        packed("data.path=in", "data.channels=0")


def test_the_range_that_is_given_reaches_the_measures_of_a_folder_of_floats(tmp_path: Path) -> None:
    (tmp_path / "floats").mkdir()
    for number in range(8):
        np.save(tmp_path / "floats" / f"{number}.npy", np.full((20, 20, 5), 40_000, dtype=np.float32))
    words = ("data.path=floats", "data.channels=5")
    keys, _ = packed(*words)
    assert keys["data.range"] == "65535"
    keys, _ = packed(*words, "data.range=80000")
    assert keys["data.mean"] == "[0.502,0.502,0.502,0.502,0.502]"
    with pytest.raises(ConfigError, match=r"data\.range=0 is not possible"):
        packed(*words, "data.range=0")
    keys, _ = packed(*words, "data.range=[40000,80000,160000,40000,40000]")
    assert keys["data.mean"] == "[1,0.502,0.251,1,1]"
    assert keys["data.range"] == "[40000,80000,160000,40000,40000]"
    with pytest.raises(ConfigError, match=r"data\.range=\[1,2\] is of 2 channels, and the images have 5 channels"):
        packed(*words, "data.range=[1,2]")
