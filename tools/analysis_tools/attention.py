"""``mmpetl analyse attention`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import attention
from mmpetl.cli.parsing import script

main = script(attention, 'tools/analysis_tools/attention.py')

if __name__ == '__main__':
    main()
