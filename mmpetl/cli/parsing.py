"""The flags of a command, stated once for ``mmpetl`` and for the script in ``tools``.

A module of :mod:`mmpetl.cli.commands` has a docstring with an example,
``make_parser()`` and ``main(argv)``, which returns the exit code, None for 0. The
parser is argparse's, for flags with several values behind them (``--cfg-options a=1
b=2``) are what users of OpenMMLab know, and click has none.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

COMMANDS = 'mmpetl.cli.commands'

_script: ContextVar[str | None] = ContextVar('script', default=None)
"""The script that runs a command, below the root of a checkout; None for ``mmpetl``."""


def command_of(module: str) -> str:
    """``mmpetl benchmark run`` of ``mmpetl.cli.commands.benchmark.run``."""
    return module.replace(COMMANDS, 'mmpetl').replace('.', ' ').replace('_', '-')


class CommandParser(argparse.ArgumentParser):
    """A parser whose help is the docstring of its module, and whose errors are a line.

    Args:
        module: ``__name__`` of the module. Examples in its docstring call the command;
            where a script runs it, they call the script.
    """

    def __init__(self, module: str) -> None:
        command, script = command_of(module), _script.get()
        text = sys.modules[module].__doc__ or ''
        if script is not None:
            text = text.replace(command, f'python {script}')
        super().__init__(
            prog=command if script is None else Path(script).name,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.after: list[Callable[[argparse.Namespace], None]] = []
        """What looks at the arguments once they are read, and may refuse them."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Flags may stand between positional arguments, of which some are optional."""
        found = self.parse_intermixed_args(args, namespace)
        for look in self.after:
            look(found)
        return found

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        said = f'{message}{self._hint(message)}'
        self.exit(2, f'error: {said} ({self.prog} --help shows what there is)\n')

    def _hint(self, message: str) -> str:
        """At the flag that was meant, where one was not understood."""
        flag = re.match(r'unrecognized arguments: (--[\w-]+)', message)
        if flag is None:
            return ''
        near = get_close_matches(flag[1], self._option_string_actions, 1, 0.75)
        if near:
            return f'; did you mean {near[0]}?'
        options = '--method-options'
        if options in self._option_string_actions:
            return f'; arguments of the method go behind {options}, as in rank=4'
        return ''


def suggests(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Let a shell complete an argument by names; any other value stays allowed."""
    action.suggested = names


@contextmanager
def as_script(path: str) -> Iterator[None]:
    """Parsers made meanwhile speak of a script: ``tools/benchmark/run.py``."""
    token = _script.set(path)
    try:
        yield
    finally:
        _script.reset(token)


def script(module: ModuleType, path: str) -> Callable[[], Any]:
    """The ``main`` of a script that runs a command.

    Args:
        module: The command's module.
        path: Of the script, from the root of a checkout.
    """

    def main() -> Any:
        with as_script(path):
            return module.main()

    return main
