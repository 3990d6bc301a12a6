"""``mmpetl analyse schedule`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import schedule
from mmpetl.cli.parsing import script

main = script(schedule, 'tools/analysis_tools/schedule.py')

if __name__ == '__main__':
    main()
