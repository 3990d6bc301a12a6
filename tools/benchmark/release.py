"""``mmpetl benchmark release`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import release
from mmpetl.cli.parsing import script

main = script(release, 'tools/benchmark/release.py')

if __name__ == '__main__':
    main()
