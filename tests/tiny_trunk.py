"""What a tiny backbone is to the generic tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_methods import MethodCase, covering
from torch import Tensor, nn


@dataclass(frozen=True)
class Tiny:
    """A small instance of a backbone class.

    Attributes:
        site_map: Stem of the file in ``mmpetl/backbones`` that describes it.
        build: Makes one.
        shape: Input without the batch axis.
        odd: A non-square input that needs padding wherever the backbone pads.
        exact: Whether the swapped arithmetic is that of the original.
        frozen_stages: Makes one with ``frozen_stages=1``, None where that is unknown.
        meets: Which methods the contract runs here: all of them, or on a variant of
            another backbone those that see what differs. By default it runs those of
            ``tiny.cover``, the rest as ``slow``.
        forward: How it is called with a batch of images, and what of the result counts,
            where that is not ``model(x)``. Lists, tuples and mappings of tensors are
            taken apart by ``tiny.outputs``.
        tied: Kinds of sites whose weights the base uses twice, so that nothing folds
            into them.
        bare_keys: Keys have no bias, and need one, as unit vectors are made of them:
            methods that shift them fold into other bases, and not into this one.
        refuses: Ids of methods whose settings it cannot serve, or that refuse its
            shapes in one line, though it has the kinds of sites that they need.
    """

    site_map: str
    build: Callable[..., nn.Module]
    shape: tuple[int, ...]
    odd: tuple[int, ...]
    exact: bool
    frozen_stages: Callable[[], nn.Module] | None = None
    meets: Callable[[MethodCase], bool] = covering
    forward: Callable[[nn.Module, Tensor], Any] | None = None
    tied: tuple[str, ...] = ()
    bare_keys: bool = False
    refuses: tuple[str, ...] = ()
