"""``mmpetl data convert fgvc`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import fgvc
from mmpetl.cli.parsing import script

main = script(fgvc, 'tools/dataset_converters/fgvc.py')

if __name__ == '__main__':
    main()
