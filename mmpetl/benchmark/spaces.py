"""What a search tries: the space of a method, as Optuna is asked and answers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmpetl.benchmark.job_config import METHOD
from mmpetl.benchmark.records import setting_key
from mmpetl.core import PETLError, build_entries, is_several, registered_methods
from mmpetl.core.boundary import parse_json
from mmpetl.core.several import PLUS, written_out

FALLBACK: Mapping[str, Any] = {
    'optim_wrapper.optimizer.lr': {'low': 1e-4, 'high': 3e-2, 'log': True},
    'optim_wrapper.optimizer.weight_decay': {'low': 1e-5, 'high': 1e-1, 'log': True},
}
"""What is searched where a method has no space of its own; whoever asks is told."""

MARK = 'json:'
"""What a choice that Optuna keeps as text begins with."""


def space_of(method: str, warn: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The search space of a method, and where it is from.

    A method without a space is searched over learning rate and weight decay alone, and
    ``warn`` is told so. That of several is what each of them searches; where two speak
    of one key, as the learning rate, the first is heard.
    """
    if is_several(method):
        spaces = [space_of(name, warn) for name in written_out(method)]
        joined = {
            f'{METHOD}{number}.{key.removeprefix(METHOD)}'
            if key.startswith(METHOD)
            else key: values
            for number, (space, _) in reversed(list(enumerate(spaces)))
            for key, values in space.items()
        }
        return joined, PLUS.join(source for _, source in spaces)
    from mmpetl.config.compose import search_space
    from mmpetl.config.names import config_root

    stem = registered_methods()[method].stem()
    path = config_root() / stem / 'search_space.py'
    if path.is_file():
        # As a journal gives it back: a tuple is a list there.
        space = json.loads(json.dumps(search_space(stem)))
        return space, f'configs/{stem}/search_space.py'
    warn(
        f'{method} has no configs/{stem}/search_space.py; learning rate and weight '
        'decay alone are searched, and the records say so'
    )
    return {k: dict(v) for k, v in FALLBACK.items()}, 'fallback'


def suggest_from(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a trial proposes."""
    return {key: _suggest(trial, key, values) for key, values in space.items()}


def _suggest(trial: Any, key: str, values: Any) -> Any:
    if isinstance(values, Mapping):
        low, high, log = values['low'], values['high'], bool(values.get('log', False))
        whole = isinstance(low, int) and isinstance(high, int)
        kind = trial.suggest_int if whole else trial.suggest_float
        return kind(key, low, high, log=log)
    return decode(trial.suggest_categorical(key, [encode(v) for v in values]))


def encode(value: Any) -> Any:
    """A choice as Optuna keeps it: lists and dicts as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return MARK + json.dumps(value)


def decode(value: Any) -> Any:
    """Undo :func:`encode`.

    Raises:
        PETLError: It is marked as JSON, and is none.
    """
    if isinstance(value, str) and value.startswith(MARK):
        return parse_json(value.removeprefix(MARK), place=f'the choice {value[:60]!r}')
    return value


def check_in_space(
    options: Mapping[str, Any], space: Mapping[str, Any], place: str
) -> None:
    """Raise PETLError where a journal proposes what its space does not hold.

    Options of a trial become a config, so that a journal may say no more than a space.
    """
    for key, value in options.items():
        values = space.get(key)
        if isinstance(values, Mapping):
            low, high = values['low'], values['high']
            whole = isinstance(low, int) and isinstance(high, int)
            plain = isinstance(value, int if whole else int | float)
            fits = plain and not isinstance(value, bool) and low <= value <= high
        else:
            # True is 1 to Python, and no number here.
            fits = any(v == value for v in values or () if _of_a_kind(v, value))
        if not fits:
            raise PETLError(
                f'{place}: {key}={value!r} is not in the search space; search in '
                'another folder'
            )


def num_settings(space: Mapping[str, Any]) -> int | None:
    """How many settings a space holds; None where a range of numbers has no end."""
    sizes = [_size(values) for values in space.values()]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def _size(values: Any) -> int | None:
    choices = _choices(values)
    return None if choices is None else len(choices)


def _choices(values: Any) -> range | list[Any] | None:
    """The values of one key, each once; None where they have no end."""
    if not isinstance(values, Mapping):
        return list({setting_key({'': value}): value for value in values}.values())
    low, high = values['low'], values['high']
    if isinstance(low, int) and isinstance(high, int):
        return range(low, high + 1)
    return [low] if low == high else None


def settings_in(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every setting of a space that has an end, in the order of its choices.

    Raises:
        PETLError: It has none.
    """
    choices = {key: _choices(values) for key, values in space.items()}
    for key, values in choices.items():
        if values is None:
            raise PETLError(f'the settings of a space have no end: {key} is a range')
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def holds(space: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether a space holds a setting."""
    try:
        check_in_space(options, space, '')
    except PETLError:
        return False
    return True


def _of_a_kind(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool)


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key; of a method's argument its default.

    Raises:
        PETLError: The config has no such key.
    """
    if key.startswith(METHOD):
        methods, name = config.model.backbone.method, key.removeprefix(METHOD)
        entries = build_entries(methods)
        number, _, rest = name.partition('.')
        if is_several(methods) and number.isdecimal() and int(number) < len(entries):
            args, name = entries[int(number)].config(), rest
        else:
            args = entries[0].config()
        if name in args:
            return args[name]
    node: Any = config
    for part in key.split('.'):
        try:
            node = node[int(part)] if isinstance(node, list | tuple) else node[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise PETLError(
                f'the search space speaks of {key!r}, which the recipe does not have'
            ) from None
    return node
