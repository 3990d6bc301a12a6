"""Configs as checkpoints hold them: Python text, read without running it."""

from __future__ import annotations

import ast
from typing import Any

_NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What Python answers a text with that it does not take for its own."""


def read_text(text: str) -> dict[str, Any]:
    """The values of a config's ``pretty_text``.

    Assignments of literals and of ``dict(...)`` are read. What else may stand there (a
    class, ``inf``) is given as the text it is, so that two configs can be compared.

    Args:
        text: What ``mmengine.config.Config.pretty_text`` gives.

    Returns:
        Nothing where the text is no Python, or nested deeper than it can be read.
    """
    try:
        tree = ast.parse(text)
        return {
            node.targets[0].id: _value(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
    except _NO_PYTHON:
        return {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == 'dict' and not node.args:
            return {k.arg: _value(k.value) for k in node.keywords}
        if node.func.id == 'dict' and _of_mapping(node):
            return _value(node.args[0])
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_key(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(v) for v in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):  # a call, or a set of lists
        return ast.unparse(node)


def _of_mapping(node: ast.Call) -> bool:
    """Whether a call is ``dict({...})``, as keys are written that are no names."""
    one = len(node.args) == 1 and not node.keywords
    return one and isinstance(node.args[0], ast.Dict)


def _key(node: ast.expr) -> Any:
    try:
        key = ast.literal_eval(node)
        hash(key)
    except (ValueError, TypeError):
        return ast.unparse(node)
    return key


DATA = (
    ast.Module,
    ast.Assign,
    ast.Constant,
    ast.Dict,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.UnaryOp,
    ast.USub,
    ast.keyword,
    ast.Load,
    ast.Store,
)


def is_data(text: str) -> bool:
    """Whether a config's text assigns values and ``dict(...)`` alone, and runs nothing.

    Args:
        text: What ``mmengine.config.Config.pretty_text`` gives.
    """
    try:
        tree = ast.parse(text)
    except _NO_PYTHON:
        return False
    nodes = list(ast.walk(tree))
    calls = (n for n in nodes if isinstance(n, ast.Call))
    dicts = {n.func for n in calls if not n.args or _of_mapping(n)}
    targets = {t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets}
    for node in nodes:
        if isinstance(node, ast.Name):
            called = node in dicts and node.id == 'dict'
            if not (called or node in targets or node.id in ('inf', 'nan')):
                return False
        elif isinstance(node, ast.Call):
            if node.func not in dicts or not isinstance(node.func, ast.Name):
                return False
        elif not isinstance(node, DATA):
            return False
    return True
