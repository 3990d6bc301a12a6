"""The brick of the adapter family: down, activation, dropout, up."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mmpetl.core.delta import Delta
from mmpetl.core.dropout import Dropout
from mmpetl.core.errors import PETLError
from mmpetl.core.method import Method, kaiming_uniform_

ACTIVATIONS: dict[str, type[nn.Module]] = {'gelu': nn.GELU, 'relu': nn.ReLU}
"""Activations that a bottleneck may have, by name."""


def check_activation(method: Method, activation: str) -> None:
    """Raise PETLError unless a bottleneck may have this activation."""
    if activation not in ACTIVATIONS:
        raise PETLError(
            f'{type(method).__name__} needs activation {" or ".join(ACTIVATIONS)}, '
            f'got {activation!r}'
        )


class Bottleneck(Delta):
    """``update(z) = drop(act(z Wd^T + bd)) Wu^T + bu``; a method says where it goes.

    ``Wu``, ``bd`` and ``bu`` start at zero, ``Wd`` Kaiming-uniform. With both
    projections at zero neither would ever get a gradient.

    Args:
        dims: Width of the features, in and out.
        hidden_dims: Width in between.
        activation: A key of :data:`ACTIVATIONS`.
        drop_rate: Dropout behind the activation.
    """

    def __init__(
        self,
        dims: int,
        hidden_dims: int,
        activation: Literal['gelu', 'relu'],
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(dims, hidden_dims)
        self.act = ACTIVATIONS[activation]()
        self.drop = Dropout(drop_rate)
        self.up = nn.Linear(hidden_dims, dims)
        kaiming_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def update(self, z: Tensor) -> Tensor:
        """(..., dims) -> (..., dims)."""
        return self.up(self.drop(self.act(self.down(z))))
