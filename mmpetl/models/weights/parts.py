"""Which of the weights in a file are meant: one model, its average, a teacher.

Training scripts put the weights under a key of their own, often beside a second set.
Where one of the sets is the model and the others are averages of it, the model is taken
and the rest is named; where nobody can know, the user has to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from mmpetl.models.weights.errors import WeightsError, shorten

# The keys under which training scripts put the model, those of averages behind them.
WRAPPERS = (
    'state_dict',
    'model',
    'module',
    'model_state_dict',
    'model_state',
    'params',
    'model_ema',
    'state_dict_ema',
    'ema_state_dict',
)
# Two models that learn from each other: the file does not say which one is meant.
PAIRS = (('teacher', 'student'), ('target_encoder', 'encoder'))
DEPTH = 16
"""Keys that may lead to the weights; training scripts use one or two."""
HOW = "as `checkpoint_part` of mmpetl.PETLBackbone (load_base_weights: part='{}')"


class Part(NamedTuple):
    """Chosen tensors, the keys that led to them, and what was left."""

    tensors: dict[str, Tensor]
    trail: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose_part(content: object, where: str, part: str | None = None) -> Part:
    """The weights in what a file holds.

    Args:
        content: Tensors by name, or such a dict below other keys.
        where: The file, for messages.
        part: The key to take, where there are several.

    Raises:
        WeightsError: ``part`` is not there, or is needed; or there are no tensors.
    """
    trail: list[str] = []
    notes: list[str] = []
    while isinstance(content, Mapping):
        if len(trail) > DEPTH:
            raise WeightsError(
                f'{where} holds weights more than {DEPTH} keys deep, or in themselves; '
                "save the model's state_dict"
            )
        content = _split(content, part)
        sets = [k for k, v in content.items() if _holds_tensors(v)]
        asked = part in sets
        key = part if asked else _usual(content, sets, where, part)
        if key is None:
            if part is not None:
                names = f'it holds {shorten(sets, 6) or "one model alone"}'
                raise WeightsError(f'{where} has no part {part!r}: {names}')
            tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
            return Part(tensors, tuple(trail), tuple(notes))
        others = [k for k in sets if k != key]
        if asked:
            part = None
        elif others and part is None:
            notes.append(
                f'taken from {key!r}; the file also holds {shorten(others, 6)}: name '
                f'one {HOW.format(others[0])}'
            )
        trail.append(key)
        content = content[key]
    below = f' under {".".join(trail)}' if trail else ''
    raise WeightsError(
        f'{where} holds {type(content).__name__}{below}, not a dict of tensors; save '
        "the model's state_dict"
    )


def _usual(
    content: Mapping, sets: list[str], where: str, part: str | None
) -> str | None:
    """The key to follow where none was asked for; None where tensors lie open."""
    # Training scripts call their settings `model` or `params`, too.
    known = next((k for k in WRAPPERS if k in sets), None)
    if not sets:
        known = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
    flat = any(isinstance(v, Tensor) for v in content.values())
    pair = any(set(pair) <= set(sets) for pair in PAIRS)
    if part is None and (pair or (known is None and not flat and len(sets) > 1)):
        raise WeightsError(
            f'{where} holds {len(sets)} sets of weights ({shorten(sets, 6)}), and does '
            f'not say which is the model; name one {HOW.format(sets[0])}'
        )
    return known or (sets[0] if len(sets) == 1 and not flat else None)


def _split(content: Mapping, part: str | None) -> Mapping:
    """Several models in one flat dict (``teacher.x``, ``student.x``) as dicts."""
    groups = [*PAIRS, (part,)] if part else PAIRS
    for group in groups:
        found = {name: _below(content, f'{name}.') for name in group}
        if all(found.values()):
            return found
    return content


def _below(content: Mapping, start: str) -> dict[str, object]:
    return {
        k.removeprefix(start): v
        for k, v in content.items()
        if isinstance(k, str) and k.startswith(start)
    }


def _holds_tensors(value: object) -> bool:
    """A set of weights: tensors by name, or one key deeper."""
    if not isinstance(value, Mapping):
        return False
    tensors = [v for v in value.values() if isinstance(v, Tensor)]
    deeper = any(isinstance(value.get(k), Mapping) for k in WRAPPERS)
    return len(tensors) > 1 or deeper
