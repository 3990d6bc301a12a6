"""Moved: ``speed/backbones.py``."""

import _moved

_moved.run('backbones.py')
