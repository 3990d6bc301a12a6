"""``mmpetl train-own`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands import train_own
from mmpetl.cli.parsing import script

main = script(train_own, 'tools/train_own.py')

if __name__ == '__main__':
    main()
