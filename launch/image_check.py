"""The check of how a library prepares images of files: as the encoder has seen them, or the card says what differs.

Pictures are drawn for it, smooth ones, in which a margin that is rounded otherwise changes little. An opaque one of 8
bits must be prepared as ours, or the export fails; for transparent, deep and turned ones most have no rules.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from dist_ssl.data.images.deep_rows import FULL
from dist_ssl.saved_encoder import SavedEncoder
from launch.export_target import Target

ROUNDING, SHIFT = 2.0, 1.5
"""Largest difference of pixels, in levels of 255, and how far a picture may be moved, in pixels of the resized one."""
UPSIDE_DOWN = 3
"""The Exif orientation of a picture that was taken with the camera upside down."""
LARGEST = 4096
"""Side of resized images, px, up to which pictures are drawn for the check."""


def prepared_otherwise(saved: SavedEncoder, target: Target, place: Path, files: Sequence[bytes]) -> tuple[str, str]:
    """Return why a library prepares images otherwise, empty where it does not, and sentences about what differs.

    `place`: what was written; `files`: contents of image files of the run's data. A library that prepares no images
    has no sentences.
    """
    if target.prepare is None:
        return "", ""
    own, said = saved.description, ""
    if own.resize > LARGEST:
        return "", f" How it prepares images is not checked: they are larger than {LARGEST} px."
    if isinstance(own.range, tuple):
        return (
            "",
            " How it prepares images is not checked: only arrays and TIFFs of bands have a white for each channel.",
        )
    opaque, transparent, deep, turned = drawn(own.resize, own.range)
    bar = ROUNDING + SHIFT * 255 / own.resize
    gap, reason = _levels(saved, target, place, opaque)
    if not gap <= bar:
        return f"{target.library} prepares images otherwise ({reason or f'{gap:.0f} of 255 levels'}).", ""
    white = "the largest value of 16 bits as white" if own.range is None else f"data.range={own.range:g}"
    kinds = (
        ("transparent", transparent, f"data.alpha={own.alpha}"),
        ("deep", deep, white),
        ("turned", turned, "upright, as their Exif orientation says"),
    )
    for kind, content, rule in kinds:
        gap, reason = _levels(saved, target, place, content)
        if not gap <= bar:
            said += f" It prepares {kind} images otherwise than in training ({rule}): convert them before."
    if files:
        said += _of_data(saved, target, place, files)
    return "", said


def _of_data(saved: SavedEncoder, target: Target, place: Path, files: Sequence[bytes]) -> str:
    """Return how much the features of images of the data change where the library prepares them."""
    assert target.prepare is not None
    try:
        theirs = torch.cat([target.prepare(place, [one]) for one in files])  # they may be large
    except Exception as error:  # those of the libraries have no class in common
        return f" It cannot prepare the images of the data: {str(error) or type(error).__name__}."
    with torch.inference_mode():
        own, other = saved(saved.prepared(files)), saved(theirs)
    share = float((own - other).abs().max() / own.abs().max().clamp_min(1e-30))
    return f" As it prepares them, the largest difference of features is {share:.1%} of the largest feature."


def _levels(saved: SavedEncoder, target: Target, place: Path, content: bytes) -> tuple[float, str]:
    """Return the largest difference of the pixels of a prepared image, in levels of 255, and the error if there is one.

    It is infinity where the library cannot prepare the image, or prepares it in another size.
    """
    assert target.prepare is not None
    own = saved.prepared([content])
    try:
        other = target.prepare(place, [content])
    except Exception as error:  # those of the libraries have no class in common
        return float("inf"), f"{type(error).__name__}: {error}"
    if other.shape != own.shape:
        return float("inf"), f"{list(other.shape)}, not {list(own.shape)}"
    return float(((own - other) * _column(saved.description.std)).abs().max() * 255), ""


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def drawn(side: int, white: float | None) -> tuple[bytes, bytes, bytes, bytes]:
    """Return four pictures of 2 * side x 1.5 * side px as PNG files: opaque, transparent, gray of 16 bits, turned.

    `white`: the value of the last one's brightest pixels, at most 65,535, which it is for None.
    """
    along, down = np.meshgrid(np.linspace(0, 1, 2 * side), np.linspace(0, 1, 3 * side // 2 + 1))
    rgb = np.stack([along, down, np.full_like(along, 0.5)], axis=2) * 255
    rgba = np.concatenate([rgb, along[..., None] * 255], axis=2)
    deep = (along * min(FULL, FULL if white is None else white)).astype(np.uint16)
    colours = rgb.astype(np.uint8)
    return _png(colours), _png(rgba.astype(np.uint8)), _png(deep), _png(colours, orientation=UPSIDE_DOWN)


def _png(pixels: np.ndarray, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(file, "PNG", **({} if orientation == 1 else {"exif": exif}))
    return file.getvalue()
