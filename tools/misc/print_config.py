"""``mmpetl config`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands import config
from mmpetl.cli.parsing import script

main = script(config, 'tools/misc/print_config.py')

if __name__ == '__main__':
    main()
