"""``mmpetl benchmark table`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import table
from mmpetl.cli.parsing import script

main = script(table, 'tools/benchmark/table.py')

if __name__ == '__main__':
    main()
