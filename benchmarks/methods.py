"""Moved: ``speed/methods.py``."""

import _moved

_moved.run('methods.py')
