"""A linear map with a few bits per entry, as a layer of adapters and heads."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpetl.core.context import uncast
from mmpetl.core.packing import FewValues

ROUNDS = 500


@cache
def code_book(bits: int) -> tuple[float, ...]:
    """The ``2 ** bits`` codes of a standard normal variable, ascending.

    From entries of zero, each round takes the borders halfway between entries, and the
    entries at the middle of the probability between borders. With 8 bits 500 rounds
    are not the end of it.
    """
    normal, codes = NormalDist(), [0.0] * 2**bits
    for _ in range(ROUNDS):
        borders = [normal.cdf((a + b) / 2) for a, b in pairwise(codes)]
        edges = pairwise((0.0, *borders, 1.0))
        codes = [normal.inv_cdf((low + high) / 2) for low, high in edges]
    return tuple(codes)


class FewBits(FewValues):
    """``x W'^T`` with ``W' = q((W - m) / (sigma + 1e-5)) sigma + m``, without a bias.

    m and sigma are mean and deviation of all entries of ``weight``, (out, in); q takes
    the nearest code. Gradients go straight through q, and through m and sigma.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(bits, weight)
        # In no file, for it is computed anew; as integers, which a conversion of the
        # model to half precision and back does not round.
        self.known = code_book(bits)  # which no compiler can compute
        codes = torch.tensor(self.known, dtype=torch.float32)
        self.register_buffer('book', codes.view(torch.int32), persistent=False)

    @property
    def codes(self) -> Tensor:
        """The code book, (2 ** bits,), ascending."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            # What is saved of a trace, and ONNX, hold no view of this kind.
            return torch.tensor(self.known, device=self.book.device)
        return self.book.view(torch.float32)

    def quantised(self) -> Tensor:
        with uncast(self.weight):
            W = self.weight
            W = W.to(torch.promote_types(W.dtype, torch.float32))
            m, sigma = W.mean(), W.std()
            w = (W - m) / (sigma + 1e-5)
            codes = self.codes.to(W.dtype)
            nearest = torch.bucketize(w.detach(), (codes[1:] + codes[:-1]) / 2)
            # w - w is zero to the last bit, and its gradient is not.
            return (codes[nearest] + (w - w.detach())) * sigma + m

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.used().to(x.dtype))
