"""How an engine shares out what a step holds in memory among the ranks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shares:
    """Numbers of ranks that hold a part each; 1: every rank holds all."""

    weights: int = 1
    gradients: int = 1
    moments: int = 1
    """State of the optimizer."""
    on_device: bool = True
    """False: all of these lie in host memory, while the ranks compute on GPUs."""
    buckets: bool = False
    """Gradients are copied to buckets for their exchange, which stay allocated."""
    parts: int = 1
    """Parts of a rank's batch of which one at a time is in memory."""
    two_passes: bool = False
    """The loss is back-propagated to the embeddings first, and then from each part's to the weights (`passes`)."""
