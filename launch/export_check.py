"""The check of an export: its library loads it and computes the same features, or nothing stays on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dist_ssl.errors import UserError, plural
from dist_ssl.models.named_weights import without_counters
from dist_ssl.runtime.files import hidden_beside, remove, write_atomically
from dist_ssl.runtime.strange_files import close_to_others
from dist_ssl.saved_encoder import SavedEncoder
from launch.export_target import LoadedNetwork, Target
from launch.image_check import prepared_otherwise

BAR = 1e-5
"""Largest difference of a feature, as a share of the largest feature."""


def keep_if_equal(
    saved: SavedEncoder,
    target: Target,
    images: Tensor,
    out: Path,
    describe: Callable[[str], str],
    files: Sequence[bytes] = (),
) -> tuple[str, str]:
    """Write a file or folder, load it by the library, and remove it where it is not the same; return why and what.

    The first text is empty where it was kept; the second says what was compared. `images`: [N, 3, S, S]; features are
    computed of all of them, and of one by itself. `describe`: returns the text of the card, given the second text.
    `files`: contents of image files, which the library prepares too. Raises OSError.
    """
    part = hidden_beside(out, out.suffix)  # libraries look at the suffix; nobody can have made a link of this name
    try:
        problem, checked = compared(saved, target, images, part)
        if not problem:
            problem, more = prepared_otherwise(saved, target, part, files)
            checked += more
        if problem:
            return problem, checked
        card = target.card(part if target.folder else out)  # not beside `part`, whose name others have seen by now
        write_atomically(card, target.heading + describe(checked))
        part.replace(out)
        return "", checked
    finally:
        remove(part)


def compared(saved: SavedEncoder, target: Target, images: Tensor, part: Path) -> tuple[str, str]:
    """Write a file or folder, load it by the library, and return why it is not the same, and what was compared.

    The first text is empty where it is the same. Raises OSError where it cannot be written; UserError where the
    features of the encoder itself are not finite.
    """
    samples = (images, images[:1])
    expected = [features(saved, some) for some in samples]
    if not all(own.isfinite().all() for own in expected):
        raise UserError("The features of the encoder are not finite: it has diverged.", "Name an earlier checkpoint.")
    loading = False
    try:
        write(saved, target, part)
        loading = True
        model = target.load(part).eval()
        found = [features(model, some) for some in samples]
    except Exception as error:  # those of the libraries have no class in common
        if isinstance(error, OSError) and not loading:
            raise
        kind = "" if isinstance(error, RuntimeError | UserError) else f"{type(error).__name__}: "
        return f"{target.library} does not take the file: {kind}{str(error).strip()}", "the file was not loaded."
    same, count = matched(target, model)
    pairs = zip(expected, found, strict=True)
    gaps = torch.tensor([difference(own, other) for own, other in pairs], dtype=torch.float64)
    gap = float(gaps.max())  # NaN if any is, unlike that of Python
    checked = f"matched {same} of {count} tensors; {target.library} differs by {gap:.1e} of the largest feature of "
    checked += f"{plural(len(images), 'image')} (bar {BAR:g})."
    if same < count:
        return f"{target.library} does not have the same tensors.", checked
    return "" if gap <= BAR else f"{target.library} does not compute the same.", checked


@torch.inference_mode()
def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the features of normalised images, [N, 3, S, S] -> [N, D]."""
    found: Tensor = model(images)
    return found


def write(saved: SavedEncoder, target: Target, part: Path) -> None:
    """Write what the library loads. Raises OSError, and RuntimeError where tensors do not fit."""
    if target.folder:
        part.mkdir(mode=0o755)
        close_to_others(part)
    if target.write:
        target.write(target, part)
    else:
        part.write_bytes(saved.content() if target.described else save(dict(target.renamed), {"format": "pt"}))


def matched(target: Target, model: nn.Module) -> tuple[int, int]:
    """Return how many tensors of the file the library's network has by name and shape, and how many it has in all."""
    state = model.tensors() if isinstance(model, SavedEncoder | LoadedNetwork) else model.state_dict()
    own = without_counters(state)
    same = [name for name, value in own.items() if name in target.renamed and target.renamed[name].shape == value.shape]
    return len(same), len(own.keys() | target.renamed.keys())


def difference(own: Tensor, other: Tensor) -> float:
    """Return the largest difference of features, as a share of the largest own one; infinity for other shapes."""
    if own.shape != other.shape:
        return float("inf")
    return float((own - other).abs().max() / own.abs().max().clamp_min(1e-30))
