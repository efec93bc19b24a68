"""A tar is what webdataset writes and reads, is indexed in one pass, and is never taken for whole when it is not."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.errors import DataError
from shards import archive
from shards.archive import Sample, Writer, index
from tests.fuzzing import bounded_memory


def tar_of(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar as tarfile writes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def rows(data: bytes, image: str | None = None) -> list[tuple[str, bytes, int]]:
    """Key, image and label of every sample, read by offset."""
    found = index(io.BytesIO(data), "a.tar", image)
    texts = [*found.names, "-1"]
    return [(key, data[at : at + size], int(texts[label])) for key, at, size, label in found.rows]


def by_webdataset(path: Path) -> list[dict[str, Any]]:
    return list(webdataset.WebDataset([str(path)], shardshuffle=False))


SAMPLES = [
    Sample("a", "jpg", b"x" * 700, 3),
    Sample("b/" + "long" * 60, "PNG", b"", -1),
    Sample("很长 的钥匙", "webp", b"y" * 512, 12),
]


def written(path: Path, samples: list[Sample]) -> Writer:
    writer = Writer(path)
    for sample in samples:
        writer.add(sample)
    return writer


def test_webdataset_reads_what_is_written(tmp_path: Path) -> None:
    written(tmp_path / "a.tar", SAMPLES).close("a.tar")
    found = by_webdataset(tmp_path / "a.tar")
    assert [s["__key__"] for s in found] == [s.key for s in SAMPLES]
    assert [s[own.kind.lower()] for s, own in zip(found, SAMPLES, strict=True)] == [s.image for s in SAMPLES]
    assert [int(s.get("cls", -1)) for s in found] == [3, -1, 12]


def test_the_bytes_are_those_that_webdataset_writes(tmp_path: Path) -> None:
    samples = [Sample(f"k{n}", "jpg", bytes([n]) * 300 * n, n) for n in range(40)]
    written(tmp_path / "own.tar", samples).close("own.tar")
    with webdataset.TarWriter(str(tmp_path / "theirs.tar"), mtime=0) as theirs:
        for sample in samples:
            theirs.write({"__key__": sample.key, "jpg": sample.image, "cls": sample.label})
    assert (tmp_path / "own.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_the_index_of_a_written_tar_is_what_its_writer_said(tmp_path: Path) -> None:
    writer = written(tmp_path / "a.tar", SAMPLES)
    shard, data = writer.close("a.tar"), (tmp_path / "a.tar").read_bytes()
    found = index(io.BytesIO(data), "a.tar")
    assert [row[:3] for row in found.rows] == [row[:3] for row in writer.rows]
    assert (found.bytes, found.sha256) == (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert rows(data) == [(s.key, s.image, s.label) for s in SAMPLES]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(form: int) -> None:
    deep = "/".join(["deep" * 5] * 6)  # 149 letters: beyond the 100 of a plain header
    names = [f"{deep}.jpg", "./a.b/c.JPEG", "a.b/d.png"]
    data = tar_of(*((name, name.encode()) for name in names), form=form)
    assert rows(data) == [
        (deep, names[0].encode(), -1),
        ("./a.b/c", names[1].encode(), -1),
        ("a.b/d", b"a.b/d.png", -1),
    ]


def test_members_may_come_in_any_order() -> None:
    data = tar_of(
        ("b.cls", b"1\n"), ("a.json", b"{}"), ("a.jpg", b"A"), ("b.txt", b""), ("a.cls", b" 7 "), ("b.png", b"B")
    )
    assert rows(data) == [("a", b"A", 7), ("b", b"B", 1)]


@pytest.mark.parametrize(
    ("names", "image", "chosen"),
    [
        (["k.png", "k.jpg", "k.gif"], None, "k.jpg"),
        (["k.left.jpg", "k.png"], None, "k.png"),
        (["k.right.jpg", "k.left.png"], None, "k.left.png"),
        (["k.jpg", "k.right.JPG"], "right.jpg", "k.right.JPG"),
        (["k.jpg", "k.ppm"], "ppm", "k.ppm"),
    ],
)
def test_of_several_images_one_is_chosen_by_rule(names: list[str], image: str | None, chosen: str) -> None:
    data = tar_of(*((name, name.encode()) for name in names))
    assert rows(data, image) == [("k", chosen.encode(), -1)]
    assert index(io.BytesIO(data), "a.tar").several == 1


def test_hidden_files_folders_and_meta_members_are_no_samples() -> None:
    data = tar_of((".x.jpg", b"1"), ("a/._y.jpg", b"2"), ("__meta__/z.jpg", b"3"), ("noext", b"4"), ("t.txt", b"5"))
    found = index(io.BytesIO(data), "a.tar")
    assert (found.rows, found.bare) == ([], 1)


names = st.text("ab.", min_size=1, max_size=4).filter(lambda text: not text.startswith("."))
paths = st.builds(lambda folder, name, kind: f"{folder}{name}.{kind}", st.sampled_from(["", "f/", "f.g/"]), names,
                  st.sampled_from(["jpg", "png", "x.jpg", "cls"]))  # fmt: skip


@given(st.lists(paths, unique=True, max_size=12))
def test_keys_and_kinds_are_webdatasets(members: list[str]) -> None:
    expected: dict[str, set[str]] = {}
    for name in members:
        key, kind = webdataset.tariterators.base_plus_ext(name)
        expected.setdefault(key, set()).add(kind)
    data = tar_of(*((name, b"1") for name in members))
    if sum(map(len, expected.values())) == len(members):
        images = {key for key, kinds in expected.items() if any(not kind.endswith("cls") for kind in kinds)}
        assert {key for key, *_ in index(io.BytesIO(data), "a.tar").rows} == images


def test_a_key_that_comes_twice_is_named_with_its_tar() -> None:
    with pytest.raises(DataError, match=r"a\.tar has key 'f/k' twice: a second member f/k\.jpg"):
        rows(tar_of(("f/k.jpg", b"1"), ("z.jpg", b"2"), ("f/k.jpg", b"3")))


def test_a_label_that_is_no_name_is_shown() -> None:
    with pytest.raises(DataError, match=r"a\.tar has k\.cls with 'a\\nb': a label is a number or a name of one line"):
        rows(tar_of(("k.jpg", b"1"), ("k.cls", b"a\nb")))


def test_a_link_in_place_of_an_image_is_refused() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("k.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "other.jpg"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"a\.tar holds k\.jpg as a link"):
        rows(file.getvalue())


GOOD = tar_of(("a.jpg", b"x" * 1000), ("ä.cls", b"1"), ("b.jpg", b"y" * 600))
BEHIND_A, BEHIND_LABEL = 1536, 3584
USED = GOOD[: len(GOOD.rstrip(b"\0")) // 512 * 512 + 512]


@pytest.mark.parametrize("size", [0, 1, *range(512, len(USED) + 1, 256)])
def test_a_tar_that_was_cut_anywhere_is_damaged_or_lacks_its_end(size: int) -> None:
    if size in (BEHIND_A, BEHIND_LABEL, len(USED)):  # whole members, as some tools write them
        assert not index(io.BytesIO(GOOD[:size]), "a.tar").ended
    else:
        with pytest.raises(DataError, match=r"a\.tar is damaged"):
            index(io.BytesIO(GOOD[:size]), "a.tar")
    assert index(io.BytesIO(GOOD), "a.tar").ended


def test_a_damaged_header_is_not_taken_for_the_end() -> None:
    second = GOOD.index(b"b.jpg")
    with pytest.raises(DataError, match=rf"a\.tar is damaged: at byte {second}: bad checksum"):
        index(io.BytesIO(GOOD[:second] + b"c" + GOOD[second + 1 :]), "a.tar")


def test_joined_and_compressed_tars_are_refused() -> None:
    with pytest.raises(DataError, match="bytes follow its end mark"):
        index(io.BytesIO(GOOD + GOOD), "a.tar")
    with pytest.raises(DataError, match="is damaged") as caught:
        index(io.BytesIO(gzip.compress(GOOD)), "a.tar")
    assert "must be decompressed" in caught.value.remedy


def test_a_tar_of_endless_members_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 10)
    data = tar_of(*((f"{n}.json", b"") for n in range(11)))
    with pytest.raises(DataError, match=r"a\.tar has more than 10 members") as caught:
        index(io.BytesIO(data), "a.tar")
    assert "Write several tars" in caught.value.remedy
    assert index(io.BytesIO(tar_of(*((f"{n}.json", b"") for n in range(10)))), "a.tar").bare == 10


def test_a_long_header_is_refused_before_it_fills_the_memory() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(DataError, match=r"a\.tar is damaged: at byte 0: a header of 1073741824 bytes"):
        index(io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT)), "a.tar")
    long_but_ordinary = "x" * 60_000 + ".jpg"
    assert len(rows(tar_of((long_but_ordinary, b"pixels")))) == 1


def header(name: str, kind: bytes, size: int = 0) -> bytes:
    """The header of a member, or of what describes the next one."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def described(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header with fields, as they are written or not."""
    return header("p", kind, len(body)) + body + bytes(-len(body) % 512)


def fields(**values: str) -> bytes:
    """Fields as they are written: the length of each is part of it."""
    rows = [f" {name}={value}\n".encode() for name, value in values.items()]
    sizes = [next(n for n in range(len(row), len(row) + 9) if n == len(f"{n}") + len(row)) for row in rows]
    return b"".join(f"{size}".encode() + row for size, row in zip(sizes, rows, strict=True))


IMAGE, END = header("a.jpg", tarfile.REGTYPE), bytes(10240)
REAL = fields(**{"GNU.sparse.realsize": "9" * 20})
SPARSE = fields(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})


@pytest.mark.parametrize(
    "start",
    [
        header("p", tarfile.XHDTYPE) * 3000,
        described(fields(**{"GNU.sparse.realsize": "x"})),
        described(fields(size="x" * 5)) + described(b"9" * 30),
        described(fields(size="-1024")),
        header("p", tarfile.XHDTYPE, -256),
        header("b.jpg", tarfile.REGTYPE, -1),
        header("b.jpg", tarfile.REGTYPE, 1 << 80),
        header("b.jpg", tarfile.GNUTYPE_SPARSE)[:482] + b"\1",
    ],
)
def test_headers_that_make_no_sense_are_damage(start: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.tar is damaged"):
        index(io.BytesIO(start + IMAGE + END), "a.tar")


@pytest.mark.parametrize(
    "body",
    [
        b"1" * 65_536,  # tarfile looks for the end of the digits from each of them on
        b"2 " * 32_000 + b"a=\n",  # each field would have all the others in its name
        fields(comment="1" * 60_000),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_fields_that_take_long_to_read_are_not_read(body: bytes, kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile.TarInfo, "_proc_pax", lambda *_: pytest.fail("tarfile read them"))
    with pytest.raises(DataError, match=r"a\.tar is damaged: at byte 0: a header whose fields make no sense"):
        index(io.BytesIO(described(body, kind) + IMAGE + END), "a.tar")


def test_fields_of_all_members_do_not_grow_without_end() -> None:
    plain = header("plain", tarfile.REGTYPE)
    many = b"".join(described(fields(**{f"x{number}": "y"}), tarfile.XGLTYPE) + plain for number in range(200))
    with pytest.raises(DataError, match="too many headers"):
        index(io.BytesIO(many + END), "a.tar")


@pytest.mark.parametrize(
    "version", [SPARSE, fields(**{"GNU.sparse.map": "x,y"}), fields(**{"GNU.sparse.size": "7"}), REAL]
)
def test_the_map_of_a_sparse_member_is_not_read(version: bytes) -> None:
    other = described(version) + header("b.json", tarfile.REGTYPE, 1024) + b"5\n1" + bytes(1021)
    with bounded_memory():
        assert len(index(io.BytesIO(other + GOOD), "a.tar").rows) == 2
        with pytest.raises(DataError, match=r"holds a\.jpg as a link or a sparse file"):
            index(io.BytesIO(described(version) + IMAGE + END), "a.tar")


def test_what_tars_hold_about_their_files_is_passed_over() -> None:
    long = fields(**{"SCHILY.xattr.user.note": "x" * 60_000, "LIBARCHIVE.creationtime": "1.5", "hdrcharset": "BINARY"})
    both = described(fields(comment="0" * 40), tarfile.XGLTYPE) + described(long)
    assert len(index(io.BytesIO(both + GOOD), "a.tar").rows) == 2


class Huge:
    """A tar of 9 GiB that is never in memory: a member of 9 GiB of zeros, then a small one."""

    def __init__(self) -> None:
        info = tarfile.TarInfo("a.jpg")
        info.size = 9 << 30
        self.parts: list[tuple[bytes, int]] = [
            (info.tobuf(tarfile.GNU_FORMAT), 512),
            (b"", info.size),
            (GOOD, len(GOOD)),
        ]
        self.zeros = bytes(archive.STEP)

    def read(self, size: int) -> bytes:
        while self.parts and not self.parts[0][1]:
            self.parts.pop(0)
        if not self.parts:
            return b""
        data, left = self.parts[0]
        size = min(size, left)
        self.parts[0] = (data[size:], left - size)
        return data[:size] if data else self.zeros[:size]


class NoHash:
    def update(self, data: bytes) -> None: ...

    def hexdigest(self) -> str:
        return ""


def test_offsets_beyond_8_gb_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive.hashlib, "sha256", NoHash)  # 9 GiB would take seconds to hash
    monkeypatch.setattr(archive, "STEP", 1 << 22)
    huge = tar_of(("c.jpg", b"z" * 10))
    file = Huge()
    file.parts[2] = (huge, len(huge))
    assert index(file, "a.tar").rows == [("a", 512, 9 << 30, -1), ("c", (9 << 30) + 1024, 10, -1)]
