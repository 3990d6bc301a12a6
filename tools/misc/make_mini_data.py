"""``mmpetl data make`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.data import make
from mmpetl.cli.parsing import script

main = script(make, 'tools/misc/make_mini_data.py')

if __name__ == '__main__':
    sys.exit(main())
