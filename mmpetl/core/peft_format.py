"""How an adapter of Hugging Face's peft says what a method says.

Such an adapter is a config and tensors that are called by the Linear that they belong
to (``base_model.model.<path>.lora_A.weight``). A method whose algebra one of peft's
types has says so by a :class:`PeftFormat` in its own file; files, heads and the model
are :mod:`mmpetl.apis.peft_files`'s.

Source: https://huggingface.co/docs/peft/developer_guides/checkpoint, and the pages of
the types there.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmpetl.core.errors import PETLError


@dataclass(frozen=True)
class PeftLayer:
    """A Linear or a convolution that an adapter is about, as the file has it.

    Attributes:
        name: Its path in the whole model.
        path: Its path in what the method is injected into.
        tensors: By peft's names behind the path, ``lora_A.weight``.
        kernel: Extents of a convolution's kernel, empty of a Linear.
    """

    name: str
    path: str
    tensors: Mapping[str, Tensor]
    kernel: tuple[int, ...] = ()

    def take(
        self, suffix: str, into: Tensor, shape: tuple[int, ...] | None = None
    ) -> None:
        """Copy a tensor of the file into one of a delta, which may be a flat view.

        Args:
            suffix: Its name behind the path.
            into: What is written.
            shape: That which the file has, where it is not that of ``into``.

        Raises:
            PETLError: The file lacks it, or its shape is another one.
        """
        value = self.need(suffix)
        shape = tuple(into.shape) if shape is None else shape
        if tuple(value.shape) != shape:
            raise PETLError(
                f'{self.name}.{suffix} has shape {tuple(value.shape)} in the adapter '
                f'and needs {shape} here'
            )
        with torch.no_grad():
            into.copy_(value.reshape(into.shape))

    def need(self, suffix: str) -> Tensor:
        """A tensor of the file.

        Raises:
            PETLError: The file lacks it.
        """
        if suffix not in self.tensors:
            raise PETLError(f'the adapter lacks {self.name}.{suffix}')
        return self.tensors[suffix]


@dataclass(frozen=True)
class TunedLinear:
    """A Linear, or a convolution, of a model with the deltas of one slot.

    Attributes:
        path: Its path in the whole model.
        in_dims: Width of what enters, of a convolution of a patch.
        out_dims: Width of what leaves.
        parts: First row, row behind the last one, and delta, in the order of rows.
        kernel: Extents of a convolution's kernel, empty of a Linear.
    """

    path: str
    in_dims: int
    out_dims: int
    parts: tuple[tuple[int, int, nn.Module], ...]
    kernel: tuple[int, ...] = ()

    def whole(self, who: str) -> nn.Module:
        """The only delta, which acts at all rows.

        Args:
            who: The method, for the message.

        Raises:
            PETLError: Deltas act at rows of it, as at queries of a fused projection.
        """
        (start, stop, delta), *more = self.parts
        if more or (start, stop) != (0, self.out_dims):
            raise PETLError(
                f'{who} acts at rows of {self.path}, which is one Linear to peft; '
                "inject it with targets=('attn.qkv',), which acts at all of them"
            )
        return delta


@dataclass(frozen=True)
class PeftAdapter:
    """What is written.

    Attributes:
        entries: Of the config, beside what all types have.
        layers: Tensors by peft's names, by path of a Linear.
        shared: Tensors that belong to no layer, by their whole name.
    """

    entries: dict[str, Any]
    layers: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor] = field(default_factory=dict)


class PeftFormat:
    """What a type of peft's adapters and a method have in common.

    Attributes:
        kind: ``peft_type`` of the config.
        names: What the tensors of a layer are called behind its path.
        shared: What tensors that belong to no layer are called.
        reads: Entries of the config that are read.
        idle: Entries that change nothing of what is computed here.
        training: Entries that act in training only and have no equal here.
        convolves: Whether it is read and written at convolutions too.
    """

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    shared: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    idle: ClassVar[tuple[str, ...]] = ('init_weights',)
    training: ClassVar[tuple[str, ...]] = ()
    convolves: ClassVar[bool] = False

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a config of this type is this method's."""
        return True

    def why_not(self, config: Mapping[str, Any]) -> str:
        """Why such a config has no equal here, empty where it has one."""
        return ''

    def arguments(
        self, config: Mapping[str, Any], layers: Sequence[PeftLayer]
    ) -> dict[str, Any]:
        """The method's arguments, without ``targets``."""
        raise NotImplementedError

    def load(
        self, delta: nn.Module, layer: PeftLayer, shared: Mapping[str, Tensor]
    ) -> None:
        """Write a layer's tensors into its delta, and what it shares with others."""
        raise NotImplementedError

    def write(self, method: Any, linears: Sequence[TunedLinear]) -> PeftAdapter:
        """What stands for a method and its deltas.

        Raises:
            PETLError: Nothing of peft's computes the same.
        """
        raise NotImplementedError


def pair_shapes(
    down: Tensor, up: Tensor, kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What peft's factors have for shapes: at a convolution they are two convolutions.

    Args:
        down: (rank, in_dims), of a convolution in the order of its kernel.
        up: (out_dims, rank).
        kernel: Empty of a Linear. A has it, B sees one place.
    """
    (rank, width), rows = down.shape, up.shape
    first = (rank, width // math.prod(kernel), *kernel)
    return first, (*rows, *(1,) * len(kernel))


def number(value: float) -> int | float:
    """A number without what a product and a quotient have rounded."""
    value = float(f'{value:.14g}')
    return int(value) if value.is_integer() else value


def by_layer(values: Mapping[str, Any]) -> Any:
    """One value where all layers have it, else a value for each path."""
    first = next(iter(values.values()))
    return first if all(v == first for v in values.values()) else dict(values)


def in_pattern(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The value that most layers have, and peft's pattern of the others."""
    (most, _), *_ = Counter(values.values()).most_common(1)
    return most, {path: v for path, v in values.items() if v != most}


def alone(who: str, what: str, values: Mapping[str, Any]) -> Any:
    """The value that all layers have.

    Raises:
        PETLError: They differ, and peft has one for all.
    """
    found = by_layer(values)
    if isinstance(found, dict):
        given = ', '.join(map(str, sorted(set(values.values()))))
        raise PETLError(
            f'{who} has {what} {given} at different layers, and peft one for all'
        )
    return found


_REGEX = re.compile(r'[*+?()\[\]{}|\\$]')


def patterned(config: Mapping[str, Any], entry: str, name: str, default: Any) -> Any:
    """What a config has for a layer: of ``<entry>``, by the end of its name, or else.

    Raises:
        PETLError: A key of the pattern is a regular expression, which a file from
            outside could make run without end.
    """
    for key, value in (config.get(entry) or {}).items():
        if _REGEX.search(key):
            raise PETLError(
                f'{entry} names {key!r}, a regular expression; write its layers out'
            )
        plain = key.removeprefix('^')
        if name == plain or (plain == key and name.endswith(f'.{key}')):
            return value
    return default


def triangle(numbers: int) -> int:
    """Side of the square whose strict upper triangle has so many numbers."""
    return (1 + math.isqrt(1 + 8 * numbers)) // 2
