"""Configs as checkpoints hold them: Python text, read without running it."""

from __future__ import annotations

import ast
from typing import Any


def read_text(text: str) -> dict[str, Any]:
    """The values of a config's ``pretty_text``.

    Assignments of literals and of ``dict(...)`` are read. What else may stand there (a
    class, ``inf``) is given as the text it is, so that two configs can be compared.

    Args:
        text: What ``mmengine.config.Config.pretty_text`` gives.

    Returns:
        Nothing where the text is no Python.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {}
    return {
        node.targets[0].id: _value(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == 'dict' and not node.args:
            return {k.arg: _value(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            _value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(v) for v in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
