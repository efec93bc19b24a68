"""The Python interface: `load_encoder` and `fit`. Both are loaded on first use, so that launchers import no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_ssl.saved_encoder import load_encoder as load_encoder
    from launch.fit import fit as fit

PLACES = {"load_encoder": "dist_ssl.saved_encoder", "fit": "launch.fit"}
"""Modules of the public functions."""
__all__ = ["fit", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    raise AttributeError(f"module 'dist_ssl' has no attribute '{name}'")
