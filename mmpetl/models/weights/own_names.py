"""Weights in a model's own names, found below whatever path they bear in a file.

This reader knows no architecture: it serves any module, a backbone as well as a whole
detector, segmentor, classifier or recogniser. Every tensor of the model must be in the
file, and every tensor of the file must have a place or a known reason to be left aside.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmpetl.models.weights.entries import Entry, Tensors
from mmpetl.models.weights.errors import WeightsError, several_trunks, shorten
from mmpetl.models.weights.tables import fit_table
from mmpetl.models.weights.target import Target

HEAD = re.compile(
    r'^(head|heads|head_dist|fc|cls_head|classifier|last_linear|pooler)\.(?!norm\.)'
)
"""Names of a classifier, on those of a trunk."""
REBUILT = re.compile(
    r'(^|\.)(relative_position_index|relative_coords_table|attn_mask|bias_mask'
    r'|position_ids|freqs|freqs_cos|freqs_sin|periods|inv_freq)$'
)
"""Buffers that a model computes from its size, whatever a file says."""
LEFT_ASIDE: tuple[tuple[str, str], ...] = (
    (HEAD.pattern, 'head'),
    (r'^pre_logits\.', 'pre_logits'),
    (r'^(lm_head|cls_pt_layers|decoder|encoder_to_decoder|projectors?)\b', 'decoder'),
    (r'(^|[._])mask_token$', 'mask token of pre-training'),
    (REBUILT.pattern, 'index or mask, rebuilt'),
)
"""What a file may hold that no backbone takes: (pattern on own names, reason)."""


class Spare(NamedTuple):
    """Tensors that one side may have alone.

    Attributes:
        pattern: Of their names, as the model gives them.
        reason: Why.
        side: ``'file'``, ``'model'`` or ``'both'``.
    """

    pattern: str
    reason: str
    side: Literal['file', 'model', 'both'] = 'both'


@dataclass
class Fit:
    """How far a file fits a model, by the model's names.

    Attributes:
        prefix: What stands before the names in the file.
        pairs: Tensors for the model.
        dropped: (key in the file, reason).
        fresh: Names of the model that keep their values, and why.
        resized: (name, shape in the file, shape in the model).
        missing: Names of the model that should be in the file and are not.
        unexpected: Keys of the file that have no place.
        shapes: Names whose shapes differ.
    """

    prefix: str = ''
    pairs: dict[str, Entry] = field(default_factory=dict)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=list
    )
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every tensor of both sides is accounted for."""
        return bool(self.pairs) and not (self.missing or self.unexpected or self.shapes)


def fit(
    target: Target,
    tensors: Tensors,
    where: str,
    *,
    spare: tuple[Spare, ...] = (),
    trunk: Iterable[str] = (),
    loose: bool = False,
) -> Fit:
    """Hold a file against a model's own names.

    Args:
        target: The model.
        tensors: The file.
        where: The file, for messages.
        spare: Tensors that one side may have alone.
        trunk: Paths below which every tensor must match. Empty: all of the model.
            Outside of them what fits is taken and the rest keeps its values.
        loose: Whether axes of length 1 may differ: a linear layer and a 1x1
            convolution have the same weights.

    Raises:
        WeightsError: The file holds two models that fit equally well, or a position
            table that cannot be resized.
    """
    found = Fit(find_prefix(target.tensors, tensors, where))
    inside = {
        key.removeprefix(found.prefix): key
        for key in tensors
        if key.startswith(found.prefix)
    }
    trunk = tuple(path.rstrip('.') for path in trunk)
    strict = {name: _is_below(name, trunk) for name in target.tensors}
    for name in target.tensors:
        key = inside.get(name)
        if key is None:
            _miss(found, target, name, spare, strict[name])
        else:
            entry = Entry(tensors[key], key)
            _pair(found, target, name, entry, strict[name], loose, where)
    for name, key in inside.items():
        if name not in target.tensors:
            reason = _reason(name, spare)
            if reason is None and trunk and not _is_below(name, trunk):
                reason = 'no place outside of the trunk'
            if reason is None:
                found.unexpected.append(key)
            else:
                found.dropped.append((key, reason))
    outside = f'outside of {found.prefix.rstrip("./")}'
    for key in tensors:
        if not key.startswith(found.prefix):
            found.dropped.append((key, _reason(key, spare) or outside))
    _name_ties(found, target)
    return found


def find_prefix(names: Iterable[str], tensors: Tensors, where: str) -> str:
    """What stands before most of a model's names in a file.

    Raises:
        WeightsError: Two places fit almost equally well: a student and a teacher, say.
    """
    names = set(names)
    votes: Counter[str] = Counter()
    for key in tensors:
        start = 0
        while True:
            if key[start:] in names:
                votes[key[:start]] += 1
            cut = key.find('.', start)
            if cut < 0:
                break
            start = cut + 1
    best = votes.most_common(2)
    if not best:
        return ''
    if len(best) == 2 and best[1][1] > max(len(names) / 2, ALMOST * best[0][1]):
        raise several_trunks(where, [prefix for prefix, _ in best])
    return best[0][0]


ALMOST = 0.75
"""Share of the best place's names at which another is a model of its own: one of a pair
may have a classifier or a mask token more."""


def _miss(
    found: Fit, target: Target, name: str, spare: tuple[Spare, ...], strict: bool
) -> None:
    reason = _head_or_spare(name, spare)
    if name in target.built:
        reason = 'index or mask, rebuilt'
    elif reason is None and not strict:
        reason = 'not in the file'
    if reason is None:
        found.missing.append(name)
    elif name not in target.built:
        found.fresh[name] = reason


def _pair(
    found: Fit,
    target: Target,
    name: str,
    entry: Entry,
    strict: bool,
    loose: bool,
    where: str,
) -> None:
    own = target.tensors[name]
    tensor, key = entry
    if name in target.built and (
        REBUILT.search(name)
        or tensor.shape != own.shape
        or not (own.is_floating_point() or name.endswith('num_batches_tracked'))
    ):
        found.dropped.append((key, 'index or mask, rebuilt'))
        return
    if loose and tensor.shape != own.shape and _squeezed(tensor) == _squeezed(own):
        tensor = tensor.reshape(own.shape)
    try:
        fitted = fit_table(target, name, tensor)
    except ValueError as error:
        if strict:
            raise WeightsError(
                f'{where}: {key} {_shape(tensor)} cannot be resized to the '
                f'{_shape(own)} of {target.title}: {error}'
            ) from None
        fitted = None
    if fitted is not None and fitted is not tensor and fitted.shape == own.shape:
        found.resized.append((name, tuple(tensor.shape), tuple(own.shape)))
        tensor = fitted
    if tensor.shape == own.shape:
        found.pairs[name] = Entry(tensor, key)
    elif HEAD.match(name) or not strict:
        why = f'{_shape(own)} in the model, {_shape(tensor)} in the file'
        found.fresh[name] = 'head' if HEAD.match(name) else why
        found.dropped.append((key, 'head' if HEAD.match(name) else why))
    else:
        found.shapes.append(
            f'{key} {_shape(tensor)} in the file, {_shape(own)} in the model'
        )


def _name_ties(found: Fit, target: Target) -> None:
    """A tensor under two names need be in the file under one of them."""
    taken = {id(target.tensors[name]) for name in found.pairs}
    found.missing = [n for n in found.missing if id(target.tensors[n]) not in taken]


def _head_or_spare(name: str, spare: tuple[Spare, ...]) -> str | None:
    if HEAD.match(name):
        return 'head'
    found = (s.reason for s in spare if s.side != 'file' and re.search(s.pattern, name))
    return next(found, None)


def _reason(name: str, spare: tuple[Spare, ...]) -> str | None:
    both = [(s.pattern, s.reason) for s in spare if s.side != 'model']
    both += LEFT_ASIDE
    return next((why for pattern, why in both if re.search(pattern, name)), None)


def _is_below(name: str, paths: tuple[str, ...]) -> bool:
    return not paths or any(name == p or name.startswith(f'{p}.') for p in paths)


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(n for n in tensor.shape if n != 1)


def _shape(tensor: Tensor) -> str:
    return f'({", ".join(map(str, tensor.shape))})'


def differences(found: Fit, target: Target) -> str:
    """What does not fit, in one line."""
    problems = []
    if found.missing:
        names = shorten((target.prefix + name for name in found.missing), 3)
        near = _nearest(found.missing[0], found.unexpected)
        hint = f'; nearest to the first: {near}' if near else ''
        problems.append(
            f'{len(found.missing)} of {len(target.tensors)} tensors of the model are '
            f'not in it ({names}{hint})'
        )
    if found.unexpected:
        names = shorten(found.unexpected, 3)
        problems.append(
            f'{len(found.unexpected)} of its tensors have no place ({names})'
        )
    if found.shapes:
        problems.append(
            f'{len(found.shapes)} shapes differ ({shorten(found.shapes, 2)})'
        )
    return '; '.join(problems)


def _nearest(name: str, keys: list[str]) -> str:
    return next(iter(difflib.get_close_matches(name, keys, n=1, cutoff=0.5)), '')


@torch.no_grad()
def copy(found: Fit, target: Target, where: str) -> None:
    """Put the values of a fit into the model, or refuse them before any has moved."""
    for name, (tensor, key) in found.pairs.items():
        own = target.tensors[name]
        if own.is_floating_point() and not tensor.is_floating_point():
            raise WeightsError(
                f'{where}: {key} is {tensor.dtype}, which holds no weights; save them '
                'as floating point'
            )
        check_finite(tensor, own.dtype, f'{where}: {key}')
    for name, (tensor, _) in found.pairs.items():
        target.tensors[name].copy_(tensor)


def check_finite(tensor: Tensor, dtype: torch.dtype, what: str) -> None:
    """Refuse values that are not finite, or not in the dtype of a model.

    Args:
        tensor: Values.
        dtype: Of the parameter that takes them.
        what: The file and the tensor, for the message.

    Raises:
        WeightsError: As above.
    """
    if not tensor.is_floating_point():
        return
    if not torch.isfinite(tensor).all():
        raise WeightsError(f'{what} has non-finite values')
    if not torch.isfinite(tensor.to(dtype)).all():
        raise WeightsError(
            f'{what} has values up to {tensor.abs().max():.3g}, which {dtype} of the '
            'model does not hold; build it in a wider one'
        )
