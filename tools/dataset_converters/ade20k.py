"""``mmpetl data convert ade20k`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import ade20k
from mmpetl.cli.parsing import script

main = script(ade20k, 'tools/dataset_converters/ade20k.py')

if __name__ == '__main__':
    main()
