"""The garments are keyed by (seed, split, number) alone, upright, at most a quarter hidden, and not told by colour."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from launch.run_dir import PROJECT
from shards import make
from shards.clutter import Grid
from shards.command_line import Bytes, Threads
from shards.drawing import stream
from shards.sources import garments
from shards.sources.garments import GarmentOptions
from tests.shards.wardrobe import idx_bytes, wardrobe

QUIET = Console(quiet=True)
GRID = Grid(64)
BAR = np.zeros((28, 28), np.uint8)
BAR[2:26, 11:17] = 200  # upright
BAR[2:8, 11:17] = 100  # its head

real = pytest.mark.skipif(not garments.FOLDER.is_dir(), reason=f"no package {garments.PACKAGE}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files of a small wardrobe."""
    return wardrobe(tmp_path_factory.mktemp("wardrobe"))


def drawn(folder: Path, out: Path, **options: int) -> manifest.Manifest:
    """The manifest of what is drawn from a folder: by default 30 and 10 images of 32 px, in several shards."""
    given = {"train": 30, "val": 10, "size": 32, **options}
    threads = Threads(given.pop("threads", 1))
    make.make("garments", out, QUIET, GarmentOptions(folder, **given, shard_bytes=Bytes(9000), threads=threads))
    return manifest.read(out)


def images(split: str, count: int, options: GarmentOptions) -> tuple[np.ndarray, np.ndarray]:
    """The first images [count, size, size, 3] of a split, and their labels."""
    source = garments.contents(garments.read(options.path, split), split, count, options)
    samples = [source.sample(index) for index in range(count)]
    pixels = [np.asarray(Image.open(io.BytesIO(sample.image))) for sample in samples]
    return np.stack(pixels), np.array([sample.label for sample in samples])


def test_any_number_of_threads_draws_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    found = [drawn(folder, tmp_path / str(threads), threads=threads) for threads in (1, 3)]
    assert found[0].identity == found[1].identity
    assert len(found[0].split("train").shards) > 2


def test_the_seed_and_the_size_make_another_data_set(folder: Path, tmp_path: Path) -> None:
    options: list[dict[str, int]] = [{}, {"seed": 1}, {"size": 48}]
    assert len({drawn(folder, tmp_path / str(n), **o).identity for n, o in enumerate(options)}) == 3


def test_a_split_takes_its_own_file_and_no_garment_twice(folder: Path, tmp_path: Path) -> None:
    made = drawn(folder, tmp_path / "all", train=40, val=20)
    assert np.bincount(made.split("train").samples.labels, minlength=10).tolist() == [8] * 5 + [0] * 5
    assert np.bincount(made.split("val").samples.labels, minlength=10).tolist() == [0] * 5 + [4] * 5
    assert made.classes == garments.CLASSES


def test_images_are_rgb_jpeg_files_of_the_side_asked_for(folder: Path, tmp_path: Path) -> None:
    split = drawn(folder, tmp_path / "out", size=40).split("train")
    with Reader(split) as reader:
        stored = [Image.open(io.BytesIO(reader.read(index))) for index in range(30)]
    assert {(image.format, image.mode, image.size) for image in stored} == {("JPEG", "RGB", (40, 40))}
    assert len({image.tobytes() for image in stored}) == 30


def test_fewer_images_are_the_first_of_more(folder: Path) -> None:
    assert list(garments.chosen(40, 40, 0, "train"))[:7] == garments.chosen(40, 7, 0, "train")
    assert sorted(garments.chosen(40, 40, 0, "train")) == list(range(40))
    assert garments.chosen(40, 40, 0, "train") != garments.chosen(40, 40, 1, "train")
    few, more = (images("train", count, GarmentOptions(folder, size=32))[0] for count in (3, 6))
    assert np.array_equal(few, more[:3])


def test_the_size_changes_the_resolution_alone(folder: Path) -> None:
    large, small = (images("train", 20, GarmentOptions(folder, size=size))[0].astype(float) for size in (64, 32))
    shrunk = large.reshape(20, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 0.2 * np.abs(shrunk - small[::-1]).mean()


def placed(number: int, grid: Grid = GRID) -> np.ndarray:
    """The cover [4, size, size] of the bar, whose first three channels are its head's where palettes differ."""
    levels = np.stack([BAR == 100] * 3 + [BAR > 0]).astype(np.float32)
    return garments.placed(levels, grid, stream(0, "placed", number))


def test_garments_are_upright_to_twenty_degrees_and_stay_in_the_image() -> None:
    leans = []
    for number in range(200):
        head, *_, cover = placed(number)
        x, y = (float((axis * cover).sum() / cover.sum()) for axis in (GRID.x, GRID.y))
        right, down = GRID.x - x, GRID.y - y
        across = float((cover * right * down).sum())
        leans.append(0.5 * math.atan2(2 * across, float((cover * (down**2 - right**2)).sum())))
        assert float((GRID.y * head).sum() / head.sum()) < y - 0.1, "the head is above the middle"
        assert math.hypot(x, y) < 0.17
        assert 0.45 < cover.sum() / 64**2 / (24 * 6 / 28**2) < 0.95, "70 to 95 % of the side; a little may be cut off"
    degrees = np.degrees(leans)
    assert np.abs(degrees).max() < 21
    assert degrees.min() < -17
    assert degrees.max() > 17


def test_at_most_a_quarter_of_a_garment_is_hidden() -> None:
    shares = []
    for number in range(300):
        cover = placed(number)[3]
        image = np.full((3, 64, 64), np.float32(-1000))
        garments.occlude(image, cover, GRID, stream(0, "hidden", number))
        hidden = image[0] > -500
        shares.append(np.count_nonzero(hidden & (cover > 0.5)) / np.count_nonzero(cover > 0.5))
    assert max(shares) <= 0.25
    assert max(shares) > 0.2
    assert 0.2 < np.mean(np.array(shares) > 0.02) < 0.6


def test_the_bright_part_of_a_garment_is_as_often_the_dark_one() -> None:
    signs = []
    for number in range(300):
        red, green, blue, _ = garments.coloured(BAR, stream(0, "coloured", number))
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        signs.append(luma[20, 14] > luma[5, 14])
    assert 0.4 < np.mean(signs) < 0.6


def test_enclosed_gaps_are_filled_and_open_ones_are_not() -> None:
    rows = ["0110", "1001", "1111", "1001", "1001"]
    mask = np.array([[cell == "1" for cell in row] for row in rows])
    assert garments.filled(mask).astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], *[[1, 0, 0, 1]] * 2]


def test_the_greatest_neighbour_is_the_slow_search_s() -> None:
    values = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    slow = [[values[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() for x in range(28)] for y in range(28)]
    assert garments.greatest(values).tolist() == slow


def test_edges_are_parted_from_the_black_ground() -> None:
    picture = np.zeros((28, 28), np.uint8)
    picture[5:20, 5:20] = 200
    picture[12, 12] = 0  # a dark print
    picture[5:20, 20] = 50  # a quarter of a pixel
    picture[25, 25] = 3  # a speck
    grey, cover = garments.unmixed(picture)
    assert (grey[12, 12], cover[12, 12]) == (0, 1)
    assert (grey[10, 20], cover[10, 20]) == (200, 0.25)
    assert (grey[10, 10], cover[10, 10]) == (200, 1)
    assert cover[25, 25] < 0.1
    assert cover[2, 2] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["size=31"], "size=31 is not possible: it must be 32 to 64 px.\n  Set size=64, for example."),
        (["size=65"], "size=65 is not possible"),
        (["train=41"], "train=41 is not possible: there are 40 garments.\n  Set train=40."),
        (["train=40", "val=21"], "val=21 is not possible: there are 20 garments."),
        (["threads=0"], "threads=0 is not possible"),
        (["trian=4"], "Did you mean 'train'?"),
    ],
)
def test_options_outside_their_range_are_refused(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(make.run, ["source=garments", f"path={folder}", f"out={tmp_path / 'o'}", *words]) == 2
    assert message in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_without_the_files_the_package_and_the_option_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(make.run, ["source=garments", f"path={tmp_path / 'none'}", f"out={tmp_path / 'o'}"]) == 2
    problem, remedy = capsys.readouterr().out.splitlines()
    assert problem == f"{tmp_path / 'none'} has no train-images-idx3-ubyte, with or without .gz."
    assert remedy.startswith("  Install Debian's package dataset-fashion-mnist (apt-get install dataset-fashion-mnist)")
    assert "path=FOLDER" in remedy


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        ("images-idx3", np.zeros((20, 28, 27), np.uint8), "has pictures of 28 x 27 px, not 28 x 28."),
        ("images-idx3", np.zeros((19, 28, 28), np.uint8), "has 19 pictures, and "),
        ("labels-idx1", np.full(20, 10, np.uint8), "has label 10: labels are 0 to 9."),
        ("labels-idx1", np.zeros((20, 1), np.uint8), "begins with 00000802, not 00000801"),
    ],
)
def test_files_that_do_not_fit_are_one_message(
    kind: str, values: np.ndarray, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (wardrobe(tmp_path / "in") / f"t10k-{kind}-ubyte").write_bytes(idx_bytes(values))
    words = [f"path={tmp_path / 'in'}", f"out={tmp_path / 'o'}", "train=40", "val=20"]
    assert run_command(make.run, ["source=garments", *words]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert problem in lines[0]
    assert garments.PACKAGE in lines[1]


@real
def test_the_package_has_all_of_fashion_mnist() -> None:
    counts = {split: np.bincount(garments.read(garments.FOLDER, split).labels).tolist() for split in ("train", "val")}
    assert counts == {"train": [6000] * 10, "val": [1000] * 10}


@real
def test_mean_colour_does_not_reveal_the_class() -> None:
    options = GarmentOptions(size=32)
    (known, known_labels), (asked, labels) = (
        images(split, n, options) for split, n in (("train", 2000), ("val", 1000))
    )
    known, asked = known.mean((1, 2)), asked.mean((1, 2))
    centres = np.stack([known[known_labels == label].mean(0) for label in range(10)])
    guesses = ((asked[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (guesses == labels).mean() < 0.17


@real
def test_the_config_has_the_mean_and_the_spread_of_the_images() -> None:
    config = yaml.safe_load((PROJECT / "configs/data/garments.yaml").read_text())
    pixels = images("train", 300, GarmentOptions())[0] / 255
    assert np.allclose(pixels.mean((0, 1, 2)), config["mean"], atol=0.03)
    assert np.allclose(pixels.std((0, 1, 2)), config["std"], atol=0.02)
