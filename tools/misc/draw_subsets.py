"""``mmpetl data draw`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.data import draw
from mmpetl.cli.parsing import script

main = script(draw, 'tools/misc/draw_subsets.py')

if __name__ == '__main__':
    sys.exit(main())
