"""The manifest says where every sample's bytes lie, names what does not fit, and its hash is the data's identity."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from rich.console import Console

from dist_ssl.data.images.image_rules import RULES
from dist_ssl.data.storage import fields, manifest, pyramid
from dist_ssl.data.storage import read as reading
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Shard
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.samples import columns, joined
from dist_ssl.errors import DataError
from shards import make, pack
from shards.sources import demo
from tests.shards.pictures import forbidden
from tests.web import serving

NO_HASH = "0" * 64
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def copy(demo_shards: Path, tmp_path: Path) -> Path:
    """A copy of the demo shards that may be damaged."""
    return Path(shutil.copytree(demo_shards, tmp_path / "data"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit manifest.json in place."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def members(folder: Path, split: str) -> list[tuple[str, bytes, int]]:
    """Key, image and label of every sample, as the tars themselves say it."""
    found = []
    for tar in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(tar) as archive:
            content = {member.name: archive.extractfile(member).read() for member in archive}
        keys = [name.removesuffix(".jpg") for name in content if name.endswith(".jpg")]
        found += [(key, content[f"{key}.jpg"], int(content[f"{key}.cls"])) for key in keys]
    return found


@pytest.mark.parametrize(("split", "count"), [("train", 60), ("val", 20)])
def test_offsets_sizes_labels_and_keys_are_those_of_the_tars(demo_shards: Path, split: str, count: int) -> None:
    found = manifest.read(demo_shards).split(split)
    assert len(found.samples) == found.shard_sizes.sum() == count
    with Reader(found) as reader:
        own = [(found.samples.key(n), reader.read(n), int(found.samples.labels[n])) for n in range(count)]
    assert own == members(demo_shards, split)
    assert all(Image.open(io.BytesIO(data)).size == (48, 48) for _, data, _ in own)


def test_there_are_several_shards_with_their_own_sizes_and_hashes(demo_shards: Path) -> None:
    split = manifest.read(demo_shards).split("train")
    assert len(split.shards) > 1
    for number, shard in enumerate(split.shards):
        assert split.path(number).stat().st_size == shard.bytes
        assert pack.hash_of(split.path(number)) == shard.sha256


def test_the_tars_are_plain_webdataset(demo_shards: Path) -> None:
    urls = [str(tar) for tar in sorted(demo_shards.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [(s["__key__"], s["jpg"], int(s["cls"])) for s in samples] == members(demo_shards, "train")


def test_the_demo_is_labelled_and_the_order_of_its_keys_is_that_of_its_index(demo_shards: Path) -> None:
    split = manifest.read(demo_shards).split("train")
    assert split.labelled
    assert [split.samples.key(n) for n in (0, 1, 59)] == [f"demo-train-{n:08d}" for n in (0, 1, 59)]
    assert split.samples.labels.tolist() == [n % 10 for n in range(60)]


def test_the_same_data_has_the_same_identity_wherever_it_lies(demo_shards: Path, copy: Path) -> None:
    assert manifest.read(copy).identity == manifest.read(demo_shards).identity


def test_making_the_same_data_again_gives_the_same_identity(demo_shards: Path, tmp_path: Path) -> None:
    make.make("demo", tmp_path / "again", Console(quiet=True), demo.DemoOptions(60, 20, 20000))
    assert manifest.read(tmp_path / "again").identity == manifest.read(demo_shards).identity


def test_other_data_has_another_identity(tmp_path: Path) -> None:
    choices = [demo.DemoOptions(*o) for o in ((6, 2, 20000), (7, 2, 20000), (6, 3, 20000), (6, 2, 3000))]
    for number, options in enumerate(choices):
        make.make("demo", tmp_path / str(number), Console(quiet=True), options)
    assert len({manifest.read(tmp_path / str(number)).identity for number in range(4)}) == 4


def test_columns_hold_keys_of_any_length_and_alphabet(tmp_path: Path) -> None:
    rows = [("ä/b", 0, 5, 3), ("", 5, 6, -1), ("很长的钥匙", 11, 7, 0)]
    manifest.write(tmp_path, {"train": ([Shard("a.tar", 3, 18, NO_HASH)], columns(rows))})
    (tmp_path / "a.tar").touch()
    split = manifest.read(tmp_path).split("train")
    own = [(split.samples.key(n), *(int(c[n]) for c in list(vars(split.samples).values())[:3])) for n in range(3)]
    assert own == rows
    assert not split.labelled


def test_joined_columns_are_those_of_the_joined_rows() -> None:
    rows = [("ä", 0, 5, 3), ("", 5, 6, -1), ("b/c", 11, 7, 0)]
    parts = [columns(rows[:1]), columns([]), columns(rows[1:])]
    for name, column in joined(parts).columns.items():
        assert column.tolist() == getattr(columns(rows), name).tolist()
        assert column.dtype == getattr(columns(rows), name).dtype
    assert len(joined([])) == 0


def test_names_of_classes_are_kept_and_change_the_identity_but_need_not_be_there(tmp_path: Path) -> None:
    rows = {"train": ([Shard("a.tar", 1, 1, NO_HASH)], columns([("k", 0, 1, 0)]))}
    manifest.write(tmp_path, rows)
    without = manifest.read(tmp_path)
    assert "classes" not in json.loads((tmp_path / "manifest.json").read_text())
    manifest.write(tmp_path, rows, ["cat", "größe"])
    named = manifest.read(tmp_path)
    assert (without.classes, named.classes) == ((), ("cat", "größe"))
    assert without.identity != named.identity


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist") as caught:
        manifest.read(tmp_path / "nowhere")
    assert "shards/make.py" in caught.value.remedy


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        manifest.read(tmp_path)


def test_an_unknown_split_is_refused_with_the_nearest(demo_shards: Path) -> None:
    with pytest.raises(DataError, match="no split 'trian'") as caught:
        manifest.read(demo_shards).split("trian")
    assert "'train'" in caught.value.remedy


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    manifest.write(tmp_path, {"train": ([], columns([]))})
    with pytest.raises(DataError, match="has no samples"):
        manifest.read(tmp_path).split("train")


def test_a_missing_tar_is_named(copy: Path) -> None:
    (copy / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing"):
        manifest.read(copy).split("train").check()
    assert len(manifest.read(copy).split("val").samples) == 20


@pytest.mark.parametrize("size", [0, 100])
def test_a_truncated_tar_is_named_with_both_sizes(copy: Path, size: int) -> None:
    tar = copy / "train-000000.tar"
    whole = tar.stat().st_size
    with tar.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=rf"train-000000\.tar has {size} bytes; the manifest says {whole}"):
        manifest.read(copy).split("train").check()


def test_a_tar_that_is_cut_off_later_is_noticed_by_the_read(copy: Path) -> None:
    split = manifest.read(copy).split("train")
    with (copy / "train-000000.tar").open("r+b") as file:
        file.truncate(int(split.samples.offsets[0]) + 10)
    with Reader(split) as reader, pytest.raises(DataError, match=r"train-000000\.tar ends within sample 0"):
        reader.read(0)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"3", b"null", b"{}", b'{"format": 1}', b'{"format": 1, "splits": []}', b"\xff\xfe\x00"],
)
def test_a_damaged_manifest_is_named(copy: Path, text: bytes) -> None:
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        manifest.read(copy)


@pytest.mark.parametrize("key", ["shards", "samples", "samples_xxh3"])
def test_a_manifest_that_lacks_a_key_is_damaged(copy: Path, key: str) -> None:
    change(copy, lambda content: content["splits"]["train"].pop(key))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        manifest.read(copy)


@pytest.mark.parametrize("value", [None, 3, [], "train"])
def test_a_manifest_with_a_split_of_another_kind_is_damaged(copy: Path, value: object) -> None:
    change(copy, lambda content: content["splits"].update(train=value))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        manifest.read(copy)


def test_another_format_is_named(copy: Path) -> None:
    change(copy, lambda content: content.update(format=2))
    with pytest.raises(DataError, match="has format 2: this version reads 1"):
        manifest.read(copy)


def test_another_format_is_named_though_its_splits_look_otherwise(copy: Path) -> None:
    change(copy, lambda content: content.update(format=2, splits=["train", "val"]))
    with pytest.raises(DataError, match="has format 2: this version reads 1"):
        manifest.read(copy)


def test_samples_of_another_data_set_do_not_fit(copy: Path, tmp_path: Path) -> None:
    make.make("demo", tmp_path / "other", Console(quiet=True), demo.DemoOptions(6, 2, 20000))
    shutil.copy(tmp_path / "other" / "train.samples.safetensors", copy)
    with pytest.raises(DataError, match=r"train\.samples\.safetensors does not fit manifest\.json"):
        manifest.read(copy)


def test_one_changed_byte_of_the_samples_is_noticed(copy: Path) -> None:
    path = copy / "train.samples.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="does not fit"):
        manifest.read(copy)


def test_a_folder_of_another_user_is_named(copy: Path) -> None:
    split = manifest.read(copy).split("train")
    with forbidden(copy):
        with pytest.raises(DataError, match=r"manifest\.json cannot be read: Permission denied\.\n.*readable"):
            manifest.read(copy)
        with pytest.raises(DataError, match=r"train-000000\.tar cannot be read: Permission denied"):
            split.check()


@pytest.mark.parametrize("name", ["manifest.json", "pyramid.json"])
def test_a_file_that_cannot_be_read_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    (copy / name).mkdir()
    with pytest.raises(DataError, match=f"{name} cannot be read: Is a directory"):
        pyramid.read(Address(str(copy)), manifest.read(copy), Fetcher())


@pytest.mark.parametrize("data", [b"", b"short", None])
def test_samples_that_cannot_be_read_are_named(copy: Path, data: bytes | None) -> None:
    path = copy / "val.samples.safetensors"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(DataError, match=r"val\.samples\.safetensors cannot be read"):
        manifest.read(copy)


def test_a_manifest_that_counts_other_samples_does_not_fit(copy: Path) -> None:
    change(copy, lambda content: content["splits"]["val"]["shards"][0].update(samples=19))
    with pytest.raises(DataError, match="does not fit"):
        manifest.read(copy)


def test_reading_again_after_closing_opens_the_files_anew(demo_shards: Path) -> None:
    reader = Reader(manifest.read(demo_shards).split("val"))
    first = reader.read(3)
    reader.close()
    assert reader.read(3) == first
    reader.close()


def test_samples_behind_an_empty_shard_are_found(tmp_path: Path) -> None:
    for name, data in (("a.tar", b"AB"), ("b.tar", b""), ("c.tar", b"CD")):
        (tmp_path / name).write_bytes(data)
    shards = [Shard(f"{name}.tar", count, count, NO_HASH) for name, count in (("a", 2), ("b", 0), ("c", 2))]
    rows = [(str(n), n % 2, 1, n) for n in range(4)]
    manifest.write(tmp_path, {"train": (shards, columns(rows))})
    with Reader(manifest.read(tmp_path).split("train")) as reader:
        assert [reader.read(n) for n in range(4)] == [b"A", b"B", b"C", b"D"]
    assert np.array_equal(manifest.read(tmp_path).split("train").shard_sizes, [2, 0, 2])


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "an absolute path as a hash": lambda shard: shard.update(sha256="/srv/thesis"),
    "a hash with a path": lambda shard: shard.update(sha256="../" + "0" * 61),
    "a hash in capitals": lambda shard: shard.update(sha256="A" * 64),
    "no hash": lambda shard: shard.update(sha256=None),
    "an absolute name": lambda shard: shard.update(name="/etc/passwd"),
    "a name that leaves the folder later": lambda shard: shard.update(name="a/../../b.tar"),
    "a name with an escape": lambda shard: shard.update(name="a\x1b[2J.tar"),
    "a name with an escape of eight bits": lambda shard: shard.update(name="a\x9b2J.tar"),
    "no name": lambda shard: shard.update(name=""),
    "a number as a name": lambda shard: shard.update(name=7),
    "a negative size": lambda shard: shard.update(bytes=-1),
    "a size beyond 64 bits": lambda shard: shard.update(bytes=1 << 70),
    "a size as a fraction": lambda shard: shard.update(bytes=1.5),
    "a size as a truth": lambda shard: shard.update(bytes=True),
    "a negative number of samples": lambda shard: shard.update(samples=-20),
    "a smaller shard than its samples need": lambda shard: shard.update(bytes=600),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_shard_is_refused(copy: Path, what: str) -> None:
    change(copy, lambda content: HOSTILE[what](content["splits"]["val"]["shards"][0]))
    with pytest.raises(DataError, match="is damaged"):
        manifest.read(copy)


def test_tars_beside_the_manifest_may_be_listed_but_not_columns(copy: Path, tmp_path: Path) -> None:
    change(copy, lambda content: content["splits"]["val"]["shards"][0].update(name="../other/val.tar"))
    assert manifest.read(copy).split("val").path(0) == copy / "../other/val.tar"
    with (
        serving(copy) as server,
        pytest.raises(DataError, match=r"is damaged: .*no name of a file within"),
    ):
        manifest.read(Address.parse(server.url))
    change(copy, lambda content: content["splits"]["val"].update(samples="../val.samples.safetensors"))
    with pytest.raises(DataError, match="is damaged"):
        manifest.read(copy)


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("offsets", [0, -1], "outside"),
        ("offsets", [0, 1 << 61], "outside"),
        ("sizes", [1 << 30, 1], "behind the end"),
        ("sizes", [1, 8], "behind the end"),
        ("labels", [0, -2], "outside"),
        ("labels", [0.0, 1.0], "float64"),
        ("key_ends", [2, 1], "key_ends"),
        ("key_ends", [1, 9], "key_ends"),
        ("key_ends", [-1, 2], "key_ends"),
        ("labels", [0, 1, 2], r"int64\[3\]"),
    ],
)
def test_hostile_columns_are_refused(tmp_path: Path, name: str, values: list[Any], what: str) -> None:
    samples = columns([("a", 0, 1, 0), ("b", 1, 1, 1)])
    changed = replace(samples, **{name: np.array(values)})
    manifest.write(tmp_path, {"train": ([Shard("a.tar", 2, 8, NO_HASH)], changed)})
    with pytest.raises(DataError, match=rf"is damaged: .*{what}"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("owner", [os.geteuid(), pytest.param(12345, marks=ONLY_ROOT)])
def test_a_manifest_cannot_touch_a_file_outside_of_the_cache(copy: Path, tmp_path: Path, owner: int) -> None:
    thesis = tmp_path / "thesis.tar"
    thesis.write_text("years of work")
    change(copy, lambda content: content["splits"]["val"]["shards"][0].update(sha256=str(tmp_path / "thesis")))
    for path in (copy, *copy.iterdir()):
        os.chown(path, owner, -1)
    with pytest.raises(DataError, match="sha256"):
        manifest.read(copy)
    with pytest.raises(AssertionError):
        Cache(tmp_path / "cache", 1 << 20).find(str(tmp_path / "thesis"), 1)
    assert thesis.read_text() == "years of work"


BAD_SPLITS = ["../../thesis", "/srv/thesis", "a/b", "..", ".", "", "a\x1b[2J", "a\n", "x" * 201, "\ud800"]


@pytest.mark.parametrize("name", BAD_SPLITS)
def test_a_split_is_not_named_like_a_path(copy: Path, name: str) -> None:
    change(copy, lambda content: content["splits"].update({name: content["splits"]["val"]}))
    with pytest.raises(DataError, match=r"is damaged: .* is no name of a split"):
        manifest.read(copy)


@pytest.mark.parametrize("name", ["val 2024 (clean)", "größe", "val.v2", ".val", "x" * 200, "-val", "val,a=b"])
def test_a_split_may_have_any_name_of_a_file(copy: Path, name: str) -> None:
    change(copy, lambda content: content["splits"].update({name: content["splits"]["val"]}))
    assert len(manifest.read(copy).split(name).samples) == 20


def test_levels_of_a_strangers_data_write_within_its_folder(copy: Path, tmp_path: Path) -> None:
    canaries = [tmp_path / "thesis-000000.tar", tmp_path / "thesis.samples.safetensors"]
    for canary in canaries:
        canary.write_text("years of work")
    change(copy, lambda content: content["splits"].update({"../../thesis": content["splits"]["val"]}))
    with pytest.raises(DataError, match="no name of a split"):
        make.run([f"out={copy}", "pyramid=[8]"], Console(quiet=True))
    assert [canary.read_text() for canary in canaries] == ["years of work"] * 2


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    rows = columns([("k" * 5000, 0, 1, 0)])
    with pytest.raises(DataError, match="a key has 5000 bytes, and at most 4096 are read"):
        manifest.write(tmp_path, {"train": ([Shard("a.tar", 1, 1, NO_HASH)], rows)})
    with pytest.raises(DataError, match="is no name of a split"):
        manifest.write(tmp_path, {"a/b": ([Shard("a.tar", 0, 1, NO_HASH)], columns([]))})
    assert not list(tmp_path.iterdir())


DEEP = b"[" * 100_000
NESTED = b"[" * 200 + b"]" * 200


@pytest.mark.parametrize("text", [DEEP, b'{"format": 1, "splits": {}, "copied": ' + NESTED + b"}", NESTED])
def test_a_manifest_that_is_nested_deeply_is_damaged(copy: Path, text: bytes) -> None:
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(DataError, match=r"is damaged: .*it is nested deeper than 100"):
        manifest.read(copy)


def test_a_manifest_of_countless_values_is_refused_before_they_take_memory(copy: Path) -> None:
    (copy / "manifest.json").write_bytes(b'{"format": 1, "splits": [' + b"{}," * fields.MOST_VALUES + b"{}]}")
    with pytest.raises(DataError, match="it has more than 2097152 values"):
        manifest.read(copy)


def test_a_local_manifest_has_the_same_bound_as_a_remote_one(copy: Path) -> None:
    with (copy / "manifest.json").open("r+b") as file:
        file.truncate(fields.MOST_BYTES + 1)
    with pytest.raises(DataError, match=r"manifest\.json is larger than the 67108864 bytes"):
        manifest.read(copy)


@pytest.mark.parametrize("name", ["manifest.json", "val.samples.safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_what_is_no_regular_file_is_refused(copy: Path, name: str, kind: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name) if kind == "a pipe" else (copy / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"{name} cannot be read: it is no regular file"):
        manifest.read(copy)


def test_a_shard_that_is_no_regular_file_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FIRST_PAUSE_SECONDS", 0.0)
    split = manifest.read(copy).split("val")
    split.path(0).unlink()
    os.mkfifo(split.path(0))
    with Reader(split) as reader, pytest.raises(DataError, match=r"could not be read in 4 tries: .*no regular file"):
        reader.read(0)


def test_a_link_to_a_regular_file_is_read(copy: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "val-000000.tar"):
        (copy / name).rename(tmp_path / name)
        (copy / name).symlink_to(tmp_path / name)
    with Reader(manifest.read(copy).split("val")) as reader:
        assert reader.read(0)


def test_columns_are_bounded_whatever_number_of_samples_is_claimed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MOST_COLUMN_BYTES", 99_999)
    change(copy, lambda content: content["splits"]["val"]["shards"][0].update(samples=1 << 50))
    with serving(copy) as server:
        server.fault = lambda path: "endless" if "val" in path else ""
        with pytest.raises(DataError, match="is larger than the 99999 bytes"):
            manifest.read(Address.parse(server.url))


def test_the_bounds_leave_room_for_the_largest_rows(tmp_path: Path) -> None:
    """100,000 shards with long names, and samples that all have the longest key."""
    shard = {"name": f"../{'x' * 200}/train-000000.tar", "samples": 12345, "bytes": 10**9, "sha256": NO_HASH}
    text = json.dumps({"shards": [shard] * 100}, indent=1)
    assert len(text) * 1000 < fields.MOST_BYTES
    assert (text.count("{") + text.count(",")) * 1000 < fields.MOST_VALUES
    rows = [("k" * 4096, 0, 1, 0, 7, 7)] * 300
    manifest.write(tmp_path, {"train": ([Shard("a.tar", 300, 1, NO_HASH)], columns(rows))})
    assert len(manifest.read(tmp_path).split("train").samples) == 300


def test_images_and_keys_have_a_largest_length(tmp_path: Path) -> None:
    samples = columns([("k" * 4097, 0, 1, 0)])
    with pytest.raises(ValueError, match="a key has 4097 bytes"):
        fields.check_columns(samples.columns, [1], [1])
    samples = columns([("k", 0, 1 << 31, 0)])
    with pytest.raises(ValueError, match="an image has 2147483648 bytes"):
        fields.check_columns(samples.columns, [1], [1 << 40])


def made_with(copy: Path, edit: dict[str, Any]) -> Path:
    """A data set with a pyramid.json of one level, whose entry is edited."""
    level = {"side": 8, "identity": "0" * 32, **edit}
    content = {"format": 1, "of": manifest.read(copy).identity, "levels": [level]}
    (copy / "pyramid.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    "edit",
    [
        *({"range": value} for value in ([1], float("nan"), {}, True, 10**400, -(10**400), 0, -1, "1")),
        *({"alpha": value} for value in (5, None, "purple", ["white"], "\x1b[2J")),
        *({"side": value} for value in ("8", True, 8.0, 0, -8, 2**31, None, [8])),
        *({"identity": value} for value in (None, 7, "F" * 32, "0" * 31, "../" + "0" * 29, ["0" * 32])),
        *({"quality": value} for value in ("95", 0, 101, True, 1.5, 2**70)),
        *({"chroma": value} for value in (444, None, "\x1b[2J", ["444"])),
        *({"of": value} for value in (7, None, "../x")),
    ],
    ids=ascii,
)
def test_a_level_with_rules_of_another_kind_is_damaged(copy: Path, edit: dict[str, Any]) -> None:
    where = Address(str(made_with(copy, edit)))
    with pytest.raises(DataError, match=r"pyramid\.json is damaged"):
        pyramid.attach(manifest.read(copy), where, [8], Fetcher(), RULES)


@pytest.mark.parametrize(
    "edit",
    [
        *({"of": value} for value in (None, 7, ["0" * 32], "0" * 31, "\x1b[2J", {})),
        *({"levels": value} for value in (None, 7, {}, "ab", [7], [None], [[["side", 8]]], {"side": 8})),
    ],
    ids=ascii,
)
def test_a_pyramid_of_another_kind_is_damaged(copy: Path, edit: dict[str, Any]) -> None:
    path = made_with(copy, {}) / "pyramid.json"
    assert pyramid.read(Address(str(copy)), manifest.read(copy), Fetcher()).keys() == {8}
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(DataError, match=r"pyramid\.json (is damaged|has format)"):
        pyramid.read(Address(str(copy)), manifest.read(copy), Fetcher())


@pytest.mark.parametrize("key", ["format", "of", "levels"])
def test_a_pyramid_that_lacks_a_key_is_damaged(copy: Path, key: str) -> None:
    path = made_with(copy, {}) / "pyramid.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"pyramid\.json is damaged: .*{key}"):
        pyramid.read(Address(str(copy)), manifest.read(copy), Fetcher())


def test_a_level_is_listed_once(copy: Path) -> None:
    path = made_with(copy, {}) / "pyramid.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "levels": content["levels"] * 2}))
    with pytest.raises(DataError, match=r"pyramid\.json is damaged: .*twice"):
        pyramid.read(Address(str(copy)), manifest.read(copy), Fetcher())


@pytest.mark.parametrize(
    "edit",
    [
        *({"classes": value} for value in ("abc", {"a": 0}, [1, 2], [["a"]], [None], 7, None)),
        *({"copied": value} for value in ([["side", 8]], "ab", 7, None, {"side": True}, {"side": 8, "quality": "x"})),
        *({"splits": value} for value in ([], "ab", 7, None, {"val": []})),
    ],
    ids=ascii,
)
def test_a_manifest_of_another_kind_is_damaged(copy: Path, edit: dict[str, Any]) -> None:
    change(copy, lambda content: content.update(edit))
    with pytest.raises(DataError, match=r"manifest\.json (is damaged|has format)"):
        manifest.read(copy)


@pytest.mark.parametrize("shards", [None, 7, {}, "ab", [7], [None], [[]]], ids=ascii)
def test_shards_of_another_kind_are_damage(copy: Path, shards: object) -> None:
    change(copy, lambda content: content["splits"]["val"].update(shards=shards))
    with pytest.raises(DataError, match=r"(is damaged|does not fit)"):
        manifest.read(copy)


def test_names_of_a_strangers_classes_do_not_act_on_a_terminal(copy: Path) -> None:
    change(copy, lambda content: content.update(classes=["a\x1b[2J", "\ud800", "größe"]))
    assert manifest.read(copy).classes == (r"a\x1b[2J", r"\ud800", "größe")


def test_a_deeply_nested_pyramid_is_damaged(copy: Path) -> None:
    (copy / "pyramid.json").write_bytes(DEEP)
    with pytest.raises(DataError, match=r"pyramid\.json is damaged: .*nested deeper"):
        pyramid.read(Address(str(copy)), manifest.read(copy), Fetcher())


def test_a_copy_of_no_side_is_damaged(copy: Path) -> None:
    change(copy, lambda content: content.update(copied={"of": "x"}))
    with pytest.raises(DataError, match=r"is damaged: .*side"):
        manifest.read(copy)


def test_channels_are_kept_and_a_manifest_without_them_is_of_rgb(copy: Path) -> None:
    assert manifest.read(copy).channels == 3
    change(copy, lambda content: content.update(channels=5))
    assert manifest.read(copy).channels == 5


@pytest.mark.parametrize("value", [0, 65, "3", None, True, 3.0])
def test_an_impossible_number_of_channels_is_damage(copy: Path, value: object) -> None:
    change(copy, lambda content: content.update(channels=value))
    with pytest.raises(DataError, match=r"is damaged: .*channels is"):
        manifest.read(copy)
