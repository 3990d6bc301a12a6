"""The checkpoint that a run goes on from: the newest one that is whole."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpetl.compat.archives import check_expansion, fault_of_members
from mmpetl.core import PETLError

POINTER = 'last_checkpoint'
STOPPED = 'stopped_at_iter_{}.pth'
"""What a signal lets a run write between its checkpoints."""
_TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth', STOPPED)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint as a file; None for one that is whole.

    Checkpoints are zip archives with the sum of every member, so that one that was cut
    or overwritten in part is told without loading it.
    """
    try:
        if not path.is_file():
            return 'it is no file' if path.exists() else 'it is not there'
        if not path.stat().st_size:
            return 'it is empty'
        with path.open('rb') as file:
            if file.read(2) != b'PK':
                return 'it is no checkpoint'
        try:
            check_expansion(path)  # every member is unpacked
        except ValueError as error:
            return str(error).replace(f'{path} ', 'it ', 1)
        error = fault_of_members(path)
    except OSError as fault:
        error = fault
    if isinstance(error, OSError) and error.strerror:
        return f'it cannot be read ({error.strerror})'
    return 'it is cut or damaged' if error else None


def newest_checkpoint(
    folder: str | os.PathLike, hook: Mapping[str, Any] | None = None
) -> tuple[Path | None, str | None]:
    """The newest whole checkpoint of a work folder.

    ``last_checkpoint`` says a name, which is looked for in the folder: one that was
    copied or moved goes on from its own files. Where the pointer is missing or broken,
    or what it names is damaged, the newest checkpoint that is whole takes its place.

    Args:
        folder: The work folder.
        hook: Arguments of the checkpoint hook: ``out_dir``, ``filename_tmpl``.

    Returns:
        The checkpoint, None where there is none at all; and a line that says what was
        wrong, None where nothing was.

    Raises:
        PETLError: There are checkpoints, and none of them is whole.
    """
    folder, hook = Path(folder), hook or {}
    where = folder
    if hook.get('out_dir') and Path(hook['out_dir']) != folder:
        where = Path(hook['out_dir']) / Path(os.path.abspath(folder)).name
    name, wrong = _pointer(folder / POINTER)
    if name is not None:
        path = next((p / name for p in (folder, where) if (p / name).is_file()), None)
        if path is None:
            wrong = f'{POINTER} names {name}, which is not there'
        else:
            why = damage(path)
            if why is None:
                return path, None
            wrong = f'{name}, which {POINTER} names, is left: {why}'
    found = _by_age(where, hook.get('filename_tmpl'))
    if not found:
        if name is None and not (folder / POINTER).exists():
            return None, None
        raise PETLError(
            f'{folder} cannot be resumed: {wrong}, and there is no other checkpoint; '
            'put one back, or begin again without --resume in another work_dir'
        )
    left = []
    for path in found:
        why = damage(path)
        if why is None:
            return path, f'{wrong}; going on from {path.name}, the newest whole one'
        left.append(f'{path.name}: {why}')
    raise PETLError(
        f'{folder} cannot be resumed: no checkpoint in it is whole '
        f'({"; ".join(left[:3])}); begin again without --resume in another work_dir'
    )


def file_to_resume(config: Mapping[str, Any]) -> Path | None:
    """The file that a run goes on from by its config.

    Args:
        config: It says ``resume``, ``load_from``, ``work_dir`` and the checkpoint hook.

    Returns:
        None where it begins anew, or where the file is none of this machine's.

    Raises:
        PETLError: There are checkpoints, and none of them is whole.
    """
    if not config.get('resume'):
        return None
    if config.get('load_from'):
        path = Path(config['load_from'])
        return path if path.is_file() else None
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    if is_remote(hook.get('out_dir')):
        return None
    return newest_checkpoint(config['work_dir'], hook)[0]


def is_remote(folder: str | os.PathLike | None) -> bool:
    """Whether a folder is named by a scheme, as ``s3://...``."""
    return '://' in str(folder or '')


def left_to_resume(
    folder: str | os.PathLike, hook: Mapping[str, Any] | None = None
) -> str:
    """What a run that ends here goes on from, in words for its last line.

    Args:
        folder: The work folder.
        hook: As of :func:`newest_checkpoint`.
    """
    try:
        newest, _ = newest_checkpoint(folder, hook)
    except PETLError:
        newest = None
    if newest is None:
        return 'there is no whole checkpoint'
    return f'the newest whole checkpoint is {newest.name}, and --resume goes on from it'


def _pointer(path: Path) -> tuple[str | None, str]:
    """The name in a pointer, or None and what is wrong."""
    if not path.exists():
        return None, f'{POINTER} is missing'
    if not path.is_file():
        return None, f'{POINTER} is no file'
    try:
        with path.open('rb') as file:
            text = file.read(8192).decode('utf-8').strip()
    except (OSError, UnicodeDecodeError):
        return None, f'{POINTER} cannot be read'
    name = text.replace('\\', '/').rpartition('/')[2]
    if not text:
        return None, f'{POINTER} is empty'
    if '\n' in text or '\0' in text or name in ('', '.', '..') or len(name) > 255:
        return None, f'{POINTER} names no file'
    return name, ''


def _by_age(folder: Path, template: str | None) -> list[Path]:
    """Checkpoints of a run, newest first: by what they say, where they can be read."""
    templates = dict.fromkeys([*([template] if template else []), *_TEMPLATES])
    patterns = []
    for text in templates:
        head, _, tail = text.partition('{}')
        patterns.append(re.compile(f'{re.escape(head)}(\\d{{1,12}}){re.escape(tail)}'))
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = next((m for p in patterns if (m := p.fullmatch(path.name))), None)
        if match:
            # Names of epochs and of iterations do not compare.
            found.append((progress(path)[1] or 0, int(match[1]), path))
    return [path for *_, path in sorted(found, reverse=True)]


def progress(path: Path) -> tuple[int | None, int | None]:
    """Epochs and iterations that a checkpoint says it has, without reading tensors.

    Returns:
        None for what it does not say, or not as a number.
    """
    epoch, iteration = _numbers(path, 'epoch', 'iter')
    return epoch, iteration


def seed_of(path: Path) -> int | None:
    """The seed of a checkpoint's run, given or drawn; None where it says none."""
    return _numbers(path, 'seed')[0]


def _numbers(path: Path, *names: str) -> list[int | None]:
    """Numbers that ``meta`` of a checkpoint holds, without reading tensors."""
    import torch

    if damage(path) is not None:
        return [None] * len(names)
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        found = [content['meta'].get(name) for name in names]
    except Exception:  # whatever it holds, reading it properly comes later
        return [None] * len(names)
    return [number if type(number) is int else None for number in found]
