"""What a built data set holds: which files, under which labels, in which order.

The digest of a phase is a SHA-256 over the samples in the order of the data set, after
``indices``, filters and repeats. A sample stands in it with its labels and with what
its files are: their **content** where the phase's files have at most
:data:`CONTENT_BYTES` together, else their **name and size**. Neither names a folder, so
the digest is the same wherever the data lie and however the path is spelt.

Two phases overlap where they read one file: the same device and inode, so that links
and spellings (``mini/./fgvc``) do not hide it. A *copy* is another file of the same
content.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTENT_BYTES = 64 * 2**20
"""Up to so many bytes in all, the files of a phase are identified by content."""

WHOLE_BYTES = 2**20
"""Files above are compared by size and by this much of their two ends."""

OF_PICTURE = ('img_path', 'filename', 'frame_dir')
"""Keys under which a sample names its picture, video, or folder of frames."""

OF_LABEL = ('gt_label', 'label', 'instances', 'total_frames', 'start_index')
OF_OBJECT = ('bbox', 'bbox_label', 'ignore_flag')
"""What counts of a sample's annotations, and of each object among them."""

Place = tuple[int, int] | str


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        path: Its picture, video or folder of frames.
        others: Further files: maps.
        labels: Its labels as JSON.
    """

    path: str
    others: tuple[str, ...]
    labels: str


@dataclass(frozen=True)
class Read:
    """What one phase reads.

    Attributes:
        digest: SHA-256 in hexadecimal digits; empty where samples name no file.
        count: Samples of one pass.
        kind: Class of the innermost data set.
        by: ``content``, ``size``, or empty.
        places: Where its pictures lie, by device and inode.
        sizes: Paths of the pictures by their size in bytes.
    """

    digest: str
    count: int
    kind: str
    by: str
    places: Mapping[Place, str]
    sizes: Mapping[int, tuple[str, ...]]


def read_of(dataset: Any) -> Read:
    """What a built data set reads; its files are looked up, small sets are opened."""
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    kind, count = type(_innermost(dataset)).__name__, len(dataset)
    samples = list(_samples(dataset))
    if len(samples) != count or not count:
        return Read('', count, kind, '', {}, {})
    facts = {path: _stat(path) for path in _paths(samples)}
    regular = all(s is not None and stat.S_ISREG(s.st_mode) for s in facts.values())
    size = sum(s.st_size for s in facts.values() if s is not None)
    by = 'content' if regular and size <= CONTENT_BYTES else 'size'
    names = {
        path: content(path) if by == 'content' else _name(path, found)
        for path, found in facts.items()
    }
    digest = hashlib.sha256(f'{by}\n'.encode())
    for sample in samples:
        parts = [names[sample.path], *(names[p] for p in sample.others), sample.labels]
        digest.update('|'.join(parts).encode() + b'\n')
    places: dict[Place, str] = {}
    sizes: dict[int, list[str]] = {}
    for path in dict.fromkeys(sample.path for sample in samples):
        found = facts[path]
        if found is None:
            places.setdefault(os.path.realpath(path), path)
            continue
        known = places.setdefault((found.st_dev, found.st_ino), path)
        if known is path and stat.S_ISREG(found.st_mode):
            sizes.setdefault(found.st_size, []).append(path)
    rows = {size: tuple(paths) for size, paths in sizes.items()}
    return Read(digest.hexdigest(), count, kind, by, places, rows)


def shared_files(one: Read, other: Read) -> list[str]:
    """Pictures of the second that the first reads too, as the second spells them."""
    return [path for place, path in other.places.items() if place in one.places]


def copies(one: Read, other: Read) -> int:
    """How many pictures of the second have the content of one of the first.

    Only files of equal size are opened.
    """
    found = 0
    for size in one.sizes.keys() & other.sizes.keys():
        known = {content(path) for path in one.sizes[size]}
        found += sum(content(path) in known for path in other.sizes[size])
    return found


def content(path: str) -> str:
    """SHA-256 of a file's content; of a large one, of its size and its two ends."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(f'{size}\n'.encode() + file.read(WHOLE_BYTES))
            file.seek(-WHOLE_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def _innermost(dataset: Any) -> Any:
    while True:
        inner = getattr(dataset, 'dataset', None) or getattr(dataset, 'datasets', None)
        if inner is None or isinstance(inner, Mapping | str):
            return dataset
        dataset = inner[0] if isinstance(inner, list | tuple) else inner


def _samples(dataset: Any) -> Iterator[Sample]:
    """The samples in order; it ends early where one does not say its file."""
    for index in range(len(dataset)):
        info = _info(dataset, index)
        path = next((str(info[k]) for k in OF_PICTURE if info.get(k)), None)
        if path is None:
            return
        others = tuple(
            str(info[key])
            for key in sorted(info)
            if key.endswith('_path') and key not in OF_PICTURE and info[key]
        )
        labels = {key: _label(info[key]) for key in OF_LABEL if key in info}
        yield Sample(path, others, json.dumps(labels, sort_keys=True))


def _info(dataset: Any, index: int) -> Mapping[str, Any]:
    """A sample's annotations, also behind wrappers that do not hand them on."""
    while not hasattr(dataset, 'get_data_info'):
        if hasattr(dataset, 'indices') and hasattr(dataset, 'dataset'):
            dataset, index = dataset.dataset, dataset.indices[index]  # torch's Subset
        elif hasattr(dataset, '_get_ori_dataset_idx') and hasattr(dataset, 'dataset'):
            index, dataset = dataset._get_ori_dataset_idx(index), dataset.dataset
        elif hasattr(dataset, 'dataset') and len(dataset) == len(dataset.dataset):
            dataset = dataset.dataset
        else:
            return {}
    return dataset.get_data_info(index)


def _label(value: Any) -> Any:
    """Labels as JSON has them; of objects, what they are scored by."""
    if hasattr(value, 'tolist'):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _label(value[key]) for key in OF_OBJECT if key in value}
    if isinstance(value, list | tuple):
        return [_label(v) for v in value]
    return (
        value if value is None or isinstance(value, bool | int | float) else str(value)
    )


def _paths(samples: Iterable[Sample]) -> Iterator[str]:
    seen = set()
    for sample in samples:
        for path in (sample.path, *sample.others):
            if path not in seen:
                seen.add(path)
                yield path


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # a pattern of names, or a place that is no file
        return None


def _name(path: str, found: os.stat_result | None) -> str:
    """A file's own name and size; folders have no size that two machines share."""
    name = os.path.basename(os.path.normpath(path))
    whole = found is not None and stat.S_ISREG(found.st_mode)
    return f'{name}:{found.st_size}' if whole else name  # type: ignore[union-attr]


def same_reading(one: Any, other: Any) -> bool:
    """Whether two configs of data sets read the same, as far as configs tell.

    Paths are resolved, so that ``data/mini/./fgvc`` and a link to it are the same;
    pipelines and repeats do not count. Two sets may overlap without this being so:
    what they hold is known when they are built.
    """
    return bool(one and other) and _reading(one) == _reading(other)


UNREAD = (
    *('pipeline', 'test_mode', 'filter_cfg', 'lazy_init', 'serialize_data'),
    *('max_refetch', 'metainfo', '_scope_', 'times', 'oversample_thr', 'backend_args'),
)
"""Arguments of data sets that say nothing of the files that are read."""

REPEATING = ('RepeatDataset', 'ClassBalancedDataset')


def kind_of(node: Mapping[str, Any]) -> str:
    """Class that the config of a data set names, without its scope."""
    kind = node.get('type')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return kind.rpartition('.')[2]


WRAPPED = ('dataset', 'datasets')
"""Keys under which a dataset of datasets holds what it wraps."""


def innermost(dataset: Any) -> Iterator[Any]:
    """The sets that a dataset's config divides, repeats or joins, or the set itself."""
    if isinstance(dataset, list | tuple):
        for part in dataset:
            yield from innermost(part)
        return
    is_config = isinstance(dataset, Mapping)
    inner = [dataset[key] for key in WRAPPED if dataset.get(key)] if is_config else []
    if not inner:
        yield dataset
    for part in inner:
        yield from innermost(part)


def _reading(node: Any) -> Any:
    """A config of a data set with its paths resolved and what is unread left out."""
    if isinstance(node, list | tuple):
        return [_reading(part) for part in node]
    kind = kind_of(node)
    if kind in REPEATING:
        return _reading(node['dataset'])
    root = str(node.get('data_root') or '')
    found = {'type': kind}
    for key, value in node.items():
        if key in UNREAD or key == 'type' or value is None:
            continue
        if key in ('dataset', 'datasets'):
            found[key] = _reading(value)
        elif key == 'data_root':
            found[key] = _real(root)
        elif key == 'ann_file':
            found[key] = _real(os.path.join(root, str(value)))
        elif key == 'data_prefix' and isinstance(value, Mapping):
            found[key] = {
                k: _real(os.path.join(root, str(v))) for k, v in value.items()
            }
        else:
            found[key] = _plain(value)
    if 'data_prefix' in found or 'ann_file' in found:
        found.pop('data_root', None)  # it is in the paths
    return found


def _real(path: str) -> str:
    return os.path.realpath(Path(path).expanduser())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str) else str(value)
