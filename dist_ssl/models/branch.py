"""An encoder with its projector, and the width of an encoder."""

from torch import Tensor, nn


class Branch(nn.Module):
    """An encoder and its projector: [B, 3, S, S] -> [B, D]."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.projector(self.encoder(x))
        return out


def width_of(encoder: nn.Module) -> int:
    """Return the width D of an encoder's output."""
    width: int = encoder.num_features  # type: ignore[assignment]
    return width
