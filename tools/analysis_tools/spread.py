"""``mmpetl analyse spread`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.analyse import spread
from mmpetl.cli.parsing import script

main = script(spread, 'tools/analysis_tools/spread.py')

if __name__ == '__main__':
    sys.exit(main())
