"""``mmpetl analyse tsne`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import tsne
from mmpetl.cli.parsing import script

main = script(tsne, 'tools/analysis_tools/tsne.py')

if __name__ == '__main__':
    main()
