"""``mmpetl data convert many-shot`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import many_shot
from mmpetl.cli.parsing import script

main = script(many_shot, 'tools/dataset_converters/many_shot.py')

if __name__ == '__main__':
    main()
