"""How a benchmark folder stands: done, running, failed, left.

Example: mmpetl benchmark status work_dirs/bench/mini
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl.cli.arguments import add_folder
from mmpetl.cli.parsing import CommandParser


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_folder(parser)
    parser.add_argument('--retries', type=int, default=1, help='as run.py was told')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis.run import cli_errors

    with cli_errors():
        from mmpetl.benchmark.plan import read_jobs
        from mmpetl.benchmark.progress import print_standing, standing

        jobs, _ = read_jobs(args.out)
        print_standing(standing(jobs, args.out, args.retries))
