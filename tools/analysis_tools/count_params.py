"""``mmpetl analyse count`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.analyse import count
from mmpetl.cli.parsing import script

main = script(count, 'tools/analysis_tools/count_params.py')

if __name__ == '__main__':
    main()
