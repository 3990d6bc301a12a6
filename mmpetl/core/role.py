"""Roles: what each parameter of a base is, in words that methods speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    'projection',
    'mixer',
    'norm',
    'inner_norm',
    'final_norm',
    'position',
    'position_bias',
    'token',
    'scale',
    'head',
    'other',
]
Place = Literal['embed', 'block', 'merging', 'out', 'head', '']


@dataclass(frozen=True)
class Role:
    """What one parameter of a base is.

    Attributes:
        name: Its full name in the backbone.
        shape: Its shape.
        kind: ``projection``: a linear map, or a convolution that makes patches.
            ``mixer``: a convolution over places anywhere else, depth-wise as a rule,
            and what else takes part in mixing behind no site.
            ``norm``: a norm on the
            stream, in front of or behind a sub-layer, a patch embedding or a merging.
            ``inner_norm``: one inside of a sub-layer, as of queries and keys.
            ``final_norm``: one behind the blocks, whose output leaves the backbone.
            ``position``: absolute positions. ``position_bias``: a table of relative
            positions. ``token``: a class, register or mask token. ``scale``: a layer
            scale. ``head``: part of a task head inside of the backbone.
        part: ``weight``, ``bias``, or empty where the kind has but one part.
        place: Where it stands. ``merging`` is a patch merging between two stages.
        block: Running index of its block, None outside of blocks.
        stage: Index of its stage (for ``merging`` that in front of it), None where
            there is none.
        norm: For a norm: ``layer``, ``batch``, ``group``, ``instance`` or ``rms``,
            empty where its class says none of these.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    part: Literal['weight', 'bias', ''] = ''
    place: Place = ''
    block: int | None = None
    stage: int | None = None
    norm: str = ''

    @property
    def is_norm(self) -> bool:
        """Whether it belongs to a norm of any place."""
        return self.kind in ('norm', 'inner_norm', 'final_norm')
