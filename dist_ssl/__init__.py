"""The Python interface: `load_encoder`. It is loaded on first use, so that launchers import no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_ssl.saved_encoder import load_encoder as load_encoder

__all__ = ["load_encoder"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from dist_ssl import saved_encoder

        return getattr(saved_encoder, name)
    raise AttributeError(f"module 'dist_ssl' has no attribute '{name}'")
