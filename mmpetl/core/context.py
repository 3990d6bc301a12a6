"""What a delta may need beside its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Context:
    """Facts of one forward pass, handed to every delta.

    Attributes:
        grid: Extents of the token grid at this place, (H, W) or (T, H, W).
        num_prefix: Tokens in front of the grid: class tokens, then extra tokens.
        num_extra: How many of the prefix tokens a delta has added. They sit right
            behind the class tokens.
        scratch: A dict that lives for one forward pass, where side networks keep
            what they collect.
        images: What entered the patch projection, (B, 3, H, W) or (B, 3, T, H, W).
        again: ``again(x, ctx)`` runs the block or the patch merging at hand once more,
            on another sequence and another context. Set while the sites ``tokens``,
            ``block`` and ``downsample`` run.
    """

    __slots__ = ('again', 'grid', 'images', 'num_extra', 'num_prefix', 'scratch')

    def __init__(self, grid: tuple[int, ...], num_prefix: int = 0) -> None:
        self.grid = grid
        self.num_prefix = num_prefix
        self.num_extra = 0
        self.scratch: dict[Any, Any] = {}
        self.images: Tensor | None = None
        self.again: Callable[[Tensor, Context], Tensor] | None = None

    def fork(self) -> Context:
        """A copy whose counts stay as they are now; ``scratch`` is shared.

        Activation checkpointing runs a block again during backward, when the counts
        of the pass have moved on.
        """
        copy = Context(self.grid, self.num_prefix)
        copy.num_extra = self.num_extra
        copy.scratch = self.scratch
        copy.images = self.images
        copy.again = self.again
        return copy
