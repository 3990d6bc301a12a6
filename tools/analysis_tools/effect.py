"""``mmpetl analyse effect`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import effect
from mmpetl.cli.parsing import script

main = script(effect, 'tools/analysis_tools/effect.py')

if __name__ == '__main__':
    main()
