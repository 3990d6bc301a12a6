"""``mmpetl analyse confusion`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import confusion
from mmpetl.cli.parsing import script

main = script(confusion, 'tools/analysis_tools/confusion_matrix.py')

if __name__ == '__main__':
    main()
