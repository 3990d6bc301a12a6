"""``mmpetl fold`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands import fold
from mmpetl.cli.parsing import script

main = script(fold, 'tools/model_converters/fold_delta.py')

if __name__ == '__main__':
    main()
