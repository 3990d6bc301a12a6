"""``mmpetl analyse ensemble`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.analyse import ensemble
from mmpetl.cli.parsing import script

main = script(ensemble, 'tools/analysis_tools/ensemble.py')

if __name__ == '__main__':
    sys.exit(main())
