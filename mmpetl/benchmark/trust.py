"""What a plan may say: data and registered names, nothing that imports or runs.

A plan is data, so that it may come from anybody. Configs are Python and trusted. What
an option of a plan puts into a config must not reach further than the plan: it names
types that a toolbox registers, and no module, no file that is run or unpickled when it
is read, and no place outside of the run's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmpetl.config.known import SCOPES
from mmpetl.config.registered import check_type
from mmpetl.core import PETLError

IMPORTING = (
    '_base_',
    '_scope_',
    'backend_args',
    'compile',
    'custom_imports',
    'default_scope',
    'file_client_args',
    'launcher',
    'strategy',
    'teacher_config',
    'trust_remote_code',
)
"""Keys that import, or hand what they hold to something that does."""

LEAVING = ('experiment_name', 'out_dir', 'out_file_path', 'outfile_prefix', 'save_dir')
LEAVING += ('work_dir', 'local_out_dir')
"""Keys that write to another folder than the run's."""

NAMING = ('type', 'of', 'constructor', 'runner_type')
"""Keys whose text a registry looks up."""

FUNCTIONS = ('collate_fn', 'init_fn', 'worker_init_fn')
"""Keys that stand for functions: only the ``type`` of a mapping is looked up safely."""

RUNS = re.compile(r'\.(py|pyc|pyo|so|pkl|pickle|joblib|dill)$', re.IGNORECASE)
"""Files that run, or may run, when they are read."""

TRUSTED = '; --trust allows it'


def check_trusted(options: Mapping[str, Any], scope: Any, where: str) -> None:
    """Raise PETLError where options reach further than a plan may.

    Args:
        options: Dotted keys of a config.
        scope: Called for the toolbox in which a name without one is looked for; only
            where the options name types.
        where: What says them, for the message.
    """
    for place, key, value, own in _entries(options):
        if key in IMPORTING and not (key == '_scope_' and value in SCOPES):
            raise PETLError(f'{where}: {place} can import code{TRUSTED}')
        if key in LEAVING:
            raise PETLError(f'{where}: {place} leaves the folder of the run{TRUSTED}')
        if key in FUNCTIONS and not isinstance(value, Mapping):
            raise PETLError(
                f'{where}: {place} needs a type that is registered, as {{type: '
                f'default_collate}}, got {value!r}{TRUSTED}'
            )
        if isinstance(value, str):
            if RUNS.search(value.strip()):
                raise PETLError(
                    f'{where}: {place} names {value!r}, a file that may run code when '
                    f'it is read{TRUSTED}'
                )
            if '{{' in value:
                raise PETLError(
                    f'{where}: {place} holds {{{{, which configs fill in{TRUSTED}'
                )
        named = key in NAMING or place.endswith(('backbone.method', 'model.petl'))
        if named and (key == 'type' or isinstance(value, str)):
            _check_name(value, own or scope(), f'{where}: {place}')


def _entries(
    node: Any, place: str = '', scope: Any = None
) -> Iterator[tuple[str, str, Any, Any]]:
    """Every key below a node, however it is written, what it holds, and its scope.

    Configs that inherit those of a toolbox write its name into every node, as
    ``_scope_``, which holds for what is below too.
    """
    if isinstance(node, Mapping):
        scope = node.get('_scope_', scope)
        for key, value in node.items():
            if not isinstance(key, str):
                raise PETLError(f'{place or "options"}: the key {key!r} is no text')
            here = f'{place}.{key}' if place else key
            *above, last = key.split('.')
            for part in above:
                yield here, part, {}, scope
            yield here, last, value, scope
            yield from _entries(value, here, scope)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield f'{place}.{number}', '', value, scope
            yield from _entries(value, f'{place}.{number}', scope)


def _check_name(name: Any, scope: Any, place: str) -> None:
    try:
        check_type(name, place, scope)
    except PETLError as error:
        raise PETLError(f'{error}{TRUSTED}') from None
