"""``mmpetl data convert voc`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import voc
from mmpetl.cli.parsing import script

main = script(voc, 'tools/dataset_converters/voc.py')

if __name__ == '__main__':
    main()
