"""``mmpetl benchmark scorecard`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands.benchmark import scorecard
from mmpetl.cli.parsing import script

main = script(scorecard, 'tools/benchmark/scorecard.py')

if __name__ == '__main__':
    main()
