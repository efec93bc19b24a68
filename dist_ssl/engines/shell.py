"""The root around a method: engines that gather weights as modules compute call any part of a method through it."""

from collections.abc import Callable
from typing import Any

from torch import nn

from dist_ssl.engines.parallel import T
from dist_ssl.protocols.method import Method


class Shell(nn.Module):
    """Runs any part of a method, inside of what an engine does before and after a root's forward."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, part: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return part(*args, **kwargs)
