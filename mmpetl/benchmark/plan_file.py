"""The YAML of a plan: plain data, each key once, of bounded size."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from mmpetl.core import PETLError
from mmpetl.core.boundary import MIB, check_characters, check_depth, read_utf8

MOST = 100_000
"""Values that a plan may hold, those that stand for others by an alias counted."""


def read_yaml(path: str | os.PathLike) -> Any:
    """A YAML file as plain data.

    ``1e-3`` is a number, as in YAML 1.2 and as everywhere else.

    Raises:
        PETLError: It cannot be read, has a key twice, is too large or nested too deep,
            or holds something else than text, numbers, true, false, null, lists and
            mappings of text.
    """
    import yaml

    text = read_utf8(path, 'plan', 4 * MIB)
    try:
        data = yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise PETLError(f'cannot read the plan {path}: {reason}') from None
    except RecursionError:
        raise PETLError(f'the plan {path} is nested too deep') from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # What a value is answered with that is none of its tag: !!timestamp x.
        raise PETLError(
            f'cannot read the plan {path}: a value is none of the type that its tag '
            f'names ({type(error).__name__}); write it without a tag'
        ) from None
    check_depth(data, f'the plan {path}')
    if _count(data, {}) > MOST:
        raise PETLError(f'the plan {path} holds more than {MOST} values')
    check_plain(data, f'the plan {path}')
    check_characters(data, f'the plan {path}')
    return data


def _count(node: Any, known: dict[int, int]) -> int:
    """Values in a tree; what is shared is counted each time, and looked at once."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        parts = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def check_plain(node: Any, place: str) -> None:
    """Raise PETLError on what JSON could not hold."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not isinstance(key, str):
                raise PETLError(f'{place}: the key {key!r} is no text; quote it')
            check_plain(value, f'{place}: {key}')
    elif isinstance(node, list | tuple):
        for value in node:
            check_plain(value, place)
    elif isinstance(node, float) and not math.isfinite(node):
        raise PETLError(f'{place} holds {node}; numbers of a plan are finite')
    elif not (node is None or isinstance(node, bool | int | float | str)):
        raise PETLError(
            f'{place} holds {str(node)[:60]!r}, of type {type(node).__name__}; quote it'
        )


@functools.cache
def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, without keys given twice, and with numbers as of YAML 1.2."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in getattr(node, 'value', ()):
                if isinstance(key, yaml.ScalarNode) and key.value != '<<':
                    if key.value in seen:
                        raise ValueError(
                            f'line {key.start_mark.line + 1}: the key {key.value!r} '
                            'stands twice'
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(
        'tag:yaml.org,2002:float',
        re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
        list('-+.0123456789'),
    )
    return Loader
