"""``mmpetl benchmark report`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import report
from mmpetl.cli.parsing import script

main = script(report, 'tools/benchmark/report.py')

if __name__ == '__main__':
    main()
