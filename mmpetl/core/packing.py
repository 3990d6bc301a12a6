"""Weights that take few values in use, and how a file holds them in few bits.

A layer that quantises its weight in the forward pass trains a finer one. What it
computes needs the values in use alone: ``2 ** bits`` of them at most, and for each
entry which one it is. A packed file has these two in place of a weight:

==================  ==================================================================
``<key>.codes``     uint8, one axis: ``8 / bits`` entries in a byte, row by row, the
                    first in the lowest bits; what is over in the last byte is zero
``<key>.levels``    the ``2 ** bits`` values, ascending
==================  ==================================================================

"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn

from mmpetl.core.errors import PETLError

Bits = Literal[1, 2, 4, 8]
BITS = (1, 2, 4, 8)
"""How many bits an entry may have, so that bytes hold whole entries."""

Extent = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


def check_bits(who: object, bits: int) -> None:
    """Raise PETLError unless bytes hold whole entries of so many bits.

    Args:
        who: Its class is named.
        bits: As they were given.
    """
    if isinstance(bits, bool) or bits not in BITS:
        known = ', '.join(map(str, BITS))
        raise PETLError(f'{type(who).__name__} needs bits of {known}, got {bits!r}')


class PackedTensor(msgspec.Struct):
    """What a record says of a weight that its file holds packed."""

    bits: Bits
    shape: Annotated[list[Extent], msgspec.Meta(min_length=1, max_length=8)]


class FewValues(nn.Module):
    """A layer whose weight takes at most ``2 ** bits`` values in use.

    Attributes:
        bits: How many bits an entry has.
        weight: What trains; where ``packed`` is true, the values in use themselves.
        packed: Whether the weight comes from a packed file. Others could not be told
            from it, so it does not train.
    """

    bits: int
    weight: nn.Parameter
    packed: Tensor

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.weight = nn.Parameter(weight)
        self.register_buffer('packed', torch.zeros((), dtype=torch.bool))
        self._told = False

    def quantised(self) -> Tensor:
        """The values in use, computed of the weight, at least in float32."""
        raise NotImplementedError

    def used(self) -> Tensor:
        """The values in use.

        Raises:
            PETLError: A packed weight is to be trained.
        """
        if self.training and self._told and torch.is_grad_enabled():
            raise PETLError(
                'a packed delta holds the values in use alone and cannot be trained '
                'further; take the delta that was packed'
            )
        fine = self.quantised()
        # Where, and no branch: what a file says is then read without waiting for a
        # device, and a trace holds for both.
        return torch.where(self.packed, self.weight.to(fine.dtype), fine)

    def train(self, mode: bool = True) -> FewValues:
        self._told = not self.packed.is_meta and bool(self.packed)
        return super().train(mode)


def packed_key(key: str) -> str:
    """Key of the flag beside a weight."""
    return f'{key.rpartition(".")[0]}.packed'.lstrip('.')


@torch.no_grad()
def few_values(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Values in use and bits of every weight of few values, by the key of the weight.

    Args:
        model: Any model; the keys are those of its state.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, FewValues):
            with torch.no_grad():
                found[f'{name}.weight'.lstrip('.')] = module.used(), module.bits
    return found


def pack(name: str, value: Tensor, bits: int) -> dict[str, Tensor]:
    """Codes and levels of a tensor, by the ends of their keys.

    Raises:
        PETLError: It takes more values than the bits can tell.
    """
    levels, index = torch.unique(value.detach().cpu(), return_inverse=True)
    if len(levels) > 2**bits:
        raise PETLError(
            f'{name} takes {len(levels)} values, which {bits} bits cannot tell apart'
        )
    unused = 2**bits - len(levels)
    levels = torch.cat((levels, levels[-1:].expand(unused)))
    index = nn.functional.pad(index.flatten(), (0, -index.numel() % (8 // bits)))
    shifted = index.view(-1, 8 // bits) << _shifts(bits)
    return {'codes': shifted.sum(1).to(torch.uint8), 'levels': levels}


def unpack(codes: Tensor, levels: Tensor, facts: PackedTensor) -> Tensor:
    """The tensor that :func:`pack` packed.

    Raises:
        PETLError: Codes or levels are not what the facts say.
    """
    per_byte, number = 8 // facts.bits, math.prod(facts.shape)
    length = -(-number // per_byte)
    if codes.dtype != torch.uint8 or codes.shape != (length,):
        raise PETLError(
            f'codes are {tuple(codes.shape)} of {codes.dtype}; {number} entries of '
            f'{facts.bits} bits are {length} bytes'
        )
    if not levels.is_floating_point() or levels.shape != (2**facts.bits,):
        raise PETLError(
            f'levels are {tuple(levels.shape)} of {levels.dtype}; {facts.bits} bits '
            f'tell {2**facts.bits} values apart'
        )
    if not bool((levels[1:] >= levels[:-1]).all()):
        raise PETLError('levels do not ascend')
    index = (codes.long()[:, None] >> _shifts(facts.bits)) & (2**facts.bits - 1)
    return levels[index.flatten()[:number]].view(facts.shape)


def _shifts(bits: int) -> Tensor:
    return torch.arange(0, 8, bits)


def packed_tensors(
    tensors: Mapping[str, Tensor], bits: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """What a file holds of tensors, and what its record says of those packed.

    Args:
        tensors: By keys of the file; packed ones are the values in use.
        bits: How many bits an entry has, by the keys of those to be packed.

    Raises:
        PETLError: A tensor takes more values, or a key would be there twice.
    """
    flags = {packed_key(key) for key in bits}
    found = {k: v for k, v in tensors.items() if k not in bits and k not in flags}
    facts = {}
    for key, number in bits.items():
        for end, value in pack(key, tensors[key], number).items():
            if f'{key}.{end}' in found:
                raise PETLError(f'{key}.{end} would be there twice; rename a submodule')
            found[f'{key}.{end}'] = value
        facts[key] = {'bits': number, 'shape': list(tensors[key].shape)}
    return found, facts


def unpacked_tensors(
    tensors: Mapping[str, Tensor], facts: Mapping[str, PackedTensor]
) -> dict[str, Tensor]:
    """The tensors that a packed file stands for, with the flags that say so.

    Raises:
        PETLError: A packed tensor is not there, there twice, or not as its facts say.
    """
    found = dict(tensors)
    for key, own in facts.items():
        ends = [f'{key}.{end}' for end in ('codes', 'levels')]
        lacking = [end for end in ends if end not in tensors]
        twice = [k for k in (key, packed_key(key)) if k in tensors]
        if lacking or twice:
            what = f'has no {lacking[0]}' if lacking else f'has {twice[0]} as well'
            raise PETLError(f'the record has {key} packed, and the file {what}')
        codes, levels = (found.pop(end) for end in ends)
        try:
            found[key] = unpack(codes, levels, own)
        except PETLError as error:
            raise PETLError(f'{key}: {error}') from None
        found[packed_key(key)] = torch.tensor(True)
    return found
