"""Tell what is installed, missing or clashing, and how to mend it.

Example:
    mmpetl doctor

The exit code is 1 if something required is missing, has the wrong version or clashes.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl import doctor
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    return CommandParser(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    make_parser().parse_args(argv)
    return doctor.main()
