"""Where the files are that travel with the package.

``configs``, ``demo/weights``, ``demo/zoo``, ``docs/methods`` and ``requirements`` lie
beside the package in a checkout. A wheel holds them in ``mmpetl/.mim``, as those of
OpenMMLab do.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSIDE = PACKAGE / '.mim'


def shipped(name: str = '.') -> Path:
    """A file or folder by its path in a checkout; it need not be there."""
    # Not what lies beside an installed package, which may be anybody's.
    return (INSIDE if INSIDE.is_dir() else PACKAGE.parent) / name


def mini_data() -> Path:
    """Where mini data are made unasked: of a checkout, or of the working folder."""
    return Path('data/mini') if INSIDE.is_dir() else PACKAGE.parent / 'data' / 'mini'


def zoo_folder() -> Path:
    """Where the index of the zoo lies: ``MMPETL_ZOO``, else what travels along."""
    return Path(os.environ.get('MMPETL_ZOO') or shipped('demo/zoo')).expanduser()
