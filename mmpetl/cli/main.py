"""``mmpetl``, also ``python -m mmpetl``."""

from __future__ import annotations

import click

from mmpetl.cli.groups import root
from mmpetl.version import __version__

mmpetl = click.version_option(__version__, message='%(prog)s %(version)s')(
    root(context_settings={'help_option_names': ['-h', '--help']})
)


def main() -> None:
    """Run the command line of this process."""
    mmpetl(prog_name='mmpetl')
