"""A delta on disk: ``<name>.safetensors`` with the tensors, ``<name>.json`` with facts.

Neither file can run code. The JSON holds at least

===============  =====================================================================
``format``       number of this layout
``version``      the mmpetl that wrote it
``method``       ``{"type": "LoRA", "rank": 8, ...}``, or a list where several share
                 the backbone
``backbone``     config of the foreign backbone, or null
``num_blocks``   its depth
``where``        ``layers``, ``blocks`` and ``places`` that the method is about, or a
                 list where several share the backbone; absent where it is all of them
``head``         paths of the backbone that trained like a head (``inject(head=...)``);
                 absent before they were on record
``trunks``       ``path``, ``method``, ``backbone``, ``num_blocks``, ``head`` and
                 ``where`` of each backbone with a method, absent where it is one; what
                 stands outside is of the first
``sites``        number of the list of sites, absent before there were two
``base_bits``    bits of the frozen weights of Linear layers, absent where floating
``base``         name of the file of the base weights, null where they were random
``fingerprint``  digest of the base weights, 16 hexadecimal digits
``tensors``      file, number of values, bytes and SHA-256 of the ``.safetensors``
``packed``       bits and shape of each weight that the file holds packed
                 (:mod:`mmpetl.core.packing`), by its key; absent where none is
===============  =====================================================================

Keys are those of the model's state, free of what depends on how it was held: no segment
of a wrapper (``module``, ``_orig_mod``), and the number of the method in ``method``
where the model has the name of its slot (``petl.attn_sum.0.down.weight``).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from mmpetl.core.boundary import checked, read_bytes, read_json
from mmpetl.core.errors import PETLError
from mmpetl.core.method import build_method
from mmpetl.core.packing import PackedTensor, packed_tensors, unpacked_tensors
from mmpetl.core.part_files import part_name
from mmpetl.version import __version__

FORMAT = 1
"""Number of the layout; it changes alone."""

SITES = 2
"""Number of the list of sites that backbones offer; older deltas do not state it."""

BASE_KEY = 'petl.base'
"""Key of the base's fingerprint, 8 bytes, in the state of a whole tuned model."""

SUFFIXES = ('.safetensors', '.json')
REQUIRED = ('format', 'method', 'num_blocks', 'base', 'fingerprint', 'tensors')
WRAPPERS = ('module', '_orig_mod')
"""Segments that DistributedDataParallel and ``torch.compile`` put into keys."""


class Sealed(msgspec.Struct):
    """What a record says of the ``.safetensors`` beside it."""

    sha256: str
    file: str = ''
    values: int = 0
    bytes: int = 0


Digest = Annotated[str, msgspec.Meta(pattern='^[0-9a-f]{16}$')]
Channel = Annotated[int, msgspec.Meta(ge=0, le=255)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


ClassName = Annotated[
    str, msgspec.Meta(max_length=500, pattern=r'^[^\x00-\x1f\x7f]*\Z')
]
"""One that can be printed and drawn."""

Metric = float | None | list[float | None]
"""A figure, or one for each class; None where there was nothing to measure."""


class TrunkRecord(msgspec.Struct):
    """What a delta says of one of several backbones that it is on."""

    path: str
    method: dict[str, Any] | list[dict[str, Any]]
    num_blocks: int
    backbone: dict[str, Any] | None = None
    where: dict[str, Any] | list[dict[str, Any]] | None = None
    head: list[str] | None = None


class RunRecord(msgspec.Struct):
    """What a delta says of itself, in a run's checkpoint too; more may stand beside."""

    format: int
    method: dict[str, Any] | list[dict[str, Any]]
    num_blocks: int
    base: str | None
    fingerprint: Digest
    version: str = ''
    backbone: dict[str, Any] | None = None
    where: dict[str, Any] | list[dict[str, Any]] | None = None
    head: list[str] | None = None
    trunks: list[TrunkRecord] | None = None
    sites: int = 1
    base_bits: int | None = None


class DataRecord(msgspec.Struct):
    """What a checkpoint or a delta says of its data."""

    classes: list[ClassName] | None = None
    palette: list[tuple[Channel, Channel, Channel]] | None = None


class PublishedRecord(RunRecord, kw_only=True):
    """The json of a published delta."""

    tensors: Sealed
    packed: dict[str, PackedTensor] = {}
    classes: list[ClassName] | None = None
    palette: list[tuple[Channel, Channel, Channel]] | None = None
    scope: str | None = None
    model: dict[str, Any] | None = None
    preprocessing: list[dict[str, Any]] | None = None
    preset: dict[str, Any] | None = None
    metrics: dict[str, Metric] | None = None
    seed: Seed | None = None


# ------------------------------------------------------------------------ keys


def plain_key(key: str) -> str:
    """A key without the segments of wrappers."""
    return '.'.join(part for part in key.split('.') if part not in WRAPPERS)


def file_key(key: str, slots: Sequence[str]) -> str:
    """A model's key as a file has it: wrappers out, slots by their number.

    Args:
        key: A key of the model's state.
        slots: Names of the slots that the file holds, in the order of its methods.
    """
    parts = plain_key(key).split('.')
    for i in range(len(parts) - 2):
        if parts[i] == 'petl' and parts[i + 2] in slots:
            parts[i + 2] = str(slots.index(parts[i + 2]))
            break
    return '.'.join(parts)


def file_keys(keys: Iterable[str], slots: Sequence[str]) -> dict[str, str]:
    """The key in the file for each key of a model's state, each of them once.

    Raises:
        PETLError: Two keys would become one.
    """
    found = {key: file_key(key, slots) for key in keys}
    seen: dict[str, str] = {}
    for key, short in found.items():
        if short in seen:
            raise PETLError(
                f'{seen[short]} and {key} would both be {short} in a delta; name '
                'neither submodules nor slots like a wrapper or a number'
            )
        seen[short] = key
    return found


def lone_slot(keys: Iterable[str], methods: int = 1) -> list[str]:
    """The slot that keys name, whatever it is called; none where there are several.

    Keys do not tell the order of several, so these keep the names that they have.

    Args:
        keys: Those of a file.
        methods: How many methods it is of, some of which may have no keys of their own.
    """
    if methods != 1:
        return []
    parts = [plain_key(key).split('.') for key in keys]
    found = {p[p.index('petl') + 2] for p in parts if 'petl' in p[:-2]}
    return list(found) if len(found) == 1 else []


def state_for(
    tensors: Mapping[str, Tensor], keys: Iterable[str], slots: Sequence[str]
) -> dict[str, Tensor]:
    """Tensors of a delta by the keys of the model that is to take them.

    Args:
        tensors: As :func:`read_delta_file` gives them, or the state in a checkpoint
            whose only slot has another name than the model's.
        keys: Those of the model.
        slots: Names of the model's slots, in the order of the delta's methods.

    Returns:
        What fits no key keeps its own, for the caller to refuse.
    """
    wanted = {short: key for key, short in file_keys(keys, slots).items()}
    # A run's checkpoint has the name that the slot had in the run.
    own = lone_slot(tensors, len(slots))
    return {wanted.get(file_key(k, own), k): value for k, value in tensors.items()}


# ----------------------------------------------------------------------- files


def delta_paths(path: str | os.PathLike) -> tuple[Path, Path]:
    """The ``.safetensors`` and the ``.json`` of a delta, from either or their stem."""
    path = Path(path)
    stem = path.with_suffix('') if path.suffix in SUFFIXES else path
    tensors, facts = (stem.with_name(stem.name + s) for s in SUFFIXES)
    return tensors, facts


def write_delta_file(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    bits: Mapping[str, int] | None = None,
) -> Path:
    """Write both files; they are whole, or as they were before.

    Args:
        path: Path without a suffix, or with either suffix.
        tensors: By keys of the file; :func:`file_keys` gives them.
        facts: The record without ``tensors`` and ``packed``; ``format`` and ``version``
            are added where it lacks them.
        bits: Bits of each entry, by the keys of tensors that are to be packed.

    Returns:
        The ``.safetensors`` file.

    Raises:
        PETLError: A value is not finite, a tensor takes more values than its bits tell
            apart, or a file cannot be written.
    """
    from safetensors.torch import save

    weights, record = delta_paths(path)
    try:
        check_values(tensors)
    except PETLError as error:
        raise PETLError(
            f'{error}, so no delta is written; take an earlier checkpoint'
        ) from None
    held, packed = packed_tensors(tensors, bits or {})
    data = save(plain_copies(held))
    known = to_data(facts)
    known.pop('packed', None)
    whole = {
        'format': FORMAT,
        'version': __version__,
        **known,
        'tensors': {
            'file': weights.name,
            'values': sum(v.numel() for v in held.values()),
            'bytes': len(data),
            'sha256': hashlib.sha256(data).hexdigest(),
        },
    }
    if packed:
        whole['packed'] = packed
    check_record(whole, PublishedRecord, str(record))  # what is written can be read
    text = json.dumps(whole, indent=2, ensure_ascii=False) + '\n'
    write_all({weights: data, record: text.encode()})
    return weights


def plain_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each with memory of its own and rows one behind the other.

    safetensors refuses tensors that share memory, and those of ``channels_last``.
    """
    rows = torch.contiguous_format
    return {k: v.detach().cpu().clone(memory_format=rows) for k, v in tensors.items()}


def read_delta_file(
    path: str | os.PathLike,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a delta, from either file or their stem.

    Packed weights are unpacked; each has the flag beside it that says so.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: A file is damaged or no delta, or the two are not of one export.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    weights, record = delta_paths(path)
    for file in (weights, record):
        if not file.is_file():
            if (Path(path) / 'adapter_config.json').is_file():
                raise PETLError(
                    f"{path} is an adapter of Hugging Face's peft, which "
                    'mmpetl.apis.load_peft(model, folder) injects and fills '
                    '(docs/peft.md)'
                )
            raise FileNotFoundError(
                f'there is no {file}; a delta is two files, {weights.name} and '
                f'{record.name}'
            )
    facts = _read_facts(record)
    packed = read_bytes(weights, 'delta', sys.maxsize - 1)
    wanted, found = facts['tensors']['sha256'], hashlib.sha256(packed).hexdigest()
    if wanted != found:
        raise PETLError(
            f'{weights} has SHA-256 {found[:12]}, {record.name} speaks of '
            f'{str(wanted)[:12]}; it is damaged, or the two files are of two exports'
        )
    try:
        tensors = load(packed)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise PETLError(f'{weights} is damaged or no safetensors ({error})') from None
    try:
        check_values(tensors)
        own = checked(facts, PublishedRecord, f'{record}').packed
        return unpacked_tensors(tensors, own), facts
    except PETLError as error:
        raise PETLError(f'{weights}: {error}') from None


def _read_facts(path: Path) -> dict[str, Any]:
    # Figures that are not finite are told as they are.
    facts = read_json(path, dict[str, Any], 'record of a delta', finite=False)
    lacking = [k for k in REQUIRED if k not in facts]
    if lacking:
        raise PETLError(f'{path} is no record of a delta: it lacks {lacking[0]!r}')
    check_format(facts, path)
    check_record(facts, PublishedRecord, f'{path}')
    return facts


def check_record(facts: Mapping[str, Any], kind: type[RunRecord], place: str) -> None:
    """Raise PETLError unless a record is of its type and each method has a name.

    Args:
        facts: As a file holds them.
        kind: What they are to be.
        place: Where they stand, for messages.
    """
    checked(to_data(facts), kind, place)
    for part in (facts, *(facts.get('trunks') or ())):
        for method in _methods(part) or [{}]:
            if not isinstance(method.get('type'), str):
                raise PETLError(
                    f'{place} is no record of a delta: its method has no type'
                )


def check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise PETLError for a tensor without plain values.

    These are sparse ones, quantised ones, those on the meta device, and numbers of 8
    bits with a floating point, which mean nothing without a scale.
    """
    for name, tensor in tensors.items():
        what = None
        if tensor.is_meta:
            what = 'lies on the meta device, which holds no values'
        elif tensor.layout != torch.strided:
            what = 'is sparse'
        elif tensor.is_quantized:
            what = 'is quantised'
        elif tensor.is_floating_point() and tensor.element_size() < 2:
            what = f'is {tensor.dtype}, which means nothing without its scale'
        if what is not None:
            raise PETLError(f'{name} {what}; save it as a plain tensor of numbers')


def _is_finite(tensor: Tensor | None) -> bool:
    if tensor is None or not tensor.is_floating_point() or tensor.is_meta:
        return True
    return bool(torch.isfinite(tensor).all())


def check_values(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor] | None = None
) -> None:
    """Raise PETLError unless tensors are plain, finite and of the kind expected.

    Args:
        tensors: What was loaded, by name.
        expected: Tensors that are to take them, by the same names: floating point takes
            floating point of any width, whole numbers take whole numbers.
    """
    check_kinds(tensors)
    for name, tensor in tensors.items():
        here = (expected or {}).get(name)
        if tensor.is_complex() and (here is None or not here.is_complex()):
            raise PETLError(f'{name} is complex; save it as real numbers')
        if here is not None and here.is_floating_point() != tensor.is_floating_point():
            raise PETLError(
                f'{name} is {tensor.dtype} in the file and {here.dtype} in the model'
            )
    # A mask of the model's own may hold -inf.
    broken = [
        name
        for name, tensor in tensors.items()
        if not _is_finite(tensor) and _is_finite((expected or {}).get(name))
    ]
    if broken:
        more = f' (and {len(broken) - 1} more)' if len(broken) > 1 else ''
        raise PETLError(f'{broken[0]} holds values that are not finite{more}')


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files of one export: all are whole beside their names before any moves."""
    parts = {path: part_name(path) for path in files}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(parts[path], 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        raise PETLError(
            f'cannot write {error.filename}: {error.strerror}; choose another place'
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


# ----------------------------------------------------------------------- facts


def check_format(facts: Mapping[str, Any], name: Any = 'the delta') -> None:
    """Raise PETLError unless this mmpetl reads the layout."""
    if facts.get('format') != FORMAT:
        raise PETLError(
            f'{name} has format {facts.get("format")}, this mmpetl reads {FORMAT}; it '
            f'was written by mmpetl {facts.get("version")}'
        )


def check_facts(facts: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise PETLError unless a delta belongs to a model's method and base.

    Args:
        facts: Those of the delta.
        here: Those of the model: ``method``, ``num_blocks``, ``base``, ``fingerprint``
            and, where it is known, ``backbone``.
    """
    check_format(facts)
    _check_trunk(facts, here)
    _check_trunks(facts, here)
    if facts['fingerprint'] != here['fingerprint']:
        # What trains as a head is no part of the digest, so it is compared first.
        _check_heads(facts, here)
        todo = 'load the base that the delta was made on'
        if not facts['base']:
            todo += (
                '; where its values were drawn, the seed of the run draws them again '
                "(randomness.seed=N; the run's log says it)"
            )
        raise PETLError(
            f'the delta was made on the base {facts["base"] or "(no name)"} '
            f'[{facts["fingerprint"]}], this model has {here["base"] or "(no name)"} '
            f'[{here["fingerprint"]}]; {todo}'
        )


def _check_trunk(facts: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare methods, class and depth of one backbone."""
    if method_name(facts) != method_name(here):
        raise PETLError(
            f'the delta is of {method_name(facts)}, the model has '
            f'{method_name(here)}; build the model with the method of the delta'
        )
    there, built = _backbone_name(facts), _backbone_name(here)
    if None not in (there, built) and there != built:
        raise PETLError(
            f'the delta is of a {there}, this backbone is a {built}; build the '
            'backbone that the delta was made on'
        )
    if facts['num_blocks'] != here['num_blocks']:
        raise PETLError(
            f'the delta is of a backbone with {facts["num_blocks"]} blocks, this one '
            f'has {here["num_blocks"]}; build the backbone that the delta was made on'
        )
    if _full(facts) != _full(here):
        raise PETLError(
            f'the delta was made by {_full(facts)}, the model has {_full(here)}; use '
            'the same arguments'
        )
    if facts.get('where') != here.get('where'):
        raise PETLError(
            f'the delta acts at {_where(facts)}, the model at {_where(here)}; inject '
            'with the same layers and blocks'
        )


def _trunks(facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What is said of each backbone by its path; empty where there is one."""
    return {trunk['path']: trunk for trunk in facts.get('trunks') or ()}


def _check_trunks(facts: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare each of several backbones; old files tell of the first alone."""
    there, built = _trunks(facts), _trunks(here)
    if not there:
        return
    if list(there) != list(built):
        raise PETLError(
            f'the delta is of methods in {len(there)} backbones ({", ".join(there)}), '
            f'the model has them in {", ".join(built) or "one"}; inject into the same '
            'ones'
        )
    for path, trunk in there.items():
        try:
            _check_trunk(trunk, built[path])
        except PETLError as error:
            raise PETLError(f'{path}: {error}') from None


def _check_heads(facts: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Say where other paths of the backbones train as a head than did for a delta."""
    here_by_path = _trunks(here)
    pairs = [
        (f'{path}: ', trunk, here_by_path[path])
        for path, trunk in _trunks(facts).items()
    ]
    for place, there, built in pairs or [('', facts, here)]:
        theirs, ours = head_of(there), head_of(built)
        # Files from before heads were on record do not say.
        if there.get('head') is not None and set(theirs) != set(ours):
            raise PETLError(
                f'{place}the delta was trained with {_said(theirs)}, the model was '
                f'injected with {_said(ours)}; inject with {_said(theirs)}'
            )


def head_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the backbone that trained like a head; none where it is not said."""
    return tuple(facts.get('head') or ())


def _said(head: tuple[str, ...]) -> str:
    return f'head={head}' if head else 'no head='


def method_name(facts: Mapping[str, Any]) -> str:
    """``'LoRA'``, or ``'LoRA + SSF'`` where several share the backbone."""
    return ' + '.join(m['type'] for m in _methods(facts))


def _methods(facts: Mapping[str, Any]) -> list[Any]:
    methods = facts['method']
    return list(methods) if isinstance(methods, list | tuple) else [methods]


def methods_of(
    facts: Mapping[str, Any],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The config of each method, and the arguments of ``inject`` that say its part.

    Raises:
        PETLError: The record does not say it of each.
    """
    methods, where = _methods(facts), facts.get('where')
    parts = where if isinstance(where, list) else [where or {}] * len(methods)
    known = {'layers', 'blocks', 'places'}
    if len(parts) != len(methods) or not all(
        isinstance(part, Mapping) and set(part) <= known for part in parts
    ):
        raise PETLError(
            f'the delta of {method_name(facts)} says where it acts as {where!r}; it '
            'needs layers and blocks of each method'
        )
    return [
        (dict(method), {k: v for k, v in part.items() if v is not None})
        for method, part in zip(methods, parts, strict=True)
    ]


def _where(facts: Mapping[str, Any]) -> str:
    """``layers=[...], blocks=None`` of each method."""
    where = facts.get('where')
    if where is None:
        return 'all layers'
    parts = where if isinstance(where, list) else [where]
    return ' + '.join(', '.join(f'{k}={v}' for k, v in p.items()) for p in parts)


def _backbone_name(facts: Mapping[str, Any]) -> str | None:
    """Class of the backbone without its scope."""
    kind = (facts.get('backbone') or {}).get('type')
    return None if kind is None else to_data(kind).rpartition('.')[2]


def _full(facts: Mapping[str, Any]) -> list[Any]:
    """The methods' arguments, at default where the delta is too old to know one."""
    return [to_data(build_method(dict(m)).config()) for m in _methods(facts)]


def to_data(value: Any) -> Any:
    """Plain JSON data: tuples and sets as lists, types and paths as their names."""
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_data(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, '__name__', str(value))
