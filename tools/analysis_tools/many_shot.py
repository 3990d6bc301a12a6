"""``mmpetl analyse many-shot`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.analyse import many_shot
from mmpetl.cli.parsing import script

main = script(many_shot, 'tools/analysis_tools/many_shot.py')

if __name__ == '__main__':
    sys.exit(main())
