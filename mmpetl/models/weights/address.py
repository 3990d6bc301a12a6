"""Names of weight files as OpenMMLab users write them, and the file behind each.

``https://`` and ``http://`` addresses are fetched once, checked and kept, with the
shards that an index names; the short names of MMEngine's zoo (``open-mmlab://``,
``torchvision://``, ``mmcls://``) stand for such addresses; ``file://`` and ``~`` mean
the local file, and a folder of the hub means the weights in it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mmengine.dist import barrier, get_rank, is_main_process
from mmengine.logging import print_log

from mmpetl.core.errors import suggest
from mmpetl.models.weights.containers import shards_of
from mmpetl.models.weights.download import fetch
from mmpetl.models.weights.errors import WeightsError, WeightsNotFoundError
from mmpetl.models.weights.folders import file_in
from mmpetl.models.weights.registry import KNOWN_FILES, KnownFile

SCHEME = re.compile(r'^([A-Za-z][\w+.-]+)://')
ZOO = ('open-mmlab', 'openmmlab', 'torchvision', 'modelzoo', 'mmcls')
HASHED = re.compile(r'-([0-9a-f]{8})\.\w+$')
"""OpenMMLab and torch end a file's name in the first digits of its sha256."""


def weights_folder() -> Path:
    """Where fetched files live: ``MMPETL_WEIGHTS``, else ``checkpoints``."""
    return Path(os.environ.get('MMPETL_WEIGHTS') or 'checkpoints').expanduser()


def resolve(name: str | os.PathLike) -> Path:
    """The local file that a name stands for, fetched if need be.

    Of several processes the first fetches and the others wait for it; on nodes that
    share no disk the first of each does.

    Args:
        name: A path, or an address as above.

    Raises:
        WeightsNotFoundError: The address or the zoo has no such file.
        WeightsError: It cannot be fetched, is not what was asked for, or the kind of
            address is not served.
    """
    text = os.fspath(name)
    match = SCHEME.match(text)
    if match is None:
        return file_in(Path(text).expanduser())
    scheme = match[1].lower()
    if scheme == 'file':
        return file_in(Path(unquote(urlsplit(text).path)).expanduser())
    if scheme in ZOO:
        text = _zoo_address(text, scheme)
    elif scheme not in ('http', 'https'):
        raise WeightsError(
            f'{text}: {scheme}:// is not read here (there are a path, file://, '
            f'https://, http://, {"://, ".join(ZOO)}://); fetch the file and name its '
            'path'
        )
    # Nodes may share a disk or not: what the first has fetched, others find or fetch.
    mine = 0 if is_main_process() else 1 if _is_first_of_node() else 2
    for turn in range(3):
        if turn == mine:
            path = _fetched(text)
        barrier()
    return path


def _is_first_of_node() -> bool:
    """Whether this process is the first of its machine, as its launcher says."""
    return int(os.environ.get('LOCAL_RANK') or get_rank()) == 0


def base_name(name: str | os.PathLike) -> str:
    """The last part of a path or an address, without the query."""
    text = os.fspath(name)
    if SCHEME.match(text):
        text = unquote(urlsplit(text).path)
    return PurePosixPath(text).name


def _fetched(url: str) -> Path:
    known = _known_at(url)
    folder = _place_of(known, url)
    try:
        path, fetched = fetch(known, folder)
    except WeightsError as error:
        raise type(error)(f'{error} (its place is {folder / known.name})') from None
    if fetched:
        print_log(f'{url} is now {path}', logger='current')
    if path.name.endswith('.index.json'):
        parts = urlsplit(url)
        folder = PurePosixPath(parts.path).parent
        for name in shards_of(path):
            _fetched(parts._replace(path=str(folder / name)).geturl())
    return path


def _known_at(url: str) -> KnownFile:
    for entry in KNOWN_FILES:
        if entry.url == url:
            return entry
    name = base_name(url)
    if not name:
        raise WeightsError(f'{url} is the address of no file')
    match = HASHED.search(name)
    return KnownFile(name, f'the file at {url}', url, sha256_start=match and match[1])


def _place_of(known: KnownFile, url: str) -> Path:
    """Many a file is called ``checkpoint.pth``: host and path keep them apart."""
    if known.is_listed or known.sha256_start:
        return weights_folder()
    parts = urlsplit(url)
    folder = PurePosixPath(unquote(parts.path)).parent
    inside = [p for p in folder.parts if p not in ('/', '..', '.')]
    inside += [parts.query.replace('/', '_')] if parts.query else []
    return weights_folder().joinpath(parts.netloc.replace(':', '_'), *inside)


def _zoo_address(text: str, scheme: str) -> str:
    from mmengine.runner import checkpoint as zoo

    tables = {
        'mmcls': zoo.get_mmcls_models,
        'torchvision': zoo.get_torchvision_models,
        'modelzoo': zoo.get_torchvision_models,
    }
    models = tables.get(scheme, zoo.get_external_models)()
    name = text.partition('://')[2]
    if name not in models:
        raise WeightsNotFoundError(
            f'{text}: the zoo has no {name!r}.{suggest(name, list(models))}'
        )
    address = models[name]
    if not SCHEME.match(address):
        raise WeightsError(f'{text} stands for {address}, which is no address')
    return address
