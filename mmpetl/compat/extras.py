"""How to install what only some commands need."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement

from mmpetl.shipped import shipped

FILES = shipped('requirements')


def pip_line(extra: str) -> str:
    """The command that installs what an extra of ``setup.py`` names.

    It names the packages and not ``mmpetl[...]``: that would have pip look for mmpetl
    and its own requirements again, which bring a second OpenCV.

    Args:
        extra: ``benchmark``, ``cluster``, ``optional``, ``quantised``, ``tests`` or
            ``transformers``.

    Returns:
        ``pip install "optuna>=4" ...``, of the checkout's file of requirements, or else
        as the installed package states them.
    """
    file = FILES / f'{extra}.txt'
    if file.is_file():
        lines = file.read_text(encoding='utf-8').splitlines()
    else:
        named = f'extra == "{extra}"'
        stated = importlib.metadata.requires('mmpetl') or ()
        lines = [line for line in stated if named in line]
    needs = [Requirement(line) for line in lines if line and line[0] != '#']
    return ' '.join(['pip install', *(f'"{n.name}{n.specifier}"' for n in needs)])
