"""An encoder in a file: the same bits come back, images are seen as in evaluations, and other files are refused."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import dist_ssl
from dist_ssl.data.epoch_views import Colours
from dist_ssl.errors import CheckpointError, ConfigError, DataError
from dist_ssl.evaluate.inputs import CentreView
from dist_ssl.methods.emp_ssl import Widened
from dist_ssl.models import encoders
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.models.vit import vit
from dist_ssl.saved_encoder import KEY, Description, SavedEncoder
from launch import slurm, warm_start
from tests.fuzzing import bounded_memory

TINY = {"_target_": "dist_ssl.models.encoders.TinyResNet", "width": 4, "pool": "mean"}
DESCRIPTION = Description(
    format=1,
    encoder=TINY,
    extra_layer=None,
    resize=20,
    crop=16,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    branch="student",
    step=7,
    method="mocov3",
    run="x",
    data="abc",
)


def shaken(encoder: nn.Module) -> nn.Module:
    """The encoder with all weights and statistics changed at random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in (x for x in encoder.state_dict().values() if x.is_floating_point()):
            value.add_(torch.rand_like(value) * 0.2)
    return encoder


def tiny() -> SavedEncoder:
    return SavedEncoder(shaken(TinyResNet(4, pool="mean")), DESCRIPTION)


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    shape = (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8).squeeze(), mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_an_encoder_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    saved = tiny()
    saved.write(tmp_path / "encoder.safetensors")
    for place in (tmp_path, tmp_path / "encoder.safetensors", str(tmp_path)):
        found = dist_ssl.load_encoder(place)
        assert found.description == saved.description
        assert found.num_features == 32
        assert not found.training
        assert not any(parameter.requires_grad for parameter in found.parameters())
        x = torch.randn(3, 3, 16, 16)
        assert torch.equal(found(x), saved(x))


def test_an_extra_layer_and_fixed_positions_come_back_too(tmp_path: Path) -> None:
    widened = SavedEncoder(shaken(Widened(TinyResNet(4, pool="mean"), 9)), replace(DESCRIPTION, extra_layer=9))
    node = {"_target_": "dist_ssl.models.vit.vit", "width": 16, "depth": 1, "heads": 2, "patch": 8}
    transformer = SavedEncoder(shaken(vit(16, 1, 2, 8)), replace(DESCRIPTION, encoder=node))
    for saved, more in ((widened, set()), (transformer, {"pos_embed"})):
        saved.write(tmp_path / "x.safetensors")
        found, x = dist_ssl.load_encoder(tmp_path / "x.safetensors"), torch.randn(2, 3, 16, 16)
        assert torch.equal(found(x), saved(x))
        with safe_open(tmp_path / "x.safetensors", "pt") as opened:
            own = {name for name in saved.encoder.state_dict() if not name.endswith("num_batches_tracked")}
            assert set(opened.keys()) == own | more


def test_images_of_every_kind_are_seen_as_an_evaluation_sees_them(tmp_path: Path) -> None:
    saved, image = tiny(), picture()
    (tmp_path / "a.png").write_bytes(encoded(image))
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), image, np.asarray(image)]
    seen = CentreView(Colours(DESCRIPTION.mean, DESCRIPTION.std), torch.float32, resize=20, crop=16)
    pixels = np.empty((1, 16, 16, 3), dtype=np.uint8)
    seen.cutter.cut(encoded(image), [np.empty(0, np.float32)], [pixels[0]])
    expected = seen.finish([torch.from_numpy(pixels)], np.zeros(1, np.int64))[0]
    for one in given:
        assert torch.equal(saved.prepared([one]), expected)
        assert torch.equal(saved.embed(one), saved(expected))
    torch.testing.assert_close(saved.embed(given, batch=2), saved(expected).expand(5, -1))
    assert saved.embed(np.stack([np.asarray(image)] * 3)).shape == (3, 32)
    assert saved.embed([]).shape == (0, 32)


def test_images_are_upright_and_of_three_channels() -> None:
    saved, image = tiny(), picture()
    turned = Image.Exif()
    turned[0x0112] = 3
    jpeg = encoded(image, "JPEG", exif=turned)
    torch.testing.assert_close(saved.prepared([Image.open(io.BytesIO(jpeg))]), saved.prepared([jpeg]), atol=0.1, rtol=0)
    grey = picture("L")
    assert torch.equal(saved.prepared([grey]), saved.prepared([grey.convert("RGB")]))


CUT = encoded(Image.fromarray(np.random.default_rng(4).integers(0, 256, (90, 90, 3), dtype=np.uint8)))[:-900]
"""A file that ends too early."""


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "Image 1 cannot be read: not an image"),
        ("missing.jpg", "missing.jpg cannot be read: No such file"),
        (np.zeros((4, 4), np.uint8), "An array of uint8 and shape .4, 4. is no image"),
        (np.zeros((4, 4, 3)), "An array of float64"),
        (7, "An object of type int is no image"),
        (bytearray(b"x"), "An object of type bytearray is no image"),
        (Image.new("RGB", (0, 4)), "Image 1 cannot be read: damaged image"),
        (Image.new("La", (4, 4)), "Image 1 cannot be read: damaged image"),
        (CUT, "Image 1 cannot be read: damaged image"),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny().embed([picture(), Image.open(io.BytesIO(image)) if image is CUT else image])


def test_features_do_not_depend_on_modes_batches_or_precisions_of_others() -> None:
    saved, images = tiny(), [picture(), picture("L"), picture()]
    expected = saved.embed(images)
    assert not nn.Sequential(saved).train()[0].encoder.training
    assert torch.equal(saved.embed(images), expected)
    for batch in (0, -1):
        with pytest.raises(ConfigError, match=f"batch={batch} is not possible"):
            saved.embed(images, batch=batch)
    short = saved.bfloat16().embed(images)
    assert short.dtype == torch.float32
    torch.testing.assert_close(short, expected, atol=0.1, rtol=0.1)


def rewritten(folder: Path, tensors: dict[str, torch.Tensor], description: Any) -> Path:
    """A file of other content."""
    own = description if isinstance(description, str) else json.dumps(description)
    save_file(tensors, folder / "x.safetensors", {KEY: own})
    return folder / "x.safetensors"


def test_other_files_are_refused_by_what_is_wrong_with_them(tmp_path: Path) -> None:
    good, values = tiny().tensors(), asdict(DESCRIPTION)
    cases: list[tuple[dict[str, torch.Tensor], Any, type[Exception], str]] = [
        ({("stem.9" if n == "stem.0.weight" else n): x for n, x in good.items()}, values, CheckpointError, "34 of 35"),
        ({**good, "stem.0.weight": torch.zeros(5)}, values, CheckpointError, "'stem.0.weight' is missing, unknown or"),
        ({**good, "more": torch.zeros(1)}, values, CheckpointError, "35 of 35 tensors: 'more'"),
        (good, "{", DataError, "is damaged"),
        (good, "[1]", DataError, "does not say how its encoder is built"),
        (good, {**values, "further": 1}, ConfigError, "dist_ssl.further is not known"),
        (good, {**values, "crop": 0}, ConfigError, "describe no encoder"),
        (good, {**values, "crop": 4097, "resize": 5000}, ConfigError, "describe no encoder"),
        (good, {**values, "resize": 10_001}, ConfigError, "describe no encoder"),
        (good, {**values, "range": 0.0}, ConfigError, "describe no encoder"),
        (good, {**values, "extra_layer": -1}, ConfigError, "describe no encoder"),
        (good, {**values, "format": 2, "further": 1}, ConfigError, "has format 2: this version reads 1"),
        (good, {**values, "mean": "x"}, ConfigError, "dist_ssl.mean='x' is not possible"),
        (good, {**values, "encoder": {"_target_": "os.system"}}, ConfigError, "is outside dist_ssl.models"),
        (
            good,
            {**values, "encoder": {**TINY, "_target_": "dist_ssl.models.encoders.timm_encoder", "pretrained": True}},
            ConfigError,
            "missing|files of weights are not read",
        ),
    ]
    for tensors, description, kind, message in cases:
        with pytest.raises(kind, match=message):
            dist_ssl.load_encoder(rewritten(tmp_path, tensors, description))
    save_file(good, tmp_path / "plain.safetensors")
    with pytest.raises(DataError, match="does not say how its encoder is built"):
        dist_ssl.load_encoder(tmp_path / "plain.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-50])
    with pytest.raises(DataError, match="is damaged"):
        dist_ssl.load_encoder(tmp_path / "cut.safetensors")
    with pytest.raises(DataError, match=r"encoder\.safetensors does not exist(?s:.*)launch/export\.py run=/"):
        dist_ssl.load_encoder(tmp_path)
    with pytest.raises(DataError, match=r"nothing does not exist(?s:.*)launch/export\.py run=\.\.\."):
        dist_ssl.load_encoder(tmp_path / "nothing")


def test_a_run_and_its_encoder_need_no_timm_which_takes_seconds_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, launch.checkpoint_encoder; print(sorted({'timm', 'torchvision'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
    monkeypatch.setitem(sys.modules, "launch.warm_start", None)  # an import of it would fail
    assert slurm.weights_of({"init": None, "init_sha256": None}, False, Console(quiet=True)) is None


def test_the_package_imports_no_torch_before_it_is_asked_for_an_encoder() -> None:
    code = "import sys, dist_ssl; assert 'torch' not in sys.modules; dist_ssl.nothing"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AttributeError: module 'dist_ssl' has no attribute 'nothing'" in ended.stderr


SIZES = [{"blocks": 200_000}, {"blocks": 100_000_000}, {"width": 1 << 13}, {"width": 1 << 24}]


@pytest.mark.parametrize("read", [dist_ssl.load_encoder, warm_start.of_file])
@pytest.mark.parametrize("size", SIZES)
def test_a_small_file_that_describes_a_large_encoder_is_refused_before_it_is_built(
    tmp_path: Path, size: dict[str, int], read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    block = encoders.ResidualBlock.__init__

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        built.append(1)
        assert len(built) < 1000, "a network of any depth is built"
        block(self, *arguments, **options)

    monkeypatch.setattr(encoders.ResidualBlock, "__init__", counted)
    description = replace(DESCRIPTION, encoder={**TINY, **size})
    file = rewritten(tmp_path, {"a": torch.zeros(1)}, asdict(description))
    with bounded_memory(), pytest.raises(CheckpointError, match="describes an encoder that cannot be built"):
        read(file)
    assert TinyResNet(2), "networks of other files can be built again"


def test_images_of_one_channel_are_seen_whatever_they_are_given_as() -> None:
    own = replace(DESCRIPTION, mean=(0.4,), std=(0.2,))
    saved = SavedEncoder(shaken(TinyResNet(4, pool="mean", in_channels=1)), own)
    image = picture("L")
    expected = saved.embed(encoded(image))
    for given in (image, image.convert("RGB"), np.asarray(image)[..., None]):
        assert torch.equal(saved.embed(given), expected)
    with pytest.raises(DataError, match=r"Give pixels \[h, w, 1\] of uint8"):
        saved.embed(np.zeros((30, 40, 3), np.uint8))


def test_an_encoder_of_other_channels_comes_back(tmp_path: Path) -> None:
    own = replace(DESCRIPTION, mean=(0.4,) * 5, std=(0.2,) * 5)
    saved = SavedEncoder(shaken(TinyResNet(4, pool="mean", in_channels=5)), own)
    saved.write(tmp_path / "encoder.safetensors")
    x = torch.randn(2, 5, 16, 16)
    assert torch.equal(dist_ssl.load_encoder(tmp_path)(x), saved(x))
    for wrong in ({"mean": (0.4,) * 4}, {"mean": (), "std": ()}, {"mean": (0.4,) * 65, "std": (0.2,) * 65}):
        with pytest.raises(ConfigError, match="describe no encoder"):
            replace(own, **wrong).check()


def test_of_very_large_images_fewer_are_computed_at_a_time() -> None:
    """A file of 8 kB can say that its images are 4,096 px."""
    for crop, least in ((16, 64), (1024, 64), (2048, 16), (4096, 4)):
        own = SavedEncoder(TinyResNet(4, pool="mean"), replace(DESCRIPTION, crop=crop, resize=crop))
        assert own.at_once(64) == least
        assert own.at_once(1) == 1
