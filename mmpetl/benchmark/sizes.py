"""Sizes of methods that suit the shipped mini backbones.

Everything that is not here is the method's own default, which is made for widths of 768
and twelve blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpetl.core import PETLError, suggest

MINI: Mapping[str, Mapping[str, Any]] = {
    'LoRA': {'rank': 4},
    'VPTDeep': {'num_tokens': 8},
    'LST': {'reduction': 2},
    'BAPAT': {'hidden_dims': 16, 'adapter_dims': 16},
    'PATT': {'hidden_dims': 16},
    'HST': {'dims': [32, 48, 64], 'num_heads': [2, 4, 8]},  # six blocks
}
"""For 96 channels; arguments by the method's name."""

SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {'mini': MINI}
"""Tables of sizes by name, as plans speak of them."""


def sizes(name: str) -> Mapping[str, Mapping[str, Any]]:
    """A table of sizes by its name.

    Raises:
        PETLError: There is none of that name.
    """
    if name not in SIZES:
        raise PETLError(
            f'there are no sizes {name!r}.{suggest(name, SIZES)} There are: '
            f'{", ".join(SIZES)}'
        )
    return SIZES[name]
