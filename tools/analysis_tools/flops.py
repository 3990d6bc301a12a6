"""``mmpetl analyse flops`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import flops
from mmpetl.cli.parsing import script

main = script(flops, 'tools/analysis_tools/flops.py')

if __name__ == '__main__':
    main()
