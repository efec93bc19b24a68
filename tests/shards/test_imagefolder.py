"""A folder of pictures becomes shards: the same bytes under their own keys, labels where folders give them."""

import os
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.fields import MOST_IMAGE
from dist_ssl.errors import ConfigError, DataError
from shards import verify
from shards.command_line import Bytes, HeldOut
from shards.folder_scan import scan
from shards.make import make, run
from shards.sources import imagefolder
from shards.sources.imagefolder import FolderOptions, held_out_of
from tests.shards.pictures import files_in, folder_of, held


def made(root: Path, console: Console | None = None, **options: object) -> Path:
    """Shards of the pictures in `root/in`."""
    out = root / f"out{len(list(root.iterdir()))}"
    make("imagefolder", out, console or Console(quiet=True), FolderOptions(root / "in", **options))  # type: ignore[arg-type]
    return out


def said(root: Path, **options: object) -> str:
    """What is printed while shards are made."""
    console = Console(record=True, quiet=False, soft_wrap=True, file=(root / "log").open("w"))
    made(root, console, **options)
    return console.export_text()


def test_files_are_packed_as_they_are_with_their_extensions(tmp_path: Path) -> None:
    kinds = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "gif", "JPG", "PnG")
    files = folder_of(tmp_path / "in", *(f"{n}.{kind}" for n, kind in enumerate(kinds)))
    out = made(tmp_path)
    assert held(out) == {name.partition(".")[0]: (data, -1) for name, data in files.items()}
    with tarfile.open(out / "train-000000.tar") as tar:
        assert sorted(tar.getnames()) == sorted(files)


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "in", "b cat/x/1.jpg", "b cat/2.jpg", "a.dog/1.jpg", "ü/1.jpg", "ü/2.jpg")
    out = made(tmp_path, val=HeldOut())
    labels = {"a.dog": 0, "b cat": 1, "ü": 2}
    assert held(out) == {n.removesuffix(".jpg"): (d, labels[n.partition("/")[0]]) for n, d in files.items()}
    found = manifest.read(out)
    assert found.classes == ("a.dog", "b cat", "ü")
    assert found.split("train").labelled
    assert set(found.splits) == {"train"}


@pytest.mark.parametrize("names", [["1.jpg", "2.jpg"], ["only/1.jpg", "only/2.jpg"], ["a/1.jpg", "b/1.jpg", "1.jpg"]])
def test_there_are_no_labels_where_folders_give_none(tmp_path: Path, names: list[str]) -> None:
    folder_of(tmp_path / "in", *names)
    out = made(tmp_path)
    assert {label for _, label in held(out).values()} == {-1}
    assert manifest.read(out).classes == ()
    assert set(manifest.read(out).splits) == {"train"}


def test_labels_can_be_declined_or_insisted_on(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "2020/1.jpg", "2021/1.jpg")
    assert not manifest.read(made(tmp_path, labels=False)).split("train").labelled
    (tmp_path / "in" / "loose.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"labels=true, but loose\.jpg lies in no folder of a class"):
        made(tmp_path, labels=True)


def test_train_and_val_folders_are_splits(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "in", "train/a/1.jpg", "train/b/1.jpg", "val/b/2.jpg", "val/a/3.jpg")
    out = made(tmp_path)
    assert held(out) == {"a/1": (files["train/a/1.jpg"], 0), "b/1": (files["train/b/1.jpg"], 1)}
    assert held(out, "val") == {"b/2": (files["val/b/2.jpg"], 1), "a/3": (files["val/a/3.jpg"], 0)}
    with pytest.raises(ConfigError, match=r"has its own val/"):
        made(tmp_path, val=HeldOut(1))


def test_flat_train_and_val_folders_are_splits_without_labels(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "train/1.jpg", "train/2.jpg", "validation/3.jpg")
    out = made(tmp_path)
    assert set(held(out)) == {"1", "2"}
    assert {label for _, label in held(out, "val").values()} == {-1}
    assert "train/ is trained on, validation/ is held out." in said(tmp_path)


def test_a_class_of_val_that_train_lacks_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "train/a/1.jpg", "train/b/1.jpg", "val/c/2.jpg")
    with pytest.raises(DataError, match=r"val/c/2\.jpg is of class 'c', which train/ does not have"):
        made(tmp_path)


def test_train_beside_other_folders_than_val_is_a_class(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "train/1.jpg", "car/1.jpg")
    assert manifest.read(made(tmp_path, val=HeldOut())).classes == ("car", "train")
    folder_of(tmp_path / "in", "val/1.jpg")
    with pytest.raises(DataError, match=r"has train/ and val/ and, beside them, images in car"):
        made(tmp_path)


@pytest.mark.parametrize(("val", "count"), [(HeldOut(7), 7), (HeldOut(share=0.1), 6), (None, 12), (HeldOut(), 0)])
def test_val_is_held_out_by_the_hash_of_the_path(tmp_path: Path, val: HeldOut | None, count: int) -> None:
    files = folder_of(tmp_path / "in", *(f"{n % 2}/{n}.png" for n in range(60)))
    out = made(tmp_path, val=val)
    train, kept = held(out), held(out, "val") if count else {}
    assert len(kept) == count
    assert {**train, **kept} == {n.removesuffix(".png"): (d, int(n[0])) for n, d in files.items()}
    assert not set(train) & set(kept)


def test_enough_labelled_images_are_held_out_to_measure_an_accuracy() -> None:
    assert [held_out_of(total) for total in (2, 10, 250, 300, 2500, 10_000)] == [1, 2, 50, 50, 50, 200]


def test_a_held_out_image_stays_held_out_when_others_come(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n % 2}/{n}.png" for n in range(40)))
    before = set(held(made(tmp_path, val=HeldOut(10)), "val"))
    folder_of(tmp_path / "in", *(f"{n % 2}/{n}.png" for n in range(44)))
    after = set(held(made(tmp_path, val=HeldOut(14)), "val"))
    assert len(before - after) == 0


def test_a_split_may_not_take_all(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg")
    with pytest.raises(ConfigError, match=r"val=2 leaves nothing of 2 images"):
        made(tmp_path, val=HeldOut(2))


def test_a_shard_is_not_of_one_class(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n // 40}/{n:03}.png" for n in range(120)))
    split = manifest.read(made(tmp_path, shard_bytes=Bytes(10_000), val=HeldOut())).split("train")
    ends = split.shard_sizes.cumsum()
    classes = [set(split.samples.labels[end - n : end]) for n, end in zip(split.shard_sizes, ends, strict=True)]
    assert len(classes) > 3
    assert all(len(own) == 3 for own in classes)


def test_stems_that_clash_and_names_with_dots_keep_their_own_keys(tmp_path: Path) -> None:
    names = ("a/1.jpg", "b/1.jpg", "a/1.png", "a/1.JPG", "a/1.jpg.png", "a/v1.2 of 3.webp", "a/100%.gif")
    files = folder_of(tmp_path / "in", *names)
    keys = ("a/1%jpg", "b/1", "a/1%png", "a/1%JPG", "a/1%2Ejpg", "a/v1%2E2 of 3", "a/100%25")
    own = held(made(tmp_path, val=HeldOut()))
    assert {k: data for k, (data, _) in own.items()} == dict(zip(keys, files.values(), strict=True))


def test_a_class_named_like_a_member_that_webdataset_passes_over_keeps_its_images(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "in", "__background__/1.jpg", "cat/1.jpg", "__x/1.jpg", "cat/__y__/1.jpg")
    out = made(tmp_path, val=HeldOut())
    keys = ("%5F_background__/1", "cat/1", "__x/1", "cat/__y__/1")
    assert {k: data for k, (data, _) in held(out).items()} == dict(zip(keys, files.values(), strict=True))
    assert manifest.read(out).classes == ("__background__", "__x", "cat")
    assert verify.verify(out, verify.VerifyOptions(), Console(quiet=True)) == []
    tars = [str(path) for path in out.glob("*.tar")]
    assert {sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)} == set(keys)


shared_memory = st.text("ab.%25FEjp_\udce9", min_size=1, max_size=6).filter(lambda t: t[0] not in "./" and t.strip("."))
folders = st.sampled_from(["", "d/", "e.f/", "__g__/", "%5F_g__/", "__g"])
names = st.builds(lambda f, n, k: f"{f}{n}.{k}", folders, shared_memory,
                  st.sampled_from(["jpg", "JPG", "png", "gif"]))  # fmt: skip


@given(st.lists(names, unique=True, max_size=30))
def test_no_two_files_have_one_key(paths: list[str]) -> None:
    stems = Counter(imagefolder.stem(path) for path in paths)
    keys = [imagefolder.key(path, stems[imagefolder.stem(path)] == 1) for path in paths]
    assert len(set(keys)) == len(keys)
    for path, key in zip(paths, keys, strict=True):
        kind = imagefolder.extension(path)
        assert webdataset.tariterators.base_plus_ext(f"{key.encode().decode()}.{kind}") == (key, kind)


def test_a_name_that_is_no_utf8_is_packed(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "ok.jpg")
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"data")
    assert held(made(tmp_path))["caf%E9"] == (b"data", -1)


def test_a_class_whose_name_is_no_utf8_is_kept_and_can_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"train/caf\xe9", b"train/b", b"val/caf\xe8"):
        (tmp_path / "in" / os.fsdecode(name)).mkdir(parents=True)
        (tmp_path / "in" / os.fsdecode(name) / "1.jpg").write_bytes(b"data")
    assert run_command(run, ["source=imagefolder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'o'}"]) == 2
    assert "is of class 'caf\\udce8', which train/ does not have" in capsys.readouterr().out
    (tmp_path / "in" / "val").rename(tmp_path / "gone")
    assert manifest.read(made(tmp_path, val=HeldOut())).classes == ("b", "caf\\udce9")


def test_a_link_to_something_else_than_an_image_elsewhere_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    (tmp_path / "id_rsa").write_text("a secret of the person who packs")
    (tmp_path / "in" / "a" / "3.jpg").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(DataError, match=r"3\.jpg is a link to .*id_rsa, which lies elsewhere and is not an image"):
        made(tmp_path)


@pytest.mark.parametrize("text", ["P4ssw0rd-of-the-cluster\n", "P1\n2 secrets", "BMW: the code of the garage"])
def test_a_text_elsewhere_that_begins_like_an_image_is_refused(tmp_path: Path, text: str) -> None:
    folder_of(tmp_path / "in", "a/1.jpg", "b/2.ppm")
    (tmp_path / "secret").write_text(text)
    (tmp_path / "in" / "a" / "3.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"3\.jpg is a link to .*secret, which lies elsewhere and is not an image"):
        made(tmp_path)


def test_images_elsewhere_are_packed_and_texts_within_stay_unreadable_images(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "elsewhere", *(f"{n}.{kind}" for n, kind in enumerate(("jpg", "bmp", "ppm", "webp"))))
    folder_of(tmp_path / "in", "a.jpg")
    (tmp_path / "in" / "text.jpg").write_text("P4 is no image")
    for name in files:
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere" / name)
    found = held(made(tmp_path))
    assert {name: found[name[0]][0] for name in files} == files
    assert found["text"] == (b"P4 is no image", -1)


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device"])
def test_a_picture_that_was_exchanged_for_something_without_an_end_is_refused(tmp_path: Path, kind: str) -> None:
    folder_of(tmp_path, "a.jpg")
    [file] = scan(tmp_path, 1).files
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg") if kind == "a pipe" else (tmp_path / "a.jpg").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read: it is no regular file"):
        imagefolder.read(tmp_path, file)


def test_a_picture_that_grew_is_not_read_to_its_end(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.jpg")
    [file] = scan(tmp_path, 1).files
    os.truncate(tmp_path / "a.jpg", 1 << 40)  # it takes no room on the disk
    with pytest.raises(DataError, match="has changed since the folder was listed"):
        imagefolder.read(tmp_path, file)


def test_folders_that_link_to_each_other_in_very_many_ways_are_refused(tmp_path: Path) -> None:
    """Their number grows with the factorial of that of the folders."""
    names = [f"d{number}" for number in range(7)]
    for name in names:
        (tmp_path / name).mkdir()
        for other in set(names) - {name}:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    with pytest.raises(DataError, match=r"Links lead to .* in more than 1000 ways"):
        scan(tmp_path, 2)


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b" / "3.jpg").symlink_to(tmp_path / "in" / "a" / "1.jpg")
    (tmp_path / "in" / "c").symlink_to(tmp_path / "in" / "b")
    own = held(made(tmp_path, val=HeldOut()))
    one, two = files["a/1.jpg"], files["b/2.jpg"]
    assert own == {"a/1": (one, 0), "b/2": (two, 1), "b/3": (one, 1), "c/2": (two, 2), "c/3": (one, 2)}


def test_what_cannot_be_read_is_named_before_anything_is_written(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a/1.jpg")
    (tmp_path / "in" / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"1 file or folder in .* cannot be read:\n  a/gone\.jpg: broken link"):
        made(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_that_changes_while_it_is_packed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg")
    real = imagefolder.scan

    def then_touched(root: Path, threads: int) -> imagefolder.Found:
        found = real(root, threads)
        os.utime(root / "2.jpg", (1, 1))
        return found

    monkeypatch.setattr(imagefolder, "scan", then_touched)
    with pytest.raises(DataError, match=r"2\.jpg has changed since the folder was listed"):
        made(tmp_path)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "a/1.jpg", "b/1.jpg", "b/.hidden.jpg", ".cache/1.jpg")
    (tmp_path / "in" / "empty").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / "a" / "0.png").touch()
    text = said(tmp_path, val=HeldOut())
    assert "Left out, because they are no images: 1 .txt." in text
    assert "Empty files, which count as images that cannot be read: a/0.png (1)." in text
    assert "1 folder holds no images and is no class: empty." in text


@pytest.mark.parametrize("make_it", [True, False])
def test_a_folder_without_images_and_one_that_is_not_there_are_refused(tmp_path: Path, make_it: bool) -> None:
    if make_it:
        (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no images" if make_it else "is not a folder"):
        made(tmp_path)


def test_the_shards_are_the_same_on_any_number_of_threads_and_at_any_time(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", *(f"{n % 3}/{n}.jpg" for n in range(50)))
    first = made(tmp_path, threads=1, shard_bytes=Bytes(5000))
    time.sleep(0.01)
    second = made(tmp_path, threads=7, shard_bytes=Bytes(5000))
    assert len(files_in(first)) > 5
    assert files_in(first) == files_in(second)


def test_a_file_larger_than_an_image_can_be_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").touch()
    os.truncate(tmp_path / "in" / "a.jpg", MOST_IMAGE + 1)  # it takes no room on the disk
    found = scan(tmp_path / "in", 1)
    assert not found.files
    assert found.unreadable == [f"a.jpg: larger than an image can be ({MOST_IMAGE} bytes)"]
