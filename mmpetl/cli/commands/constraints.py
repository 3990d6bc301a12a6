"""Print the versions that mmpetl is tested with, as pip's -c takes them.

Example:
    mmpetl constraints > constraints.txt && pip install -c constraints.txt mmpetl
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.parsing import CommandParser
from mmpetl.shipped import shipped


def make_parser() -> CommandParser:
    return CommandParser(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    make_parser().parse_args(argv)
    path = shipped('requirements/constraints.txt')
    print(path.read_text(encoding='utf-8'), end='')
