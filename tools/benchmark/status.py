"""``mmpetl benchmark status`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import status
from mmpetl.cli.parsing import script

main = script(status, 'tools/benchmark/status.py')

if __name__ == '__main__':
    main()
