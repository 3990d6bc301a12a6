"""Moved: ``speed/report_page.py``."""

import _moved

_moved.run('report_page.py')
