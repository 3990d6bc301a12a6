"""Print the jobs of a plan and what they will cost, and run nothing.

Example:
    mmpetl benchmark plan mini --methods LoRA SSF

A few steps are taken to learn what jobs cost, where nothing is known of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.commands.benchmark import run
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    run.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    args.dry_run = True
    run.carry_out(args)
