"""``mmpetl publish`` as a script, with the same flags."""

from __future__ import annotations

from mmpetl.cli.commands import publish
from mmpetl.cli.parsing import script

main = script(publish, 'tools/model_converters/publish_delta.py')

if __name__ == '__main__':
    main()
