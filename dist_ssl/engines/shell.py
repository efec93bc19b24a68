"""The root module around a method, for engines that gather weights as modules compute."""

from collections.abc import Callable
from typing import Any

from torch import nn

from dist_ssl.engines.parallel import T
from dist_ssl.protocols.method import Method


class Shell(nn.Module):
    """A root whose forward runs any given part of a method, within the hooks that an engine puts on a root module."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, part: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return part(*args, **kwargs)
