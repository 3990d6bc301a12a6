"""Rows of a table of MATLAB's, as JSON: what :mod:`matlab` runs on its own.

Run by path, with a file of MATLAB on stdin and the columns as arguments. It imports
nothing of mmpetl, so that it begins in a moment.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY = 2 << 30
"""Bytes that reading may take: the files have a few MiB."""


def rows_of(content: bytes, table: str, columns: list[str]) -> list[list[int | str]]:
    """The values of the columns of each entry of a table."""
    from scipy.io import loadmat

    with contextlib.suppress(OSError, ValueError):  # where there is no such file
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        most = pages * os.sysconf('SC_PAGE_SIZE') + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    entries = loadmat(io.BytesIO(content))[table].ravel()
    return [[_value(entry[name]) for name in columns] for entry in entries]


def _value(cell: Any) -> int | str:
    value = cell.item()
    if not isinstance(value, str) and value != int(value):
        raise ValueError(f'{value} is no whole number')
    return value if isinstance(value, str) else int(value)


def main() -> None:
    """Print the rows, or what was wrong as a text."""
    table, *columns = sys.argv[1:]
    try:
        said: Any = rows_of(sys.stdin.buffer.read(), table, columns)
    except NotImplementedError:
        said = 'it is of version 7.3, which is not read; save it again with -v7'
    except Exception as error:  # SciPy answers a damaged file with any
        lines = str(error).splitlines() or ['']
        said = f'{type(error).__name__}: {lines[0][:200]}'
    print(json.dumps(said))


if __name__ == '__main__':
    main()
