"""Files for configs of ours that others inherit: ``mmpetl::lora/vtab/svhn.py``."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mmpetl.config.leaves import row_config
from mmpetl.config.names import config_root
from mmpetl.core import PETLError, suggest


def own_file(name: str) -> Path:
    """A file with a config below ``configs``; a row of a table is written to one.

    Args:
        name: ``mini/digits.py``, ``lora/vtab/svhn.py``; the suffix may be left out.

    Raises:
        PETLError: There is neither a file nor a row of that name.
    """
    root = config_root()
    path = root / (name if name.endswith('.py') else f'{name}.py')
    if path.is_file():
        return path
    table = path.parent.with_suffix('.py')
    if not table.is_file():
        there = [p.relative_to(root).as_posix() for p in root.rglob('*.py')]
        raise PETLError(f'mmpetl ships no config {name}.{suggest(name, there)}')
    written = Path(_folder().name) / path.relative_to(root)
    if not written.is_file():
        config = row_config(table, path.stem)
        written.parent.mkdir(parents=True, exist_ok=True)
        config.dump(written)
    return written


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Rows that were written, for as long as this process lives."""
    return tempfile.TemporaryDirectory(prefix='mmpetl_configs_')
