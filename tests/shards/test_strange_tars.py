"""Tars as people have them: everything is read right, or one line says what is not read and why."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from dist_ssl.evaluate.evidence import check_probed
from shards import verify
from shards.make import make, report
from shards.make import run as make_command
from shards.sources.imagefolder import FolderOptions
from shards.sources.tars import TarOptions

HUGE = 123456789012345678


def jpeg(number: int = 0, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(file, kind)
    return file.getvalue()


def tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def indexed(folder: Path, **options: object) -> tuple[manifest.Manifest, str]:
    """The manifest of the tars in a folder, and what was printed."""
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    make("tars", None, console, TarOptions(folder, **options))  # type: ignore[arg-type]
    report(folder, console)
    assert verify.verify(folder, verify.VerifyOptions(), Console(quiet=True)) == []
    return manifest.read(folder), console.export_text()


def packed(folder: Path, out: Path, **options: object) -> tuple[manifest.Manifest, str]:
    console = Console(record=True, soft_wrap=True, file=io.StringIO())
    make("imagefolder", out, console, FolderOptions(folder, **options))  # type: ignore[arg-type]
    report(out, console)
    assert verify.verify(out, verify.VerifyOptions(), Console(quiet=True)) == []
    return manifest.read(out), console.export_text()


@pytest.mark.parametrize("name", ["cam1.{:06d}", "a/b.c.{:03d}", "2024-01-31 10.15.{:02d}"])
def test_names_with_dots_of_their_own_lose_no_image(tmp_path: Path, name: str) -> None:
    members = {f"{name.format(n)}.{kind}": data for n in range(60) for kind, data in (("jpg", jpeg(n)), ("cls", b"1"))}
    tar(tmp_path / "train-000000.tar", members)
    found, said = indexed(tmp_path)
    samples = found.split("train").samples
    assert [samples.key(n) for n in range(len(samples))] == [name.format(n) for n in range(60)]
    assert "59 of 60 images would be lost. Keys end before the last dot (keys=first" in said
    assert found.split("train").labelled


def test_of_few_images_numbers_are_names(tmp_path: Path) -> None:
    """Two pictures of a sample are `1.left.jpg` and `1.right.jpg`; `cam1.1.jpg` and `cam1.2.jpg` are two samples."""
    tar(tmp_path / "train.tar", {f"cam{camera}.{n}.jpg": jpeg(n) for camera in (1, 2) for n in range(3)})
    found, said = indexed(tmp_path)
    assert len(found.split("train").samples) == 6
    assert "4 of 6 images would be lost" in said


@pytest.mark.parametrize("labelled", [False, True])
def test_a_small_tar_does_not_change_the_samples_of_the_others(tmp_path: Path, labelled: bool) -> None:
    """Views with numbers: the last tar has fewer samples than views, which says nothing about the whole data set."""
    for name, numbers in (("train-0", range(6)), ("train-1", range(6, 12)), ("train-2", range(12, 14))):
        members = {f"{n:03d}.{view}.jpg": jpeg(n) for n in numbers for view in range(3)}
        members |= {f"{n:03d}.cls": str(n % 2).encode() for n in numbers if labelled}
        tar(tmp_path / f"{name}.tar", members)
    found, said = indexed(tmp_path)
    assert len(found.split("train").samples) == 14
    assert found.split("train").labelled == labelled
    assert "28 images are not used" in said
    assert "would be lost" not in said


@pytest.mark.parametrize("labelled", [False, True])
def test_frames_of_films_are_samples_however_many_films_there_are(tmp_path: Path, labelled: bool) -> None:
    """More films than frames: every frame's number is that of frames of other films too."""
    names = [f"film{film:02d}.{frame:03d}" for film in range(12) for frame in range(11)]
    members = {f"{name}.jpg": jpeg() for name in names}
    tar(tmp_path / "train.tar", members | {f"{name}.cls": b"1" for name in names if labelled})
    found, said = indexed(tmp_path)
    assert "120 of 132 images would be lost" in said
    assert len(found.split("train").samples) == 132
    assert found.split("train").labelled == labelled


@pytest.mark.parametrize("labels", [True, False])
def test_labels_named_as_images_with_dots_are_not_lost(tmp_path: Path, labels: bool) -> None:
    names = [f"photo{n}.v2" for n in range(5)]
    tar(
        tmp_path / "train.tar",
        {f"{name}.{kind}": jpeg() if kind == "jpg" else b"1" for name in names for kind in ("jpg", "cls")},
    )
    found, said = indexed(tmp_path, labels=labels)
    samples = found.split("train").samples
    assert len(samples) == 5
    assert samples.labels.tolist() == ([0] * 5 if labels else [-1] * 5)
    assert samples.key(0) == ("photo0.v2" if labels else "photo0")
    assert ("5 labels would be lost" in said) == labels


def test_further_labels_of_images_without_dots_change_no_key(tmp_path: Path) -> None:
    kinds = ("cls", "coarse.cls")
    members = {f"{n}.{kind}": str(n % 2).encode() for n in range(5) for kind in kinds}
    tar(tmp_path / "train.tar", members | {f"{n}.jpg": jpeg(n) for n in range(5)})
    found, said = indexed(tmp_path)
    assert found.split("train").samples.labels.tolist() == [0, 1, 0, 1, 0]
    assert "would be lost" not in said


@pytest.mark.parametrize("labels", [True, False])
def test_labels_named_by_the_first_dot_say_where_keys_end(tmp_path: Path, labels: bool) -> None:
    members = {f"{n}.{view}.jpg": jpeg(n) for n in range(2) for view in range(3)}
    tar(tmp_path / "train.tar", members | {"0.cls": b"0", "1.cls": b"1"})
    found, _ = indexed(tmp_path, labels=labels)
    assert len(found.split("train").samples) == 2
    assert found.split("train").samples.labels.tolist() == ([0, 1] if labels else [-1, -1])


def test_names_with_dots_are_recognised_over_all_tars(tmp_path: Path) -> None:
    """No tar has as many as FEW kinds, all together have; one stray label by the first dot does not decide."""
    days = ["mo", "tu", "we", "th", "fr", "sa", "su", "ho", "fa", "br", "la", "ex"]
    for number, own in enumerate((days[:6], days[6:])):
        members = {f"cam1.{day}.{kind}": data for day in own for kind, data in (("jpg", jpeg()), ("cls", b"1"))}
        tar(tmp_path / f"train-{number}.tar", members | ({} if number else {"cam1.cls": b"0"}))
    found, said = indexed(tmp_path)
    assert len(found.split("train").samples) == len(days)
    assert "10 of 12 images would be lost" in said


@pytest.mark.parametrize(("keys", "samples"), [("first", 2), ("last", 10)])
def test_where_keys_end_can_be_said(tmp_path: Path, keys: str, samples: int) -> None:
    members = {f"{camera}.{day}.jpg": jpeg() for camera in "ab" for day in ("mo", "tu", "we", "th", "fr")}
    tar(tmp_path / "train.tar", members)
    found, said = indexed(tmp_path, keys=keys)
    assert len(found.split("train").samples) == samples
    assert ("8 images are not used. If these are samples of their own" in said) == (keys == "first")


def test_a_rule_for_keys_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(make_command, ["source=tars", f"path={tmp_path}", "keys=middle"]) == 2
    assert "keys=middle is not possible.\n  It may be auto, first, last." in capsys.readouterr().out


def test_an_image_that_is_named_is_found_behind_dots(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", {f"cam1.{n:03d}.jpg": jpeg(n) for n in range(20)})
    with pytest.raises(DataError, match=r"holds \.jpg members") as caught:
        indexed(tmp_path, image="jpg")
    assert "keys=last" in caught.value.remedy
    found, _ = indexed(tmp_path, image="jpg", keys="last")
    assert len(found.split("train").samples) == 20


def test_several_images_of_one_sample_are_still_that(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", {f"{n}.{side}.jpg": jpeg(n) for n in range(60) for side in ("left", "right")})
    found, said = indexed(tmp_path)
    assert len(found.split("train").samples) == 60
    assert "60 samples have several images: one was chosen" in said


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["cat", "dog", "cat"], ("cat", "dog"), [0, 1, 0]),
        (["7", "5", "7"], ("5", "7"), [1, 0, 1]),
        ([f"{HUGE + 1}", f"{HUGE}", "10"], ("10", f"{HUGE}", f"{HUGE + 1}"), [2, 1, 0]),
        (["1", "0", "2"], (), [1, 0, 2]),
        (["01", "00", "1"], (), [1, 0, 1]),
        (["ä b", "n01440764", "-7"], ("-7", "n01440764", "ä b"), [2, 1, 0]),
    ],
)  # fmt: skip
def test_labels_are_names(tmp_path: Path, labels: list[str], classes: tuple[str, ...], numbers: list[int]) -> None:
    members = {f"{n}.jpg": jpeg(n) for n in range(3)} | {f"{n}.cls": text.encode() for n, text in enumerate(labels)}
    tar(tmp_path / "train.tar", members)
    found, said = indexed(tmp_path)
    assert found.classes == classes
    assert found.split("train").samples.labels.tolist() == numbers
    assert not classes or f"{len(classes)} classes: {', '.join(classes)}" in said


def test_train_and_val_share_the_numbers_of_their_classes(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", {"1.jpg": jpeg(1), "1.cls": b"owl", "2.jpg": jpeg(2), "2.cls": b"ant"})
    tar(tmp_path / "val.tar", {"3.jpg": jpeg(3), "3.cls": b"bee", "4.jpg": jpeg(4), "4.cls": b"owl"})
    found, _ = indexed(tmp_path)
    assert found.classes == ("ant", "bee", "owl")
    assert found.split("train").samples.labels.tolist() == [2, 0]
    assert found.split("val").samples.labels.tolist() == [1, 2]


@pytest.mark.parametrize("text", [b"", b"two\nlines", b"\xff\xfe", b"x" * 201, b"\x1b[2J"])
def test_a_label_that_is_no_name_is_refused_and_can_be_left_out(tmp_path: Path, text: bytes) -> None:
    tar(tmp_path / "train.tar", {"1.jpg": jpeg(), "1.cls": text})
    with pytest.raises(DataError, match="a label is a number or a name of one line") as caught:
        indexed(tmp_path)
    assert "labels=false" in caught.value.remedy
    found, _ = indexed(tmp_path, labels=False)
    assert not found.split("train").labelled


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    members = {f"{n:05d}.jpg": jpeg(n) for n in range(120)}
    members |= {f"{n:05d}.cls": str(n % 3).encode() for n in range(120) if n != 17}
    tar(tmp_path / "train-000000.tar", members)
    _, said = indexed(tmp_path)
    assert "train: 1 of 120 samples has no label" in said
    assert "00017" in said
    found = manifest.read(tmp_path)
    with pytest.raises(DataError, match=r"1 of the 120 samples of split train .*\(the first: 00017\)") as caught:
        check_probed(found.split("train"))
    assert "data.val=null" in caught.value.remedy


def test_a_missing_label_is_named_whatever_split_or_key_it_is_of(tmp_path: Path) -> None:
    labels = {f"a/cam.{n}.cls": b"ant" for n in range(30)} | {"v0.cls": b"bee", "v1.cls": b"-1"}
    images = {f"a/cam.{n}.jpg": jpeg(n) for n in range(30)}
    del labels["a/cam.4.cls"]
    tar(tmp_path / "train-0.tar", images | {key: text for key, text in labels.items() if key.startswith("a")})
    held = {f"v{n}.jpg": jpeg(n) for n in range(3)}
    tar(tmp_path / "val-0.tar", held | {key: text for key, text in labels.items() if key.startswith("v")})
    found, said = indexed(tmp_path)
    assert "train: 1 of 30 samples has no label, so there can be no probe: a/cam.4." in said
    assert "val: 2 of 3 samples have no label, so there can be no probe: v1, v2." in said
    assert found.split("train").samples.labels.tolist() == [-1 if n == 4 else 0 for n in range(30)]


def test_tars_and_members_that_are_not_used_are_named(tmp_path: Path) -> None:
    tar(
        tmp_path / "train-0.tar",
        {"1.jpg": jpeg(), "1.json": b"{}", "1.txt": b"a cat", "2.jpg": jpeg(), "2.json": b"{}"},
    )
    tar(tmp_path / "val-0.tar", {"1.jpg": jpeg(1)})
    tar(tmp_path / "test-0.tar", {"1.jpg": jpeg(2)})
    found, said = indexed(tmp_path)
    assert set(found.splits) == {"train", "val"}
    assert "1 tar is in no split (val=... or train=... takes it): test-0.tar." in said
    assert "Left out, as neither images nor labels (.cls): 2 .json, 1 .txt." in said


def test_a_test_set_beside_the_training_set_is_held_out(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", {"1.jpg": jpeg()})
    tar(tmp_path / "test-0.tar", {"1.jpg": jpeg(2)})
    found, _ = indexed(tmp_path)
    assert [shard.name for shard in found.split("val").shards] == ["test-0.tar"]


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (["imagenet-train-0", "imagenet-validation-0"], ["imagenet-train-0"], ["imagenet-validation-0"]),
        (["train2017", "val2017"], ["train2017"], ["val2017"]),
        (["Training_1", "DEV_1", "test_1"], ["Training_1"], ["DEV_1"]),
        (["train/0", "train/1", "val/0"], ["train/0", "train/1"], ["val/0"]),
        (["images-0", "images-1", "images-test-0"], ["images-0", "images-1"], ["images-test-0"]),
        (["trainset-0", "testset-0"], ["trainset-0"], ["testset-0"]),
        (["valley-0", "testament-0"], ["testament-0", "valley-0"], []),
        (["train-val-0", "b"], ["b", "train-val-0"], []),
    ],
)
def test_names_of_tars_tell_their_splits(tmp_path: Path, names: list[str], train: list[str], val: list[str]) -> None:
    for number, name in enumerate(names):
        tar(tmp_path / f"{name}.tar", {f"{number}.jpg": jpeg(number)})
    found, said = indexed(tmp_path)
    shards = {split: [shard.name.removesuffix(".tar") for shard in own.shards] for split, own in found.splits.items()}
    assert shards == ({"train": train, "val": val} if val else {"train": train})
    unused = sorted({*names} - {*train, *val})
    assert not unused or f"1 tar is in no split (val=... or train=... takes it): {unused[0]}.tar." in said


def test_the_folder_of_the_tars_names_no_split(tmp_path: Path) -> None:
    tar(tmp_path / "test" / "0.tar", {"1.jpg": jpeg()})
    assert len(indexed(tmp_path / "test")[0].split("train").samples) == 1


def test_tars_that_are_all_held_out_by_their_names_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "test-0.tar", {"1.jpg": jpeg()})
    with pytest.raises(DataError, match=r"all tars in .* are held out: test-0\.tar"):
        indexed(tmp_path)


@pytest.mark.parametrize("name", ["train-1.tar.gz", "train-1.tgz", "TRAIN-1.TAR.ZST"])
def test_compressed_tars_are_named_with_what_helps(tmp_path: Path, name: str) -> None:
    tar(tmp_path / "t", {"1.jpg": jpeg()})
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "t").read_bytes()))
    with pytest.raises(DataError, match=rf"holds compressed tars only \(1\): {name}") as caught:
        indexed(tmp_path)
    assert "Decompress them (gunzip" in caught.value.remedy
    (tmp_path / "t").rename(tmp_path / "train-0.tar")
    assert f"1 compressed tar is left out: {name}. Decompress them" in indexed(tmp_path)[1]


@pytest.mark.parametrize(("pack", "program"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_a_compressed_tar_by_the_name_of_another_is_not_called_damaged(
    tmp_path: Path, pack: Callable[[bytes], bytes], program: str
) -> None:
    tar(tmp_path / "t", {"1.jpg": jpeg()})
    (tmp_path / "train.tar").write_bytes(pack((tmp_path / "t").read_bytes()))
    with pytest.raises(DataError, match=rf"train\.tar is compressed by {program}\."):
        indexed(tmp_path)


@pytest.mark.parametrize("name", ["BZh_0001", "BZh91AY&SY"])
def test_a_tar_whose_first_member_is_named_like_a_compressed_file_is_read(tmp_path: Path, name: str) -> None:
    tar(tmp_path / "train.tar", {f"{name}.jpg": jpeg()})
    assert len(indexed(tmp_path)[0].split("train").samples) == 1


def test_a_tar_of_the_first_format_may_begin_like_bzip2(tmp_path: Path) -> None:
    """Before `ustar`, nothing in a header said that the file is a tar."""
    tar(tmp_path / "t", {"BZh_0001.jpg": jpeg()})
    data = bytearray((tmp_path / "t").read_bytes())
    data[257:512], data[148:156] = bytes(255), b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "train.tar").write_bytes(data)
    assert len(indexed(tmp_path)[0].split("train").samples) == 1


def test_an_empty_file_by_bzip2_is_compressed_too(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(bz2.compress(b""))
    with pytest.raises(DataError, match=r"train\.tar is compressed by bzip2\."):
        indexed(tmp_path)


def test_a_tar_beside_folders_of_splits_is_not_the_whole_data_set(tmp_path: Path) -> None:
    for name in ("extras", "train/0", "train/1", "val/0"):
        tar(tmp_path / f"{name}.tar", {f"{name[-1]}.jpg": jpeg(len(name))})
    found, said = indexed(tmp_path)
    assert [shard.name for shard in found.split("train").shards] == ["train/0.tar", "train/1.tar"]
    assert [shard.name for shard in found.split("val").shards] == ["val/0.tar"]
    assert "1 tar is in no split (val=... or train=... takes it): extras.tar." in said


@pytest.mark.parametrize("names", [("0", "old/train"), ("train-0", "more/train", "more/val")])
def test_tars_in_sub_folders_that_are_not_used_are_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        tar(tmp_path / f"{name}.tar", {f"{number}.jpg": jpeg(number)})
    found, said = indexed(tmp_path)
    assert [shard.name for shard in found.split("train").shards] == [f"{names[0]}.tar"]
    others = ", ".join(f"{name}.tar" for name in names[1:])
    count = "1 tar is" if len(names) == 2 else f"{len(names) - 1} tars are"
    assert f"{count} in no split (val=... or train=... takes {'it' if len(names) == 2 else 'them'}): {others}." in said


@pytest.mark.parametrize("last", [{}, {"z.txt": b"x" * 512}, {"z" * 150 + ".jpg": jpeg(61)}])
def test_a_tar_without_its_last_blocks_is_read_and_said(tmp_path: Path, last: dict[str, bytes]) -> None:
    images = {f"{n:05d}.jpg": jpeg(n) for n in range(60)} | last
    tar(tmp_path / "t", images)
    data = (tmp_path / "t").read_bytes().rstrip(b"\0")
    (tmp_path / "train-000000.tar").write_bytes(data + bytes(-len(data) % 512))
    (tmp_path / "t").unlink()
    found, said = indexed(tmp_path)
    assert len(found.split("train").samples) == sum(name.endswith("jpg") for name in images)
    assert "1 tar lacks the empty blocks at the end, members are whole: train-000000.tar." in said
