"""``mmpetl data convert coco`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import coco
from mmpetl.cli.parsing import script

main = script(coco, 'tools/dataset_converters/coco.py')

if __name__ == '__main__':
    main()
