"""Moved: ``speed/footprint.py``."""

import _moved

_moved.run('footprint.py')
