"""One method, or several that share a trunk, each about its part of it.

Wherever a method is named, a list of them may stand::

    method=[dict(type='LoRA', rank=8, blocks=':6'), dict(type='VPTDeep', num_tokens=5)]

An entry may hold ``layers`` and ``blocks``, which :func:`mmpetl.inject` takes for one
method, beside the arguments of its method. Each gets a slot of its own, in the order of
the list. Together they are ``LoRA + VPTDeep``, which names them at their defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmpetl.core.errors import PETLError
from mmpetl.core.method import Method, build_method, method_class

OneMethod = Method | type[Method] | str | Mapping[str, Any]
Methods = OneMethod | Sequence[OneMethod]
"""What names a method, or several."""

WHERE = ('layers', 'blocks')
"""What an entry may hold beside the arguments of its method."""

PLUS = ' + '


@dataclass(frozen=True)
class Entry:
    """One method of several, or the only one.

    Attributes:
        method: The method.
        where: ``layers`` and ``blocks``, those that are given.
    """

    method: Method
    where: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """What builds it again, as it stands in a config."""
        return {**self.method.config(), **self.where}


def is_several(methods: Any) -> bool:
    """Whether a list of methods is meant, by itself or by its name."""
    if isinstance(methods, str):
        return '+' in methods
    return isinstance(methods, Sequence)


def written_out(methods: Methods) -> list[OneMethod]:
    """The entries as they were given.

    Raises:
        PETLError: There is none.
    """
    if isinstance(methods, str):
        return [name.strip() for name in methods.split('+')]
    if not is_several(methods):
        return [methods]
    if not len(methods):
        raise PETLError(
            'the list of methods is empty; name one, as in '
            "[dict(type='LoRA'), dict(type='VPTDeep')]"
        )
    return list(methods)


def build_entries(methods: Methods) -> list[Entry]:
    """The methods, built, in the order in which they are injected.

    Raises:
        PETLError: There is none, or a name or an argument of one is unknown.
    """
    entries = written_out(methods)
    if not is_several(methods):
        return [Entry(build_method(entry)) for entry in entries]
    return [_entry(entry, number) for number, entry in enumerate(entries)]


def _entry(entry: OneMethod, number: int) -> Entry:
    if not isinstance(entry, Mapping):
        return Entry(build_method(entry))
    args = dict(entry)
    if 'type' not in args:
        raise PETLError(f'entry {number} of the list of methods has no type: {entry!r}')
    # Where a method has an argument of that name, it is the method's.
    own = inspect.signature(method_class(args['type']).__init__).parameters
    where = {k: args.pop(k) for k in WHERE if k in args and k not in own}
    return Entry(build_method(args), {k: v for k, v in where.items() if v is not None})


def methods_classes(methods: Methods) -> list[type[Method]]:
    """The class of each method.

    Raises:
        PETLError: A name is unknown.
    """
    return [
        type(entry)
        if isinstance(entry, Method)
        else method_class(entry.get('type') if isinstance(entry, Mapping) else entry)
        for entry in written_out(methods)
    ]


def methods_name(methods: Methods) -> str:
    """``'LoRA'``, or ``'LoRA + VPTDeep'`` of several; arguments are not in it."""
    return PLUS.join(cls.__name__ for cls in methods_classes(methods))


def methods_family(methods: Methods) -> str:
    """Family of a method; of several the one that they share, or ``'combined'``."""
    families = {cls.family for cls in methods_classes(methods)}
    return families.pop() if len(families) == 1 else 'combined'


def with_arguments(methods: Methods, args: Mapping[str, Any]) -> Any:
    """The config of one method or several with further arguments.

    Args:
        methods: Names or configs.
        args: Arguments of the one method by name; of several by the number of the
            entry and the name, ``'0.rank'``.

    Returns:
        A mapping, or a list of them.

    Raises:
        PETLError: A number is missing, or no entry has it.
    """
    entries = [
        dict(e) if isinstance(e, Mapping) else {'type': e} for e in written_out(methods)
    ]
    if not is_several(methods):
        return {**entries[0], **args}
    for key, value in args.items():
        number, dot, name = key.partition('.')
        if not (dot and number.isdecimal() and int(number) < len(entries)):
            raise PETLError(
                f'{key!r} names no argument of one of {methods_name(entries)}; write '
                f'the number of the method in front, as in 0.{name or key}'
            )
        entries[int(number)][name] = value
    return entries
