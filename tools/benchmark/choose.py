"""``mmpetl benchmark choose`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import choose
from mmpetl.cli.parsing import script

main = script(choose, 'tools/benchmark/choose.py')

if __name__ == '__main__':
    main()
