"""``mmpetl test`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands import test
from mmpetl.cli.parsing import script

main = script(test, 'tools/test.py')

if __name__ == '__main__':
    main()
