"""``mmpetl analyse agreement`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.analyse import agreement
from mmpetl.cli.parsing import script

main = script(agreement, 'tools/analysis_tools/agreement.py')

if __name__ == '__main__':
    sys.exit(main())
