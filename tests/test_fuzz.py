"""Whatever a stranger writes into a file that is read here: an answer or one clear error, bounded memory.

A few hundred inputs in the suite, 20,000 of each kind under `make chaos`.
"""

import copy
import io
import json
import math
import os
import random
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from PIL import Image, ImageOps

from dist_ssl.checkpoint import index as checkpoints
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.data.images.decode import SCANS_CORRECTED, decode, largest_value
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.read import Reader
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError, UserError
from dist_ssl.runtime import jsonl
from shards.archive import index
from shards.tar_headers import LONG
from tests.checkpoint.test_saver import FRESH, Store, at, tensors
from tests.checkpoint.whole_checkpoints import put
from tests.data.images.test_array_files import file_of
from tests.data.images.test_image_rules import png_of
from tests.data.images.test_tiff_bands import noise, tiff
from tests.data.images.test_tiff_segments import KINDS, big
from tests.data.images.test_tiff_segments import packed as by_libtiff
from tests.fuzzing import NASTY, edited, mutated, shares, some, tried
from tests.shards.test_archive import described, fields, header

MOST_PIXELS = 1 << 22
IMAGE_SECONDS = 5.0
RULES = [
    *(ImageRules(MOST_PIXELS), ImageRules(MOST_PIXELS, 4095, "black"), ImageRules(MOST_PIXELS, 1.0, "drop")),
    *(ImageRules(MOST_PIXELS, 1.0, channels=5), ImageRules(MOST_PIXELS, (1.0, 9.0, 4095.0, 0.5, 7.0), channels=5)),
    ImageRules(MOST_PIXELS, channels=1, bits=16),
    *(ImageRules(), ImageRules(range=4095, bits=16, channels=4)),
]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Path]:
    """A folder beside a file that nothing may change."""
    canary, folder = tmp_path / "thesis.tar", tmp_path / "data"
    canary.write_text("years of work")
    folder.mkdir()
    yield folder
    assert canary.read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "thesis.tar"]


def picture(kind: str, **options: Any) -> bytes:
    y, x = np.mgrid[0:40, 0:56]
    pixels = np.stack([128 + 100 * np.sin(x / 5), 2 * x + y, 3 * y], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(file, kind, **options)
    return file.getvalue()


PICTURES = [
    *(picture("JPEG"), picture("JPEG", progressive=True), picture("JPEG", mode="CMYK"), picture("JPEG", mode="L")),
    *(picture("PNG"), picture("PNG", mode="P"), picture("PNG", mode="RGBA"), picture("GIF"), picture("BMP")),
    *(picture("TIFF"), picture("TIFF", compression="tiff_lzw"), picture("WEBP"), picture("WEBP", lossless=True)),
    *(picture("PPM"), picture("JPEG2000"), picture("AVIF"), picture("TIFF", mode="F"), picture("PNG", mode="I;16")),
    *(b"P6 20 30 %d " % white + bytes(range(90)) * 40 for white in (200, 3000)),
    png_of(np.arange(480).reshape(10, 12, 4) * 100),
    *(b"P%d 4 3%s " % (kind, white) + b"1 # a\n0 " * 18 for kind, white in [(1, b""), (2, b" 255"), (3, b" 65535")]),
    b"P2 2 2 255 1" + b"#\n" * 100_000 + b" 2 3 4",
    *(file_of(noise(20, 24, 5, dtype=kind)) for kind in ("u1", "u2", "f4")),
    *(
        tiff(noise(20, 24, 5), deflated=deflated, apart=not deflated, rows=rows)
        for deflated in (False, True)
        for rows in (7, None)
    ),
    *(by_libtiff(kind, noise(20, 24, 5), rows=rows, apart=kind == "packbits") for kind in KINDS for rows in (7, None)),
    *(big(order, noise(20, 24, 5)) for order in "<>"),
]


@pytest.mark.parametrize("inputs", shares(100))
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_read_or_unreadable(inputs: range, guarded: Path) -> None:
    def work(chance: random.Random) -> bool:
        data = mutated(chance.choice(PICTURES), chance)
        largest_value(data)
        rules = chance.choice(RULES)
        try:
            found = decode(data, chance.choice([1, 8, 40, 10**6]), rules)
        except UnreadableError:
            return False
        height, width, _ = found.pixels.shape
        assert 0 < height * width <= rules.max_pixels
        return True

    assert some(tried(inputs, work, guarded, seconds=IMAGE_SECONDS), inputs)


JPEGS = [
    *(picture("JPEG"), picture("JPEG", progressive=True), picture("JPEG", mode="L")),
    *(picture("JPEG", subsampling=kind, quality=40) for kind in (0, 1)),
    *(picture("JPEG", optimize=True), picture("JPEG", restart_marker_rows=1)),
]


def by_pillow(data: bytes) -> Any:
    """The pixels that another build of libjpeg finds behind another interface; None where it gives none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:
        return None


@pytest.mark.parametrize("inputs", shares(100))
@pytest.mark.filterwarnings("ignore")
def test_damaged_jpegs_have_the_pixels_that_another_decoder_finds(inputs: range, guarded: Path) -> None:
    def work(chance: random.Random) -> bool:
        data = mutated(chance.choice(JPEGS), chance)
        try:
            found = decode(data, 10**6)
        except UnreadableError:
            return False
        other = by_pillow(data)
        if other is not None and found.slow != SCANS_CORRECTED:  # which is counted
            assert np.array_equal(found.pixels, other)
        return other is not None

    assert some(tried(inputs, work, guarded, seconds=IMAGE_SECONDS), inputs)


def small_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(["a.jpg", "a.cls", "b.png", "b.cls", "ü" * 120 + ".jpg"]):
            data = str(number).encode() if name.endswith("cls") else bytes([number]) * 700
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


SPARSE_FIELDS = ("map", "size", "realsize", "major", "minor", "offset", "numbytes", "numblocks", "name")
TOLD = ("size", "path", "hdrcharset", "comment", "mtime", *(f"GNU.sparse.{own}" for own in SPARSE_FIELDS))
VALUES = (
    "",
    "0",
    "1",
    "-1024",
    "7",
    "x",
    "x,y",
    "0,5,7,9",
    "BINARY",
    "a/b.jpg",
    "9" * 20,
    "1" * 300,
    "9" * 5000,
    "\x00",
)
KINDS = (*LONG, tarfile.GNUTYPE_SPARSE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE)


def described_tar(chance: random.Random) -> bytes:
    """A tar with one to four headers that somebody has written, whose checksums are right, before its members."""
    parts = []
    for _ in range(chance.randint(1, 4)):
        body = fields(**{chance.choice(TOLD): chance.choice(VALUES) for _ in range(chance.randint(1, 4))})
        body = mutated(body, chance) if chance.random() < 0.5 else body
        kind = described(body, chance.choice(KINDS))
        odd = header("b.jpg", chance.choice(KINDS), chance.choice([-1, 0, 512, 1 << 33, 1 << 80]))
        parts.append(chance.choice([kind, kind, kind, odd, odd * 300]))
    return b"".join(parts) + small_tar()


@pytest.mark.parametrize("inputs", shares(100))
def test_damaged_tars_are_indexed_or_refused(inputs: range, guarded: Path) -> None:
    whole = small_tar()

    def work(chance: random.Random) -> bool:
        data = mutated(whole, chance) if chance.random() < 0.5 else described_tar(chance)
        try:
            found = index(io.BytesIO(data), "a.tar")
        except DataError:
            return False
        assert all(0 <= offset <= offset + size <= len(data) for _, offset, size, *_ in found.rows)
        return True

    assert some(tried(inputs, work, guarded), inputs)


def doctored(folder: Path, whole: dict[str, bytes], chance: random.Random) -> None:
    """Write a data set, one of whose files is changed: its JSON, its columns with a fitting hash, or any bytes."""
    files, kind = dict(whole), chance.randrange(4)
    if kind == 0:
        content = edited(json.loads(files["manifest.json"]), chance)
        if chance.random() < 0.2 and isinstance(content, dict) and isinstance(splits := content.get("splits"), dict):
            splits[str(chance.choice(NASTY))] = splits.pop("val", None)
        files["manifest.json"] = json.dumps(content).encode()
    elif kind == 1:
        columns = {name: column.copy() for name, column in safetensors.numpy.load(files[SAMPLES]).items()}
        column = columns[name := chance.choice(sorted(columns))]
        small = column.dtype == np.uint8
        column[chance.randrange(len(column))] = chance.choice([0, 1, 255] if small else [-(2**63), -1, 2**40, 2**62])
        columns[name] = chance.choice([column, column[:-1], column.astype(np.float64), column[None]])
        files[SAMPLES] = safetensors.numpy.save(columns)
        content = json.loads(files["manifest.json"])
        content["splits"]["train"]["samples_xxh3"] = xxhash.xxh3_128_hexdigest(files[SAMPLES])
        files["manifest.json"] = json.dumps(content).encode()
    else:
        name = chance.choice([name for name in files if not name.endswith(".tar")])
        files[name] = mutated(files[name], chance)
    for name, data in files.items():
        if not (path := folder / name).is_file() or path.read_bytes() != data:
            path.write_bytes(data)  # some file systems wait for the disk before a file is written anew


SAMPLES = "train.samples.safetensors"


@pytest.mark.parametrize("inputs", shares(100))
def test_manifests_of_strangers_are_read_or_refused(inputs: range, guarded: Path, demo_shards: Path) -> None:
    whole = {path.name: path.read_bytes() for path in demo_shards.iterdir()}
    level = {"side": 8, "identity": "f" * 32, "range": None, "alpha": "white"}
    lists = [{"format": 1, "of": manifest.read(demo_shards).identity, "levels": own} for own in ([], [level])]

    def work(chance: random.Random) -> bool:
        of_levels = json.dumps(chance.choice(lists)).encode()
        doctored(guarded, {**whole, "pyramid.json": of_levels}, chance)
        where = Address(str(guarded))
        try:
            found = manifest.read(guarded)
            assert all("/" not in name for name in found.splits)
            for level in pyramid.read(where, found, Fetcher()).values():
                pyramid.check_rules(level, RULES[0], where)
            split = found.split("train")
            split.check()
            reader = Reader(split)
            for number in range(0, len(split.samples), 17):
                reader.read(number)
                split.samples.key(number)
            reader.close()
        except UserError:
            return False
        return True

    assert some(tried(inputs, work, guarded), inputs)


SHAPES = ([1 << 40], [1 << 36], [1 << 20, 1 << 10], [0, 1 << 40, 1 << 40], [1] * 1000, [0] * 65, [], [1 << 62])
"""Shapes of tensors that no file holds."""


def state_of(table: dict[str, Any], chance: random.Random) -> str:
    """Return state.json with something edited, sealed again: what somebody writes who knows the format."""
    content = {key: copy.deepcopy(value) for key, value in table.items() if key != "xxh3"}
    if chance.random() < 0.3:
        row = content["tensors"][chance.choice(sorted(content["tensors"]))]
        row["shape"] = chance.choice(SHAPES)
        row["each"] = chance.choice([0, 1, math.prod(row["shape"]), "even"])
        row["others"] = chance.choice([[], [[0, 0, math.prod(row["shape"])]]])
        content["ranks"] = chance.choice([1, 1, 1000, 1 << 20])
        return checkpoints.sealed_text(content)
    for _ in range(chance.randint(1, 2)):
        content = edited(content, chance)
    return checkpoints.sealed_text(content) if isinstance(content, dict) else json.dumps(content)


@pytest.mark.parametrize("inputs", shares(100))
def test_a_checkpoint_that_was_edited_and_sealed_is_loaded_whole_or_passed_over(
    inputs: range, guarded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder = guarded / "step_00000002"
    put(folder, at(2).to_json(), [tensors(2)])
    table = json.loads((folder / "state.json").read_text())

    def work(chance: random.Random) -> bool:
        shutil.rmtree(guarded / "damaged_step_00000002", ignore_errors=True)
        (folder / "state.json").write_text(state_of(table, chance))
        engine = Store(-1)
        try:
            Checkpoint(guarded, World(), keep_last=2, attempt=2, newest=lambda: True).restore(engine, FRESH)  # type: ignore[arg-type]
        except UserError:
            return False
        return True

    assert tried(inputs, work, guarded) < len(inputs)


@pytest.mark.parametrize("inputs", shares(100))
def test_lines_of_strangers_are_rows_or_passed_over(inputs: range, guarded: Path) -> None:
    path, row = guarded / "rows.jsonl", {"step": 1, "names": ["a", "b"], "values": {"x": 1.5}}

    def work(chance: random.Random) -> bool:
        text = json.dumps(edited(row, chance)).encode() + b"\n"
        path.write_bytes(b'{"step": 0}\n' + (mutated(text, chance) if chance.random() < 0.5 else text) + b"\n")
        rows = jsonl.read(path)
        assert rows[0] == {"step": 0}
        json.dumps(rows)  # what is read can be written again
        return len(rows) > 1

    assert some(tried(inputs, work, guarded), inputs)
