"""``mmpetl train`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands import train
from mmpetl.cli.parsing import script

main = script(train, 'tools/train.py')

if __name__ == '__main__':
    main()
