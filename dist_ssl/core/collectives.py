"""The types of collective operations that losses and batch norms receive as functions: they know no process group."""

from collections.abc import Callable

from torch import Tensor

Sum = Callable[[Tensor], Tensor]
"""Returns the sum of a tensor over the ranks; if it passes gradients, these are summed over the ranks too."""
