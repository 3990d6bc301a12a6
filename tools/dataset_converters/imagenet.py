"""``mmpetl data convert imagenet`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import imagenet
from mmpetl.cli.parsing import script

main = script(imagenet, 'tools/dataset_converters/imagenet.py')

if __name__ == '__main__':
    main()
