"""``mmpetl estimate`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands import estimate
from mmpetl.cli.parsing import script

main = script(estimate, 'tools/estimate.py')

if __name__ == '__main__':
    main()
