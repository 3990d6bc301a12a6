"""``mmpetl benchmark verify`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import verify
from mmpetl.cli.parsing import script

main = script(verify, 'tools/benchmark/verify.py')

if __name__ == '__main__':
    main()
