"""``mmpetl analyse cka`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import cka
from mmpetl.cli.parsing import script

main = script(cka, 'tools/analysis_tools/cka.py')

if __name__ == '__main__':
    main()
