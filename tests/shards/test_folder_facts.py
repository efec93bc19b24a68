"""Facts about folders of pictures whose facts are known."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from shards.command_line import HeldOut
from shards.folder_facts import Facts, measure, measure_shards, moments
from shards.sources.imagefolder import FolderOptions, find, write
from tests.shards.pictures import folder_of

SHAPE = (40, 60, 3)


def written(root: Path, *images: np.ndarray, folder: str = "") -> Path:
    """Write images as PNGs, whose pixels are kept."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{number}.png")
    return root


def facts(root: Path, sample: int = 400) -> Facts:
    return measure(find(FolderOptions(root), Console(quiet=True)), 2, sample)


def test_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *SHAPE))
    found = facts(written(tmp_path, *pixels))
    flat = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, flat.mean(0), atol=1e-3)
    np.testing.assert_allclose(found.std, flat.std(0), atol=1e-3)
    assert (found.train, found.val, found.classes, found.measured, found.unreadable) == (3, 0, 0, 3, 0)


def test_moments_are_exact_and_take_no_memory() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (900, 1100, 3), dtype=np.uint8)
    values = pixels.reshape(-1, 3) / 255
    tracemalloc.start()
    mean, square = moments(pixels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(square, (values**2).mean(0), rtol=1e-12)
    assert most < pixels.nbytes / 2, "a folder of large PNGs is measured in many threads at once"


def test_sides_are_percentiles_of_the_shorter_side_of_the_upright_original(tmp_path: Path) -> None:
    images = [np.zeros((side, 90, 3)) for side in range(20, 31)]
    assert facts(written(tmp_path, *images)).short_sides == (21, 25, 29)
    file = io.BytesIO()
    Image.new("RGB", (900, 700)).save(file, "JPEG")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "large.jpg").write_bytes(file.getvalue())
    assert facts(tmp_path / "only").short_sides == (700, 700, 700), "decoded at a smaller scale, measured at the full"


def test_grey_pictures_are_counted_whatever_their_format(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, SHAPE)
    grey = np.repeat(noise[..., :1], 3, axis=2)
    written(tmp_path, grey[..., 0], grey, noise)
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "3.jpg", quality=60)
    assert facts(tmp_path).grey == 0.75


def test_colour_is_between_pictures_of_one_colour_each_and_within_those_of_all_colours(tmp_path: Path) -> None:
    plain = [np.broadcast_to(colour, SHAPE) for colour in ([200, 30, 30], [30, 200, 30], [30, 30, 200])]
    assert facts(written(tmp_path / "plain", *plain)).colour == 1
    striped = np.concatenate([picture[:, :20] for picture in plain], 1)
    assert facts(written(tmp_path / "striped", striped, striped[::-1])).colour < 0.01
    light = [np.full(SHAPE, value) for value in (20, 120, 220)]
    assert facts(written(tmp_path / "light", *light)).colour == 0, "light is not colour"


def test_turns_are_of_the_middle_square_and_few_pictures_count_as_noticed(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    pictures = [np.full((40, 60, 3), 255) for _ in range(60)]
    for number, picture in enumerate(pictures):
        picture[:: random.integers(3, 7)] = random.integers(0, 200, 3)  # level stripes
        picture[:, : 10 + number % 2] = 0  # outside of the square
    found = facts(written(tmp_path / "many", *pictures))
    assert found.turned > 0.9
    few = facts(written(tmp_path / "few", *pictures[:3]))
    assert (few.turned, few.recoloured) == (1.0, 1.0)


def test_hues_are_compared_of_pictures_that_have_any(tmp_path: Path) -> None:
    red = [np.full(SHAPE, (150 + number, 20, 20 + number % 7)) for number in range(40)]
    alone = facts(written(tmp_path / "red", *red)).recoloured
    grey = [np.full(SHAPE, number) for number in range(100, 160)]
    found = facts(written(tmp_path / "both", *red, *grey))
    assert (found.grey, found.recoloured, alone) == (0.6, 1.0, 1.0)


def test_statistics_of_deep_pictures_are_those_of_their_range(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 4096, (3, 40, 60)).astype(np.uint16)
    for number, picture in enumerate(values):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    found = facts(tmp_path)
    assert 4000 < found.deepest < 4096
    np.testing.assert_allclose(found.mean, values.mean() / 4095, atol=2e-3)


def test_what_cannot_be_read_is_counted_and_a_folder_of_nothing_else_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", "1.jpg", "2.jpg")
    (tmp_path / "in" / "3.jpg").write_bytes(b"no image")
    found = facts(tmp_path / "in")
    assert (found.measured, found.unreadable, found.short_sides) == (3, 1, (12, 12, 12))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "3.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 1 picture"):
        facts(tmp_path / "bad")


def test_a_sample_of_the_training_pictures_is_measured(tmp_path: Path) -> None:
    folder_of(tmp_path, *(f"{label}/{n}.jpg" for label in "ab" for n in range(30)))
    found = facts(tmp_path, sample=7)
    assert (found.train, found.val, found.classes, found.measured) == (48, 12, 2, 7)


def test_shards_have_the_facts_of_the_folder_that_they_were_packed_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for kind in ("a", "b"):
        written(tmp_path / "in", *rng.integers(0, 256, (8, *SHAPE)), folder=kind)
    console = Console(quiet=True)
    write(tmp_path / "out", FolderOptions(tmp_path / "in", val=HeldOut(4)), console)
    packed = manifest.read(tmp_path / "out")
    assert measure_shards(packed, 2) == measure(find(FolderOptions(tmp_path / "in", val=HeldOut(4)), console), 2)
    assert measure_shards(packed, 2, sample=3).measured == 3
    write(tmp_path / "bare", FolderOptions(tmp_path / "in", labels=False), console)
    assert measure_shards(manifest.read(tmp_path / "bare"), 2).classes == 0


def test_floats_are_measured_in_the_range_that_is_found_or_given(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((*SHAPE[:2], 5), 40_000, dtype=np.float32))
    found = facts(tmp_path)
    assert found.floats
    assert (found.deepest, found.unreadable) == (40_000, 0)
    assert found.mean == pytest.approx([40_000 / 65_535] * 5, abs=3e-3)
    given = measure(find(FolderOptions(tmp_path), Console(quiet=True)), 1, white=80_000)
    assert given.mean == pytest.approx([0.5] * 5, abs=3e-3)
