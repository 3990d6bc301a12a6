"""LN-Tune: only the layer norms train.

Paper: Basu et al., "Strong Baselines for Parameter Efficient Few-Shot Fine-tuning",
AAAI 2024, https://arxiv.org/abs/2304.01917, the method named LN-Tune.
Differs from public code: norms are found by their class, since names differ (``ln1``,
``norm1``, ``fc_norm``).
"""

from __future__ import annotations

from mmpetl.core import Method, Role
from mmpetl.registry import METHODS


@METHODS.register_module()
class LNTune(Method):
    """Train scale and shift of every LayerNorm.

    Besides both norms of each block these are the final norm or the norms of the
    outputs and, in Swin, those of the patch embedding and of the patch mergings.
    """

    family = 'specification'

    def selects(self, role: Role) -> bool:
        return role.is_norm
