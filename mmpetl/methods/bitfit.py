"""BitFit: only the biases train.

Paper: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models", ACL 2022, https://arxiv.org/abs/2106.10199.
Differs from public vision code: none in what trains. That code looks for the letters
"bias" in a name and so trains the relative position tables of Swin by accident; here
they are an argument, on by default because the published Swin counts hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmpetl.core import Method, Role
from mmpetl.registry import METHODS


@METHODS.register_module()
class BitFit(Method):
    """Train every additive bias vector; weights and norm scales stay.

    The biases of the patch projection and of all norms are among them. Keys need no
    bias: the key rows of a fused one get a gradient of zero.

    Args:
        include_rel_pos_bias: Whether the relative position tables of windowed attention
            train too. They are 31 % of what trains on Swin-B and 87 % on Video Swin-B.
    """

    family = 'specification'
    # A table of relative positions is no `bias` of a module.
    peft_bias: ClassVar[Mapping[str, Any]] = {'include_rel_pos_bias': False}

    def __init__(self, include_rel_pos_bias: bool = True) -> None:
        self.include_rel_pos_bias = include_rel_pos_bias

    def selects(self, role: Role) -> bool:
        if role.kind == 'position_bias':
            return self.include_rel_pos_bias
        return role.part == 'bias'
