"""Modules that lie beside a file or in the current folder, and what they raise."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path


def let_import(name: str, folders: Iterable[Path]) -> bool:
    """Let a module be imported that lies in one of some folders.

    The first folder that holds it goes to the end of ``sys.path``, where it hides
    nothing, and only if the module is found nowhere else.

    Returns:
        Whether it is found.
    """
    top = name.partition('.')[0]
    if top in sys.modules or importlib.util.find_spec(top) is not None:
        return True
    for folder in folders:
        if (folder / f'{top}.py').is_file() or (folder / top).is_dir():
            sys.path.append(str(folder.resolve()))
            importlib.invalidate_caches()
            return True
    return False


def reason(error: BaseException, name: str) -> str:
    """What a file has raised, and the last of its lines that led there.

    Args:
        error: As it was caught.
        name: Name of the file, without its folder.
    """
    lines = [
        entry.lineno
        for entry in traceback.extract_tb(error.__traceback__)
        if Path(entry.filename).name == name
    ]
    if isinstance(error, SyntaxError) and Path(error.filename or '').name == name:
        lines = [error.lineno]
    text = ' '.join(str(error).split())[:300] or 'no message'
    place = f'line {lines[-1]}: ' if lines else ''
    return f'{place}{type(error).__name__}: {text}'
