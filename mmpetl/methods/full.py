"""Full fine-tuning: every parameter of the backbone trains.

The reference that parameter-efficient methods stand beside; it has no paper. Layer-wise
rates, decay and stochastic depth are the recipe's.
"""

from __future__ import annotations

from torch import nn

from mmpetl.core import Method
from mmpetl.registry import METHODS


@METHODS.register_module()
class Full(Method):
    """Train the whole backbone. It plugs in nothing, so there is nothing to fold."""

    family = 'baseline'

    def selects(self, name: str, param: nn.Parameter, owner: nn.Module) -> bool:
        return True
