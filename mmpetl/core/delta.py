"""Deltas: the small modules that are plugged into sites."""

from __future__ import annotations

from torch import Tensor, nn

from mmpetl.core.context import Context


class Delta(nn.Module):
    """What a method adds at one site. Override one port or both.

    At ``attn.core`` ``x`` is the tuple (q, k, v), each (B, heads, N, head_dims);
    elsewhere features are (B, N, C), in windowed attention (B * windows, N, C).
    """

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        """What enters the site instead of ``x``."""
        return x

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        """What leaves the site instead of ``y``, its output for the input ``x``."""
        return y

    def attach(self, shared: nn.Module) -> None:
        """Remember the module that all deltas of the method share.

        It is registered once, at the backbone, so it is not made a child here.
        """
        self.__dict__['shared'] = shared
