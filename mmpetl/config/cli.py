"""``key=value`` on a command line."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from typing import Any


class DictAction(argparse.Action):
    """``--cfg-options`` as MMEngine reads it, and what Python writes beside.

    ``a=[1,(b,c)]`` and ``a=1,2`` mean what they do upstream. Beside these,
    ``a={'type': 'SGD', 'lr': 0.1}`` and lists of such mappings are read as in a config;
    what cannot be read is said in one line.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in values or ():
            key, equals, text = pair.partition('=')
            if not equals or not key:
                parser.error(f'{option_string} takes KEY=VALUE, got {pair!r}')
            options[key] = self._read(text, parser, f'{option_string} {key}')
        setattr(namespace, self.dest, options)

    def _read(self, text: str, parser: argparse.ArgumentParser, place: str) -> Any:
        if '{' in text and text.lstrip()[:1] in ('{', '[', '('):
            try:
                value = ast.literal_eval(text.strip())
                if isinstance(value, dict | list | tuple):
                    return value
            except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
                pass
        try:
            if '{' not in text or ',' not in text:
                # Here, so that showing the help of a command needs no MMEngine.
                from mmengine.config import DictAction as Upstream

                return Upstream._parse_iterable(text)
        except (AssertionError, RecursionError):
            pass
        parser.error(
            f'{place} cannot be read: {text[:100]!r}; write lists as [a,b] and '
            "mappings as {'key': 'value'}, and quote them for the shell"
        )
