"""Tables in files of MATLAB, read by a process of their own.

SciPy's reader follows what a file says of itself, and on some damaged files it ends the
process it runs in by a segmentation fault.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpetl.core import PETLError
from mmpetl.core.boundary import parse_json

_SCRIPT = Path(__file__).with_name('matlab_rows.py')
# Run by path, Python would find the files beside the script before its own library.
_START = (
    'import runpy, sys; sys.path.pop(0); del sys.argv[0]; '
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
SECONDS = 300
"""How long reading a file may take."""


def read_table(
    name: str, content: bytes, table: str, columns: Sequence[str]
) -> list[tuple[int | str, ...]]:
    """The values of the columns of each entry of a table.

    Args:
        name: What the file is called, for messages.
        content: Its bytes.
        table: Name of the variable in it.
        columns: Names of its fields; each holds a whole number or a text.

    Raises:
        PETLError: It is no file of MATLAB, or holds something else.
    """
    argv = [sys.executable, '-c', _START, str(_SCRIPT), table, *columns]
    failed = f'{name} does not hold {table} with {", ".join(columns)}'
    try:
        done = subprocess.run(argv, input=content, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise PETLError(f'{failed}: it is not read in {SECONDS} s') from None
    if done.returncode:
        lines = done.stderr.decode(errors='replace').strip().splitlines() or ['']
        raise PETLError(
            f'{failed}: its reader ended with code {done.returncode} {lines[-1][:200]}'
        )
    said = parse_json(done.stdout, str | list[list[int | str]], name)
    if isinstance(said, str):
        raise PETLError(f'{failed} ({said})')
    return [tuple(row) for row in said]
