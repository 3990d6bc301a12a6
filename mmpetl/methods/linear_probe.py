"""Linear probing: the backbone is frozen, only the head trains.

The lower-cost reference; it has no paper. On dense tasks necks and heads train, so it
is zero parameters of the *backbone*, which is what the tables count.
"""

from __future__ import annotations

from mmpetl.core import Method
from mmpetl.registry import METHODS


@METHODS.register_module()
class LinearProbe(Method):
    """Train nothing of the backbone, which therefore runs in eval mode.

    A norm that the checkpoint does not hold (``fc_norm`` of a self-supervised VideoMAE)
    belongs to the head: ``inject(..., head=('fc_norm',))``.
    """

    family = 'baseline'
