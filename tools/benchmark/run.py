"""``mmpetl benchmark run`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import run
from mmpetl.cli.parsing import script

main = script(run, 'tools/benchmark/run.py')

if __name__ == '__main__':
    main()
