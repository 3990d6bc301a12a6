"""Groups of commands as folders of modules, which are imported when they are called."""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem

from mmpetl.cli.parsing import COMMANDS, command_of

HERE = Path(__file__).parent / 'commands'


class Refused(click.UsageError):
    """What was typed names no command: one line, exit code 2."""

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f'error: {self.format_message()}', file=file, err=file is None)


class ModuleCommand(click.Command):
    """A module with ``make_parser()`` and ``main(argv)`` as a command.

    Args:
        module: Its full name.
        path: Its file, of which the first line of the docstring is the short help.
    """

    def __init__(self, module: str, path: Path) -> None:
        super().__init__(
            command_of(module).split()[-1],
            short_help=_docstring(path).partition('\n')[0].rstrip('.'),
            add_help_option=False,
        )
        self.module = module

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave every argument to the parser of the module."""
        ctx.args = args
        return []

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; what ``main`` returns is the exit code."""
        try:
            code = importlib.import_module(self.module).main(ctx.args)
        except ModuleNotFoundError as error:
            if os.environ.get('MMPETL_TRACEBACK', '0') not in ('', '0'):
                raise
            click.echo(
                f'error: the package {error.name!r} is not installed, and '
                f'{ctx.command_path} needs it; mmpetl doctor says what is missing and '
                'how to mend it (MMPETL_TRACEBACK=1 shows where)',
                err=True,
            )
            code = 1
        ctx.exit(code or 0)

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[CompletionItem]:
        """Flags, the values that one takes, and names; files where anything may be."""
        actions = importlib.import_module(self.module).make_parser()._actions
        flags = {flag: a for a in actions for flag in a.option_strings}
        if incomplete.startswith('-'):
            return [
                CompletionItem(flag, help=action.help)
                for flag, action in flags.items()
                if flag.startswith(incomplete)
            ]
        last = next((word for word in reversed(ctx.args) if word in flags), None)
        action = flags.get(last) if last and flags[last].nargs != 0 else None
        wanted = [action] if action else [a for a in actions if not a.option_strings]
        found = []
        for action in wanted:
            names = getattr(action, 'suggested', lambda: ())
            found += [*(action.choices or names())]
        items = [CompletionItem(x) for x in found if x.startswith(incomplete)]
        return items or [CompletionItem(incomplete, type='file')]


class FolderGroup(click.Group):
    """A folder: every module in it is a command, every folder a group.

    Args:
        package: Its full name.
        path: The folder.
        first: Names that are listed in front of the others.
    """

    def __init__(
        self, package: str, path: Path, first: Sequence[str] = (), **options: Any
    ) -> None:
        text = _docstring(path / '__init__.py')
        super().__init__(
            command_of(package).split()[-1],
            help=f'\b\n{text}'.replace('\n\n', '\n\n\b\n'),
            short_help=text.partition('\n')[0].rstrip('.'),
            **options,
        )
        self.package, self.path, self.first = package, path, tuple(first)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names as they are typed."""
        found = {
            path.stem.replace('_', '-')
            for path in self.path.iterdir()
            if (path.suffix == '.py' or (path / '__init__.py').is_file())
            and not path.name.startswith('_')
        }
        return [*self.first, *sorted(found - {*self.first})]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, None where there is none."""
        if cmd_name not in self.list_commands(ctx):
            return None
        stem = cmd_name.replace('-', '_')
        module, path = f'{self.package}.{stem}', self.path / stem
        if path.is_dir():
            return FolderGroup(module, path)
        return ModuleCommand(module, path.with_suffix('.py'))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what stands in front of the command."""
        try:
            return super().parse_args(ctx, args)
        except NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            said = f'{error.format_message()} ({ctx.command_path} --help)'
            raise Refused(said, ctx) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for."""
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:
            near = get_close_matches(args[0], known, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ''
            raise Refused(
                f'{ctx.command_path} has no command {args[0]!r}.{hint} There are: '
                f'{", ".join(known)}',
                ctx,
            )
        return super().resolve_command(ctx, args)


def _docstring(path: Path) -> str:
    """The docstring of a module that is not imported."""
    return ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''


def root(**options: Any) -> FolderGroup:
    """The group of all commands."""
    first = ('train', 'test', 'predict', 'zoo', 'publish', 'fold')
    return FolderGroup(COMMANDS, HERE, first, **options)
