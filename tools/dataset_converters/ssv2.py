"""``mmpetl data convert ssv2`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import ssv2
from mmpetl.cli.parsing import script

main = script(ssv2, 'tools/dataset_converters/ssv2.py')

if __name__ == '__main__':
    main()
