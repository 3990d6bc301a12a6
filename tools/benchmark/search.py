"""``mmpetl benchmark search`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import search
from mmpetl.cli.parsing import script

main = script(search, 'tools/benchmark/search.py')

if __name__ == '__main__':
    main()
