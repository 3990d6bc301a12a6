"""``mmpetl data convert hmdb51`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.data.convert import hmdb51
from mmpetl.cli.parsing import script

main = script(hmdb51, 'tools/dataset_converters/hmdb51.py')

if __name__ == '__main__':
    main()
