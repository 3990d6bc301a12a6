"""What the commands that convert data share: arguments, errors, last words."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmpetl.cli.arguments import positive
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError
from mmpetl.datasets.convert.jobs import default_workers
from mmpetl.datasets.walk import check_utf8


def parser_for(module: str) -> CommandParser:
    """A parser with the arguments that every converter has.

    Args:
        module: As of :class:`mmpetl.cli.parsing.CommandParser`.
    """
    parser = CommandParser(module)
    parser.add_argument(
        '--data-root',
        dest='root',
        type=Path,
        default=Path(os.environ.get('MMPETL_DATA', 'data')),
        help='data root to write below (default: MMPETL_DATA, else data)',
    )
    parser.add_argument(
        '--workers',
        type=positive,
        default=default_workers(),
        help='threads (default: %(default)s)',
    )
    parser.after.append(_check_root)
    return parser


def _check_root(args: argparse.Namespace) -> None:
    with one_line_errors():
        check_utf8(args.root)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend becomes one line on stderr and exit code 1."""
    try:
        yield
    except (PETLError, OSError, MemoryError) as error:
        error = error if str(error) else 'there is not enough memory'
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print('error: interrupted; run it again to go on', file=sys.stderr)
        raise SystemExit(130) from None


def tell(folder: Path, found: Iterable[tuple[str, int, int | None]]) -> None:
    """Counts beside the official ones, so that a short copy shows."""
    print(folder)
    for name, count, official in found:
        note = ''
        if official is not None and official != count:
            note = f'  (the official set has {official:,})'
        print(f'  {name:24} {count:>9,}{note}')
