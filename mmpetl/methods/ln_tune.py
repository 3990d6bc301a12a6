"""LN-Tune: only the norms train.

Paper: Basu et al., "Strong Baselines for Parameter Efficient Few-Shot Fine-tuning",
AAAI 2024, https://arxiv.org/abs/2304.01917, the method named LN-Tune.
Differs from public code: norms are found by their class, since names differ (``ln1``,
``norm1``, ``fc_norm``). Batch norms, which the paper's models have not, train with
their running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.core import Method, PETLError, Role, suggest
from mmpetl.registry import METHODS

NORMS = ('layer', 'batch', 'group', 'instance', 'rms')


@METHODS.register_module()
class LNTune(Method):
    """Train scale and shift of every norm.

    Besides both norms of each block these are the final norm or the norms of the
    outputs and, in Swin, those of the patch embedding and of the patch mergings. A
    batch norm that trains is in train mode: it normalises by the statistics of the
    batch, and its running statistics move and are saved with the delta.

    Args:
        norms: Which norms train: of ``layer``, ``batch``, ``group``, ``instance`` and
            ``rms``. None means all, also those of a class with none of these names.
    """

    family = 'specification'

    def __init__(self, norms: Sequence[str] | None = None) -> None:
        norms = (norms,) if isinstance(norms, str) else norms
        for norm in norms or ():
            if norm not in NORMS:
                raise PETLError(
                    f'LNTune knows no norm {norm!r}.{suggest(str(norm), NORMS)} '
                    f'It knows: {", ".join(NORMS)}'
                )
        self.norms = None if norms is None else tuple(norms)

    def selects(self, role: Role) -> bool:
        return role.is_norm and (self.norms is None or role.norm in self.norms)
