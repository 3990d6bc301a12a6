"""Full fine-tuning: every parameter of the backbone trains.

The reference that parameter-efficient methods stand beside; it has no paper. Layer-wise
rates, decay and stochastic depth are the recipe's.
"""

from __future__ import annotations

from mmpetl.core import Method, Role
from mmpetl.registry import METHODS


@METHODS.register_module()
class Full(Method):
    """Train the whole backbone. It plugs in nothing, so there is nothing to fold."""

    family = 'baseline'

    def selects(self, role: Role) -> bool:
        return True
