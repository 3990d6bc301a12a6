"""Runs a script of ``speed`` for who calls it by its old path."""

import runpy
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1] / 'speed'


def run(name: str) -> None:
    """Say where a script is now, and run it with the arguments given."""
    old = f'benchmarks/{Path(sys.argv[0]).name}'
    print(f'{old} has moved to speed/{name}', file=sys.stderr)
    sys.argv[0] = str(HOME / name)
    sys.path[0] = str(HOME)
    runpy.run_path(sys.argv[0], run_name='__main__')
