"""``mmpetl data verify`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands.data import verify
from mmpetl.cli.parsing import script

main = script(verify, 'tools/misc/verify_dataset.py')

if __name__ == '__main__':
    sys.exit(main())
