"""``mmpetl data convert kinetics400`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import kinetics400
from mmpetl.cli.parsing import script

main = script(kinetics400, 'tools/dataset_converters/kinetics400.py')

if __name__ == '__main__':
    main()
