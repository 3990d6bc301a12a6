"""``python -m mmpetl`` is the command ``mmpetl``."""

from mmpetl.cli.main import main

if __name__ == '__main__':
    main()
