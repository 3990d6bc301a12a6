"""Reading reference vectors and holding them against our modules.

A case is a pair of files in ``tests/data/golden`` (numbers in ``.npz``, facts in
``.json``) and a :class:`Case`: how our model is built from the facts, and by which
rules the reference's tensor names become ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmpetl.core import inject

DATA = Path(__file__).resolve().parent.parent / 'data' / 'golden'


@dataclass(frozen=True)
class Rule:
    """Tensors whose name matches ``pattern`` wholly become ``target``.

    Attributes:
        pattern: A regular expression over the name.
        target: The new name, with ``\\1`` for groups; None for a tensor that ours
            lacks because the reference does not use it.
        part: Which of how many equal chunks of rows it fills, (0, 3) for queries.
        change: From the reference's numbers to ours: a permutation, or what is linear.
        change_grad: What becomes of gradients, where that is something else.
    """

    pattern: str
    target: str | None
    part: tuple[int, int] | None = None
    change: Callable[[Tensor], Tensor] | None = None
    change_grad: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """One reference held against one of our backbones.

    Attributes:
        file: Stem of the two files.
        build: From the facts of the json, a model with the parts ``backbone`` and
            maybe ``head``.
        method: Config of the method; None where what is built has the method's own
            parts and no backbone.
        rules: The name map in passes. In each pass the first rule that matches
            decides, and a name that none matches stays.
        split: Tensors that ours holds apart: ``name`` becomes ``name.0``, ``name.1``.
        halves: Pattern of tensors that ours holds as two, half of the rows each, which
            are named likewise.
        buffers: From the reference's buffers by name, ours by name, where ours are
            parts of theirs.
        kept: Group of tensors that ours keeps as buffers, those of several layers
            in one where they are equal.
        plug: How the method comes into the backbone; by hand where no file describes
            the trunk.
    """

    file: str
    build: Callable[[dict[str, Any]], nn.Module]
    method: dict[str, Any] | None
    rules: tuple[tuple[Rule, ...], ...]
    split: tuple[str, ...] = ()
    halves: str = ''
    buffers: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    kept: str = ''
    plug: Callable[[nn.Module, dict[str, Any]], Any] = inject


def facts(case: Case) -> dict[str, Any]:
    """What the json of a case says."""
    return json.loads((DATA / f'{case.file}.json').read_text())


class Reference:
    """The two files of a case."""

    def __init__(self, case: Case) -> None:
        self.split, self.halves = case.split, case.halves
        self.facts = facts(case)
        with np.load(DATA / f'{case.file}.npz') as arrays:
            self.tensors = {k: torch.from_numpy(arrays[k]) for k in arrays.files}
        assert self.tensors.keys() == self.facts['tensors'].keys()

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below ``prefix/``, by the rest of their name, in float64."""
        start = f'{prefix}/'
        found = {}
        for key, value in self.tensors.items():
            name = key.removeprefix(start)
            if name == key:
                continue
            value = value.double() if value.is_floating_point() else value
            pieces: Iterable[Tensor] = value if name in self.split else ()
            if re.fullmatch(self.halves, name):
                pieces = value.chunk(2)
            named = {f'{name}.{i}': piece for i, piece in enumerate(pieces)}
            found |= named or {name: value}
        return found

    def trainable(self) -> set[str]:
        """Names of what trains."""
        names = set(self.facts['trainable'])
        pieces = {n for n in self.group('param') if n.rpartition('.')[0] in names}
        return (names | pieces) & self.group('param').keys()

    def outputs(self) -> list[Tensor]:
        """The outputs, in order."""
        several = self.group('output')
        if several:
            return [several[k] for k in sorted(several)]
        return [self.tensors['output'].double()]


class Renamed:
    """Where a tensor of the reference lies in our state, and in which layout."""

    def __init__(self, name: str, passes: tuple[tuple[Rule, ...], ...]) -> None:
        self.name: str | None = name
        self.part: tuple[int, int] | None = None
        self.change: Callable[[Tensor], Tensor] | None = None
        self.change_grad: Callable[[Tensor], Tensor] | None = None
        for rules in passes:
            rule = next((r for r in rules if re.fullmatch(r.pattern, self.name)), None)
            if rule is None:
                continue
            self.part = rule.part or self.part
            self.change = rule.change or self.change
            self.change_grad = rule.change_grad or self.change_grad
            if rule.target is None:
                self.name = None
                return
            self.name = re.sub(rule.pattern, rule.target, self.name)

    def place(self, ours: Tensor) -> Tensor:
        """The part of our tensor that the reference's fills, a view."""
        if self.part is None:
            return ours
        i, n = self.part
        return ours.chunk(n)[i]

    def convert(self, theirs: Tensor, ours: Tensor, grad: bool = False) -> Tensor:
        """Their values, or gradients, in our layout and shape."""
        change = (self.change_grad if grad else None) or self.change
        if change is not None:
            theirs = change(theirs)
        assert theirs.numel() == ours.numel(), (self.name, theirs.shape, ours.shape)
        return theirs.reshape(ours.shape)


def model_of(case: Case, reference: Reference) -> nn.Module:
    """Our model of a case in float64, with the reference's weights in it.

    Every parameter of ours is filled, by every parameter of theirs that has a rule, and
    running statistics are theirs.
    """
    model = case.build(reference.facts['config'])
    if case.method is not None:
        case.plug(model.backbone, case.method)
    model = model.double()
    model.eval()
    params = dict(model.named_parameters())
    filled = dict.fromkeys(params, 0)
    with torch.no_grad():
        for name, theirs in reference.group('param').items():
            renamed = Renamed(name, case.rules)
            if renamed.name is None:
                continue
            assert renamed.name in params, f'{name} -> {renamed.name}, not in ours'
            place = renamed.place(params[renamed.name])
            place.copy_(renamed.convert(theirs, place))
            filled[renamed.name] += place.numel()
        if case.buffers is not None:
            ours = dict(model.named_buffers())
            for name, value in case.buffers(reference.group('buffer')).items():
                ours[name].copy_(value)
        else:
            buffers = dict(model.named_buffers())
            for name, theirs in reference.group('buffer').items():
                if theirs.is_floating_point():
                    buffers[Renamed(name, case.rules).name].copy_(theirs)
    wrong = [n for n, count in filled.items() if count != params[n].numel()]
    assert not wrong, f'not filled, or filled twice: {wrong}'
    if case.kept:
        fill_buffers(model, case, reference)
    return model


def fill_buffers(model: nn.Module, case: Case, reference: Reference) -> None:
    """Put the buffers of a case into our model, which has them for certain layers."""
    buffers, filled = dict(model.named_buffers()), {}
    for name, theirs in reference.group(case.kept).items():
        renamed = Renamed(name, case.rules)
        value = renamed.convert(theirs, buffers[renamed.name])
        assert torch.equal(filled.setdefault(renamed.name, value), value), name
        buffers[renamed.name].copy_(value)
    assert filled


def far(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value of the reference."""
    assert ours.shape == theirs.shape
    scale = theirs.abs().max().item()
    return (ours - theirs).abs().max().item() / (scale or 1.0)
