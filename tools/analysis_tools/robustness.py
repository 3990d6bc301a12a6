"""``mmpetl analyse robustness`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.analyse import robustness
from mmpetl.cli.parsing import script

main = script(robustness, 'tools/analysis_tools/robustness.py')

if __name__ == '__main__':
    sys.exit(main())
