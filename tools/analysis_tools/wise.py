"""``mmpetl analyse wise`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.analyse import wise
from mmpetl.cli.parsing import script

main = script(wise, 'tools/analysis_tools/wise.py')

if __name__ == '__main__':
    sys.exit(main())
