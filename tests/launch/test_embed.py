"""Embeddings on disk: those that the encoder computes, the same bits however they were interrupted or shared out."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.saved_encoder import load_encoder
from launch import command_options, embed, embedding_parts, image_collection
from launch.embed import EmbedOptions
from launch.embedding_parts import EmbeddingPart
from launch.run_dir import PROJECT
from launch.variables import ADDRESS
from tests.test_saved_encoder import tiny


class Compared(int):
    """A number that counts how often any of its kind is compared."""

    count = 0

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return int(self) == other

    __hash__ = int.__hash__


NAMES = ("a.png", "b/c d.jpg", "b/ünï.png", "z/y/x.gif")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    tiny().write(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


def embedded(*words: str, rank: int = 0, size: int = 1) -> str:
    console = Console(file=io.StringIO(), soft_wrap=True)
    embed.embed(EmbedOptions.parse(["device=cpu", "threads=2", *words]), rank, size, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def read(folder: Path) -> tuple[list[str], list[int], torch.Tensor]:
    parts = [np.load(path) for path in sorted(folder.glob("part_*.npz"))]
    keys, ids, rows = ([part[name] for part in parts] for name in ("key", "id", "embedding"))
    return np.concatenate(keys).tolist(), np.concatenate(ids).tolist(), torch.from_numpy(np.concatenate(rows))


def bits(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_of_pictures_has_the_features_that_the_encoder_computes(
    encoder: Path, pictures: Path, tmp_path: Path
) -> None:
    text = embedded(f"encoder={encoder}", f"data.path={pictures}", f"out={tmp_path / 'out'}")
    keys, ids, rows = read(tmp_path / "out")
    assert keys == list(NAMES)
    assert ids == [0, 1, 2, 3]
    assert torch.equal(rows, load_encoder(encoder).embed([pictures / name for name in NAMES]))
    assert "Left out, because they are no images: 1 .txt." in text
    assert f"4 embeddings are in {tmp_path / 'out'} (1 file).\n" in text


def test_shards_have_the_features_that_the_encoder_computes(encoder: Path, demo_shards: Path, tmp_path: Path) -> None:
    embedded(f"encoder={encoder}", f"data.path={demo_shards}", "split=val", "batch=7", f"out={tmp_path / 'out'}")
    split = manifest.read(demo_shards).split("val")
    with Reader(split) as reader:
        images = [reader.read(number) for number in range(len(split.samples))]
    keys, ids, rows = read(tmp_path / "out")
    assert keys == [split.samples.key(number) for number in range(len(images))]
    assert ids == list(range(len(images)))
    assert torch.equal(
        rows, torch.cat([load_encoder(encoder).embed(images[first : first + 7]) for first in range(0, len(images), 7)])
    )


@pytest.fixture
def whole(encoder: Path, demo_shards: Path, tmp_path: Path) -> tuple[list[str], dict[str, bytes]]:
    """The words of a command but out=, and what it writes undisturbed."""
    words = [f"encoder={encoder}", f"data.path={demo_shards}", "split=train", "rows=16", "batch=6"]
    embedded(*words, f"out={tmp_path / 'whole'}")
    found = bits(tmp_path / "whole")
    assert len(found) == 5
    return words, found


def test_an_interrupted_command_goes_on_with_what_is_missing(
    whole: tuple[list[str], dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = whole
    written: list[int] = []
    write = embedding_parts.EmbeddingParts.write

    def interrupted(self: embedding_parts.EmbeddingParts, part: int, found: embedding_parts.EmbeddingPart) -> None:
        if part == 2 and len(written) == 2:
            raise KeyboardInterrupt
        written.append(part)
        write(self, part, found)

    monkeypatch.setattr(embedding_parts.EmbeddingParts, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded(*words, f"out={tmp_path / 'out'}")
    written.append(-1)
    embedded(*words, f"out={tmp_path / 'out'}")
    assert written == [0, 1, -1, 2, 3]
    assert bits(tmp_path / "out") == expected


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_processes_writes_the_same_bits(
    whole: tuple[list[str], dict[str, bytes]], size: int, tmp_path: Path
) -> None:
    words, expected = whole
    said = [embedded(*words, f"out={tmp_path / 'out'}", rank=rank, size=size) for rank in reversed(range(size))]
    assert bits(tmp_path / "out") == expected
    assert "are still to come" in said[0]
    assert "60 embeddings are in" in said[-1]


def test_an_image_that_cannot_be_read_is_left_out_and_listed(encoder: Path, pictures: Path, tmp_path: Path) -> None:
    whole = (pictures / NAMES[1]).read_bytes()
    (pictures / NAMES[1]).write_bytes(whole[: len(whole) // 2])
    text = embedded(f"encoder={encoder}", f"data.path={pictures}", f"out={tmp_path / 'out'}")
    keys, ids, rows = read(tmp_path / "out")
    assert keys == [NAMES[0], *NAMES[2:]]
    assert ids == [0, 2, 3]
    assert torch.equal(rows, load_encoder(encoder).embed([pictures / name for name in keys]))
    [listed] = json.loads((tmp_path / "out" / "_unreadable_00000.json").read_text())
    assert (listed["key"], listed["id"]) == (NAMES[1], 1)
    assert listed["reason"]
    assert "3 embeddings are in" in text
    assert "1 could not be read" in text


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device", "nested", "no list"])
def test_a_list_of_somebody_else_is_read_as_a_strangers(tmp_path: Path, kind: str) -> None:
    listed = tmp_path / "_unreadable_00000.json"
    if kind == "a pipe":
        os.mkfifo(listed)
    elif kind == "a link to a device":
        listed.symlink_to("/dev/zero")
    else:
        listed.write_text("[" * 100_000 if kind == "nested" else '{"a": 1}')
    with pytest.raises(ConfigError, match=r"_unreadable_00000\.json is damaged"):
        embedding_parts.unreadable(tmp_path)


def test_parquet_is_read_as_one_table(encoder: Path, demo_shards: Path, tmp_path: Path) -> None:
    words = [f"encoder={encoder}", f"data.path={demo_shards}", "split=train", "rows=16"]
    embedded(*words, f"out={tmp_path / 'npz'}")
    embedded(*words, "format=parquet", f"out={tmp_path / 'parquet'}")
    keys, ids, rows = read(tmp_path / "npz")
    table = pyarrow.parquet.read_table(tmp_path / "parquet").sort_by("id")
    assert table["key"].to_pylist() == keys
    assert table["id"].to_pylist() == ids
    assert torch.equal(torch.tensor(table["embedding"].to_pylist()), rows)


def test_a_folder_of_other_embeddings_is_left_alone(encoder: Path, pictures: Path, tmp_path: Path) -> None:
    words = [f"encoder={encoder}", f"data.path={pictures}", f"out={tmp_path / 'out'}"]
    embedded(*words)
    before = bits(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds other embeddings: their 'rows' is 4096, not 5"):
        embedded(*words, "rows=5")
    Image.new("RGB", (30, 30)).save(pictures / "new.png")
    with pytest.raises(ConfigError, match="their 'images' is 4, not 5"):
        embedded(*words)
    (pictures / "new.png").rename(pictures / NAMES[0])
    with pytest.raises(ConfigError, match="images were changed, added or removed since"):
        embedded(*words)
    assert bits(tmp_path / "out") == before


@pytest.mark.parametrize("moment", ["before it is read", "after it was read"])
def test_a_process_that_begins_while_another_one_does_finds_the_folder_described(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, read_report = embedding_parts.EmbeddingParts(tmp_path / "out", "npz", 1, 2), embedding_parts.read_report

    def beside_another(path: Path) -> Any:
        monkeypatch.setattr(embedding_parts, "read_report", read_report)
        found = read_report(path) if moment == "after it was read" else None
        parts.begin({"data": "abc"})
        parts.path(0).touch()
        return found or (read_report(path) if moment == "before it is read" else None)

    monkeypatch.setattr(embedding_parts, "read_report", beside_another)
    parts.begin({"data": "abc"})
    assert {path.name for path in parts.folder.iterdir()} == {"_embeddings.json", "part_00000.npz"}


def test_parts_that_are_there_are_counted_without_comparing_them_with_each_other(tmp_path: Path) -> None:
    parts = embedding_parts.EmbeddingParts(tmp_path, "npz", 2, 99)
    for number in range(40):
        parts.path(number).touch()
    images = SimpleNamespace(expect=lambda ids: None)
    ending = EmbeddingPart(["a"], np.zeros(1, dtype=np.int64), np.zeros((1, 2), dtype=np.float32), [])

    def part(ids: range, progress: Progress, task: TaskID) -> EmbeddingPart:
        progress.advance(task, len(ids))
        return ending

    embedder = SimpleNamespace(images=images, part=part)
    progress, compared = Progress(console=Console(quiet=True)), Compared.count
    embed.write_parts(parts, embedder, [Compared(number) for number in range(50)], progress)  # type: ignore[arg-type]
    assert Compared.count == compared
    [task] = progress.tasks
    assert (task.completed, task.total, len(bits(tmp_path))) == (99, 99, 50)


def test_an_encoder_that_was_fine_tuned_is_said_to_be(encoder: Path, pictures: Path, tmp_path: Path) -> None:
    saved = load_encoder(encoder)
    assert "finetuned" not in embedding_parts.described(saved)["encoder"]  # folders of earlier versions fit
    saved.description = replace(saved.description, finetuned="3 epochs on 9 images of 2 classes")
    saved.write(encoder)
    text = embedded(f"encoder={encoder}", f"data.path={pictures}", f"out={tmp_path / 'out'}")
    assert "The encoder was fine-tuned with labels: 3 epochs on 9 images of 2 classes." in text
    described = json.loads((tmp_path / "out" / "_embeddings.json").read_text())
    assert described["encoder"]["finetuned"] == "3 epochs on 9 images of 2 classes"


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_parts_that_nothing_describes_are_not_taken_for_ones_own(
    damage: str, encoder: Path, pictures: Path, tmp_path: Path
) -> None:
    words = [f"encoder={encoder}", f"data.path={pictures}", f"out={tmp_path / 'out'}"]
    embedded(*words)
    description = tmp_path / "out" / "_embeddings.json"
    description.unlink() if damage == "missing" else description.write_text(description.read_text()[:50])
    with pytest.raises(ConfigError, match=r"holds other files, and no whole _embeddings\.json"):
        embedded(*words)


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_said(
    out: str, encoder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = [f"encoder={encoder}", f"data.path={pictures}", f"out={tmp_path / out}", "device=cpu"]
    assert embed.main(words) == 2
    assert "cannot be written" in capsys.readouterr().out


def test_a_picture_that_changes_meanwhile_ends_the_command(
    encoder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = embed.collection

    def and_changed(*arguments: Any) -> Any:
        images = found(*arguments)
        Image.new("RGB", (30, 31)).save(pictures / NAMES[0])
        return images

    monkeypatch.setattr(embed, "collection", and_changed)
    with pytest.raises(DataError, match="has changed since the folder was listed"):
        embedded(f"encoder={encoder}", f"data.path={pictures}", f"out={tmp_path / 'out'}")


def test_a_password_is_neither_kept_nor_shown(
    encoder: Path, demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def there(place: Any, console: Console) -> Any:
        asked.append(place.path)
        return image_collection.collection(replace(place, path=str(demo_shards)), console)

    monkeypatch.setenv(ADDRESS, "")
    monkeypatch.setattr(embed, "collection", there)
    text = embedded(
        f"encoder={encoder}", "data.path=https://me:pa55w0rd@host/x", "split=val", f"out={tmp_path / 'out'}"
    )
    assert asked == ["https://me:pa55w0rd@host/x"]
    assert "pa55w0rd" not in text
    assert not any(b"pa55w0rd" in content for content in bits(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, (2, 3)),
        ({"RANK": "3", "WORLD_SIZE": "3"}, None),
        ({"RANK": "x", "WORLD_SIZE": "3"}, None),
        ({"RANK": "0", "WORLD_SIZE": "0"}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "5"}, None),
    ],
)
def test_a_process_among_several_knows_its_place_or_refuses(
    environment: dict[str, str], found: tuple[int, int] | None
) -> None:
    if found:
        assert command_options.place_among(environment) == found
    else:
        with pytest.raises(ConfigError, match="are not the place of one process among several"):
            command_options.place_among(environment)


def test_processes_at_work_at_once_share_the_files_with_the_bits_of_one(
    whole: tuple[list[str], dict[str, bytes]], tmp_path: Path
) -> None:
    words, expected = whole
    command = [sys.executable, "launch/embed.py", *words, "device=cpu", f"out={tmp_path / 'out'}"]
    places = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in range(2)]
    started = [subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **place}) for place in places]
    assert [process.wait() for process in started] == [0, 0]
    assert bits(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data.path=x"], "out is not given"),
        (["data.path=x", "out=y"], "The encoder is not clear"),
        (["data.path=x", "out=y", "run=a", "encoder=b"], "The encoder is not clear"),
        (["data.path=x", "out=y", "run=a", "rows=0"], "rows=0 is too small"),
        (["data.path=x", "out=y", "run=a", "rows=many"], "rows=many is not possible"),
        (["data.path=x", "out=y", "run=a", "rows=["], r"rows=\[ is not possible"),
        (["data.path=x", "out=y", "run=a", "format=csv"], "format=csv is not possible"),
        (["path=x"], "There is no key 'path'"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        EmbedOptions.parse(words)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"data.path": "demo"}, "has 2 splits: train, val"),
        ({"data.path": "demo", "split": "test"}, "no split 'test'"),
        ({"data.path": "pictures", "split": "train"}, "holds no shards"),
        ({"data.path": "absent"}, "is no folder"),
        ({"data.path": "encoder.safetensors"}, "is no folder"),
        ({"data.path": "empty"}, "holds no images"),
    ],
)
def test_images_that_are_not_there_are_refused(
    words: dict[str, Any], problem: str, encoder: Path, pictures: Path, demo_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"demo": demo_shards, **{name: tmp_path / name for name in ("pictures", "absent", "empty", encoder.name)}}
    given = {**words, "data.path": places[words["data.path"]]}
    with pytest.raises((ConfigError, DataError), match=problem):
        embedded(f"encoder={encoder}", f"out={tmp_path / 'out'}", *(f"{key}={value}" for key, value in given.items()))
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = {"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}
    monkeypatch.setattr(command_options, "set_single_precision", lambda device, tf32: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"no GPU for process 1 of this machine \(counted from 0\): it shows 1"):
        command_options.device_of("cuda", second)
    assert command_options.device_of("cuda", first) == torch.device("cuda", 0)
    assert command_options.device_of("cpu", second) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"device=cuda is not possible: .* shows no GPU"):
        command_options.device_of("cuda", {})
    assert command_options.device_of("auto", second) == torch.device("cpu")
