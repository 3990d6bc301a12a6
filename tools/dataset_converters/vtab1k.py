"""``mmpetl data convert vtab1k`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import vtab1k
from mmpetl.cli.parsing import script

main = script(vtab1k, 'tools/dataset_converters/vtab1k.py')

if __name__ == '__main__':
    main()
