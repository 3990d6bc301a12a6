"""Where a published delta of the hub lies: there, or in a folder that stands for it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mmpetl.core import PETLError

STEM = 'delta'
FOLDER = 'MMPETL_HUB'
"""Environment variable: a folder that stands for the hub."""

REPO = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')


def published_file(
    repo_id: str,
    hub: str | os.PathLike | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The ``.safetensors`` of a repository, beside its JSON, fetched if need be.

    Args:
        repo_id: ``user/name``.
        hub: A folder that stands for the hub; by default that of ``MMPETL_HUB``, else
            the hub itself.
        revision: Branch, tag or commit; of the hub itself only.
        token: Likewise.

    Raises:
        FileNotFoundError: There is no such repository in the folder.
        PETLError: The hub has no such repository, or the name is none of one.
    """
    check_repo(repo_id)
    place = hub_folder(hub)
    if place is None:
        return _download(repo_id, revision, token) / f'{STEM}.safetensors'
    if revision is not None:
        raise PETLError(f'{place} is a folder, which has no revision {revision!r}')
    if not (place / repo_id).is_dir():
        raise FileNotFoundError(f'there is no {repo_id} in {place}')
    return place / repo_id / f'{STEM}.safetensors'


def check_repo(repo_id: Any) -> None:
    """Raise PETLError unless it is the name of a repository."""
    if not isinstance(repo_id, str) or not REPO.fullmatch(repo_id):
        raise PETLError(f'a repository is called user/name, got {repo_id!r}')


def hub_folder(hub: str | os.PathLike | None = None) -> Path | None:
    """The folder that stands for the hub; None where the hub itself is meant."""
    hub = os.environ.get(FOLDER) if hub is None else hub
    if not hub:
        return None
    if not Path(hub).is_dir():
        raise FileNotFoundError(f'there is no folder {hub} to stand for the hub')
    return Path(hub)


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                allow_patterns=[f'{STEM}.json', f'{STEM}.safetensors'],
            )
        )
    except Exception as error:  # of several libraries, by what went wrong
        raise PETLError(f'the hub does not give {repo_id}: {one_line(error)}') from None


def one_line(error: Exception) -> str:
    """What an error of the hub's libraries says, in a line."""
    return ' '.join(str(error).split())[:200] or type(error).__name__
