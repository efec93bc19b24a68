"""Several optimizers of torch as one: each updates its own parameters; groups and state are those of all of them."""

import torch


class Joined(torch.optim.Optimizer):
    """Optimizers of different parameters that are set, stepped, saved and loaded together."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step()
