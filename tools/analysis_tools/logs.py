"""``mmpetl analyse logs`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import logs
from mmpetl.cli.parsing import script

main = script(logs, 'tools/analysis_tools/logs.py')

if __name__ == '__main__':
    main()
