"""``mmpetl weights`` as a script, with the same flags."""

from __future__ import annotations

import sys

from mmpetl.cli.commands import weights
from mmpetl.cli.parsing import script

main = script(weights, 'tools/misc/download_weights.py')

if __name__ == '__main__':
    sys.exit(main())
