"""Whether the frozen base is still what the fingerprint says, asked often."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpetl.core import Owner, PETLError, base_changes, owners
from mmpetl.core.injection import own_share

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum_of_bits(tensor: Tensor) -> Tensor | int:
    """The sum of a tensor's numbers read as integers, where the tensor lies."""
    tensor = own_share(tensor)
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        return tensor._version  # of an opaque class
    bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
    return bits.sum(dtype=torch.int64)


class BaseWatch:
    """Stops what would save a delta of a base that has changed.

    Digests are compared at first; later a sum of bits per tensor, which costs a pass
    over the weights and no copy of them, says whether they must be compared again.

    Args:
        model: A model that holds injected backbones.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._sums: dict[str, int] | None = None

    def check(self) -> None:
        """Raise PETLError where the base is not the one that the delta belongs to."""
        sums = self._now()
        if sums == self._sums:
            return
        changed = base_changes(self.model)
        if changed:
            raise PETLError(
                f'{len(changed)} tensors of the frozen base differ from what they were '
                f'at the injection ({", ".join(changed[:3])}), so a delta saved now '
                'would be worthless on its base; take out what wrote them: an '
                'initialiser (init_cfg), a hook or a checkpoint'
            )
        self._sums = sums

    def _now(self) -> dict[str, int]:
        frozen = [n for n, o in owners(self.model).items() if o is Owner.BASE]
        sums = [_sum_of_bits(self.model.get_parameter(name)) for name in frozen]
        return {name: int(total) for name, total in zip(frozen, sums, strict=True)}
