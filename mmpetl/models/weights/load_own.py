"""Filling a model by its own names, or by official ones of its class."""

from __future__ import annotations

from collections.abc import Iterable

from mmpetl.models.weights.convert import (
    Converted,
    conversions,
    part_known,
    spare_of,
)
from mmpetl.models.weights.entries import Tensors
from mmpetl.models.weights.errors import WeightsError, shorten
from mmpetl.models.weights.own_names import HEAD, Fit, copy, differences, fit
from mmpetl.models.weights.report import LoadReport
from mmpetl.models.weights.target import Target


def load_own(
    target: Target, tensors: Tensors, where: str, trunk: Iterable[str] = ()
) -> LoadReport:
    """Fill a model, or say what does not fit and change nothing.

    Args:
        target: The model.
        tensors: The file.
        where: The file, for messages.
        trunk: Paths below which every tensor must match; empty for all of the model.

    Returns:
        The report, without what is known of the file alone. ``head_classes`` is 0
        where the file's classifier went into the model.
    """
    trunk = _inside(target, trunk, where)
    spare = spare_of(target)
    own = Converted('own names', dict(tensors))
    found = fit(target, tensors, where, spare=spare, trunk=trunk)
    candidates = [(own, found)]
    if not found.is_whole:
        for state in conversions(target, tensors, where):
            found = fit(
                target, state.state, where, spare=spare, trunk=trunk, loose=True
            )
            candidates.append((state, found))
            if found.is_whole:
                break
    chosen, found = max(candidates, key=lambda c: (c[1].is_whole, len(c[1].pairs)))
    if not found.is_whole:
        raise WeightsError(_refusal(target, tensors, where, chosen, found))
    copy(found, target, where)
    return _report(target, tensors, where, chosen, found)


def _inside(target: Target, trunk: Iterable[str], where: str) -> tuple[str, ...]:
    """Paths of the trunk by the target's names.

    Raises:
        WeightsError: The model has nothing there.
    """
    paths = tuple(path.rstrip('.') for path in trunk)
    names = [target.prefix + name for name in target.tensors]
    for path in paths:
        if not any(name == path or name.startswith(f'{path}.') for name in names):
            tops = dict.fromkeys(name.partition('.')[0] for name in names)
            raise WeightsError(
                f'{where}: {target.title} has no tensors below {path!r}; it has '
                f'{shorten(tops, 8)}'
            )
    return tuple(
        path.removeprefix(target.prefix) if path.startswith(target.prefix) else ''
        for path in paths
    )


def _refusal(
    target: Target, tensors: Tensors, where: str, chosen: Converted, found: Fit
) -> str:
    part = None if target.prefix else part_known(target.model)
    if not found.pairs:
        own = ', '.join(list(target.tensors)[:3])
        alone = f'; to fill its backbone, pass the backbone alone, which is .{part}'
        return (
            f'{where} holds no {target.title} that is known here: none of its '
            f'{len(tensors)} tensors ({", ".join(list(tensors)[:3])}, ...) has a name '
            f'of the model ({own}, ...){alone if part else ""}; docs/weights.md lists '
            'what each class reads'
        )
    names = chosen.title if chosen.title == 'own names' else f'{chosen.title} names'
    line = f'{where} ({names}) does not fit {target.title}: '
    line += differences(found, target)
    lost = [*found.missing, *found.shapes, *found.unexpected]
    if part and not any(f'{part}.' in name for name in lost):
        line += f'; trunk=({part!r},) fills the rest as far as it fits'
    return line


def _report(
    target: Target, tensors: Tensors, where: str, chosen: Converted, found: Fit
) -> LoadReport:
    dropped = list(found.dropped)
    if chosen.title != 'own names':
        outside = f'outside of {chosen.prefix.rstrip("./")}'
        dropped += [(k, outside) for k in tensors if not k.startswith(chosen.prefix)]
    prefix = target.prefix
    has_head = any(HEAD.match(name) for name in found.pairs)
    return LoadReport(
        path=where,
        sha256='',
        container='',
        layout=chosen.title,
        family=f'own:{target.title.replace(" ", ".")}',
        matched=tuple(prefix + name for name in found.pairs),
        dropped=tuple(dropped),
        resized=tuple(
            (prefix + name, old, new)
            for name, old, new in (*found.resized, *chosen.resized)
        ),
        fresh=tuple((prefix + name, why) for name, why in found.fresh.items()),
        head_classes=0 if has_head else None,
    )
