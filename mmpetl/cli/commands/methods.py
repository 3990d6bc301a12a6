"""List the methods, or tell one: its source, arguments, published settings.

Examples:
    mmpetl methods
    mmpetl methods lora
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from mmpetl.cli.arguments import method_names
from mmpetl.cli.parsing import CommandParser, suggests


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    name = parser.add_argument('name', nargs='?', help='a name or a stem; all if none')
    suggests(name, method_names)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors
    from mmpetl.config.names import method_class
    from mmpetl.core import FAMILIES, registered_methods

    with cli_errors():
        if args.name:
            print('\n'.join(page(method_class(args.name))))
            return
        known = registered_methods()
        order = sorted(known, key=lambda n: (list(FAMILIES).index(known[n].family), n))
        width, stems = max(map(len, known)), max(len(c.stem()) for c in known.values())
        for name in order:
            cls = known[name]
            print(f'{name:{width}}  {cls.stem():{stems}}  {cls.family}')


def page(cls: Any) -> list[str]:
    """What is known of a method: docstrings, defaults, published pairs."""
    from mmpetl.config.compose import published_pairs

    about = inspect.getdoc(sys.modules[cls.__module__]) or ''
    own = inspect.getdoc(cls) or ''
    _, *arguments = inspect.signature(cls.__init__).parameters.values()
    defaults = [p.replace(annotation=inspect.Parameter.empty) for p in arguments]
    pairs = [recipe for stem, recipe in published_pairs() if stem == cls.stem()]
    return [
        f'{cls.__name__} ({cls.stem()}), {cls.family}',
        '',
        about,
        '',
        own,
        '',
        f'Defaults: {", ".join(map(str, defaults)) or "none"}',
        f'Published settings: {", ".join(pairs) or "none"}',
    ]
