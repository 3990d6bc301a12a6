"""``mmpetl analyse browse`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import browse
from mmpetl.cli.parsing import script

main = script(browse, 'tools/analysis_tools/browse_dataset.py')

if __name__ == '__main__':
    main()
