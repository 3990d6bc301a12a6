"""The text of a config is laid out once, statement by statement.

MMEngine lets yapf lay out the whole config for the log, for the file in the work
folder and for the meta data of every checkpoint, though it is the same, or the same but
for a name or a folder.
"""

from __future__ import annotations

import ast
from types import ModuleType
from typing import Any

MOST = 512
"""Laid out statements that are remembered; a config has some thirty."""


def format_once(module: ModuleType) -> None:
    """Let ``mmengine.config.config`` remember the statements that it laid out last."""
    if hasattr(module.FormatCode, 'kept'):
        return
    lay_out = module.FormatCode
    kept: dict[tuple[str, str], str] = {}

    def statement(text: str, style: Any, options: dict[str, Any]) -> str:
        key = text, repr((style, sorted(options.items())))
        # Popped and put back, so that the oldest stands first.
        found = kept.pop(key, None)
        if found is None:
            found = lay_out(text, style_config=style, **options)[0]
        kept[key] = found
        if len(kept) > MOST:
            del kept[next(iter(kept))]
        return found

    def remembered(text: str, style_config: Any = None, **options: Any) -> tuple:
        """Yapf's ``FormatCode`` for lines of assignments, which it lays out singly."""
        parts = _assignments(text)
        if parts is None:
            return lay_out(text, style_config=style_config, **options)
        laid = ''.join(statement(part, style_config, options) for part in parts)
        return laid, laid != text

    remembered.kept = kept
    module.FormatCode = remembered


def _assignments(text: str) -> list[str] | None:
    """The statements of a text that is nothing but assignments to names, else None."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    lines = text.splitlines(keepends=True)
    parts, end = [], 0
    for node in body:
        if not isinstance(node, ast.Assign) or node.lineno != end + 1:
            return None
        end = node.end_lineno or 0
        parts.append(''.join(lines[node.lineno - 1 : end]))
    return parts if parts and end == len(lines) else None
