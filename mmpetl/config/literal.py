"""A written-out config as data: what it says, without running it.

A config is Python, and reading one runs it. The copy that a run leaves beside its
record (``Config.pretty_text``) holds nothing but names that are given literals and
``dict(...)`` of them, so that it can be read from anybody.
"""

from __future__ import annotations

import ast
import os
from typing import Any

from mmpetl.core import PETLError
from mmpetl.core.boundary import check_depth, read_utf8

_NUMBERS = {'inf': float('inf'), 'nan': float('nan')}


def read_literal_config(path: str | os.PathLike) -> dict[str, Any]:
    """The keys of a written-out config.

    Raises:
        FileNotFoundError: There is no such file.
        PETLError: It is no Python, or says more than literals, which only running it
            would tell.
    """
    text = read_utf8(path, 'config')
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PETLError(f'{path} is no config: {error}') from None
    found: dict[str, Any] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    found[name] = _value(value)
                except RecursionError:
                    raise PETLError(f'{path}: {name} is nested too deep') from None
                except _NotLiteral as error:
                    raise PETLError(
                        f'{path}, line {error.line}: {error.text[:60]!r} is no '
                        'literal; a written-out config holds nothing that runs'
                    ) from None
            case _:
                raise PETLError(
                    f'{path}, line {statement.lineno}: a written-out config only gives '
                    'names their values'
                )
    check_depth(found, str(path))
    return found


class _NotLiteral(Exception):
    def __init__(self, node: ast.AST) -> None:
        self.line = getattr(node, 'lineno', 0)
        self.text = ast.unparse(node)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Set(elts=items):
            return {_value(item) for item in items}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {
                _value(key): _value(value)
                for key, value in zip(keys, values, strict=True)
            }
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=words) if all(
            word.arg for word in words
        ):
            return {word.arg: _value(word.value) for word in words}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _value(operand)
            if isinstance(value, int | float):
                return -value
        case ast.Name(id=name) if name in _NUMBERS:
            return _NUMBERS[name]
    raise _NotLiteral(node)
