"""List the recipes: a data set, a base and a schedule, the same for every method.

Examples:
    mmpetl recipes
    mmpetl recipes 'vtab/*'
    mmpetl recipes --method lora
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from mmpetl.cli.arguments import method_names, recipes
from mmpetl.cli.parsing import CommandParser, suggests


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    pattern = parser.add_argument('pattern', nargs='?', default='*', help="'vtab/*'")
    suggests(pattern, recipes)
    method = parser.add_argument(
        '--method', help='only those of which settings with this method are published'
    )
    suggests(method, method_names)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    from mmpetl.apis import cli_errors, published_pairs, recipe_names
    from mmpetl.config.names import method_class
    from mmpetl.core import PETLError, suggest

    with cli_errors():
        known = recipe_names()
        if args.method:
            stem = method_class(args.method).stem()
            known = [recipe for of, recipe in published_pairs() if of == stem]
        found = [name for name in known if fnmatch.fnmatchcase(name, args.pattern)]
        if not found:
            hint = suggest(args.pattern, known)
            raise PETLError(f'no recipe is called {args.pattern!r}.{hint}')
        print('\n'.join(found))
