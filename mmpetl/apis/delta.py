"""Deltas on disk: ``<name>.safetensors`` with the tensors, ``<name>.json`` with facts.

Neither file can run code. The JSON says which method, backbone and base the tensors
belong to, what the pictures went through, and what the classes are called:

==================  ==================================================================
``format``          number of this layout
``version``         the mmpetl that wrote it
``method``          ``{"type": "LoRA", "rank": 8, ...}``
``backbone``        config of the foreign backbone
``num_blocks``      its depth
``base``            name of the file of the base weights, null where they were random
``fingerprint``     digest of the base weights, 16 hexadecimal digits
``tensors``         file, number of values, bytes and SHA-256 of the ``.safetensors``
``scope``           upstream package of the task
``model``           config of the whole model, file names without folders
``preprocessing``   test pipeline
``preset``          its name: normalisation, augmentation, interpolation, size
``classes``         names by label, null where nothing names them
``palette``         an RGB triple for each class, or null
``metrics``         what was measured, as the exporter was told or the checkpoint says
==================  ==================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core import PETLError, delta_state, find_injected, load_delta_state

SUFFIXES = ('.safetensors', '.json')
REQUIRED = ('format', 'method', 'num_blocks', 'base', 'fingerprint', 'tensors')


@dataclass(frozen=True)
class DeltaFile:
    """A delta as it lies on disk.

    Attributes:
        path: The ``.safetensors`` file, or the ``.pth`` of a run.
        state: Its tensors by the keys of the whole model.
        meta: Method, backbone, base and the rest of the record.
        dataset: What the file says of the data: ``classes``, ``palette``.
        metrics: What it says was measured.
    """

    path: Path
    state: dict[str, Tensor]
    meta: dict[str, Any]
    dataset: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def delta_paths(path: str | os.PathLike) -> tuple[Path, Path]:
    """The ``.safetensors`` and the ``.json`` of a delta, from either or their stem."""
    path = Path(path)
    stem = path.with_suffix('') if path.suffix in SUFFIXES else path
    tensors, facts = (stem.with_name(stem.name + s) for s in SUFFIXES)
    return tensors, facts


def export_delta(
    source: str | os.PathLike | nn.Module,
    config: Any,
    out: str | os.PathLike,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Publish a delta as ``<out>.safetensors`` and ``<out>.json``.

    Args:
        source: Checkpoint of a run (``.pth``), or a model with a method in it.
        config: The config of the run: path or ``Config``. Gives preprocessing, class
            names and the model's config.
        out: Path without a suffix, or with either suffix.
        metrics: Figures to put on record. By default those that a ``best_*``
            checkpoint was chosen by.

    Returns:
        The ``.safetensors`` file. Both files are whole or as they were before.

    Raises:
        PETLError: The source holds no delta, not this config's, or no finite one.
    """
    from safetensors.torch import save

    from mmpetl.apis.model import as_config, dataset_meta, test_pipeline

    config = as_config(config)
    delta = _of_model(source) if isinstance(source, nn.Module) else read_delta(source)
    _check_method(delta, config)
    broken = [
        k for k, v in delta.state.items() if v.is_floating_point() and not _finite(v)
    ]
    if broken:
        raise PETLError(
            f'{delta.path}: {broken[0]} holds values that are not finite'
            f'{_more(broken)}; export an earlier checkpoint'
        )
    # Clones, for safetensors refuses tensors that share memory.
    packed = save({k: v.detach().cpu().clone() for k, v in delta.state.items()})
    tensors, facts = delta_paths(out)
    dataset = {**dataset_meta(config), **delta.dataset}
    record = {
        **to_data(delta.meta),
        'tensors': {
            'file': tensors.name,
            'values': sum(v.numel() for v in delta.state.values()),
            'bytes': len(packed),
            'sha256': hashlib.sha256(packed).hexdigest(),
        },
        'scope': config.get('default_scope'),
        'model': portable_model(config),
        'preprocessing': to_data(test_pipeline(config)),
        'preset': to_data(config.get('preprocessing')),
        'classes': to_data(dataset.get('classes')),
        'palette': to_data(dataset.get('palette')),
        'metrics': to_data(delta.metrics if metrics is None else dict(metrics)),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + '\n'
    write_all({tensors: packed, facts: text.encode()})
    return tensors


def read_delta(path: str | os.PathLike) -> DeltaFile:
    """Read a published delta (either file, or the stem) or a run's checkpoint.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: A file is damaged, no delta, or the two are not of one export.
    """
    path = Path(path)
    if path.is_dir():
        raise PETLError(f'{path} is a folder; name a delta (.safetensors) inside')
    if path.suffix not in SUFFIXES and path.is_file():
        return _read_checkpoint(path)
    return _read_published(*delta_paths(path))


def load_delta(model: nn.Module | Any, path: str | os.PathLike) -> nn.Module:
    """Load a delta into a model that holds the same method on the same base.

    Args:
        model: The model, or a config (path or ``Config``) to build it from.
        path: A published delta or a run's checkpoint.

    Returns:
        The model; nothing in it has changed where an error is raised.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: Format, method, depth, base, sizes: what differs, both sides named.
    """
    from mmpetl.engine.hooks.delta_checkpoint import check_delta_meta

    delta = read_delta(path)
    if not isinstance(model, nn.Module):
        from mmpetl.apis.model import build_model

        model = build_model(model)
    if not find_injected(model):
        raise PETLError(
            f'{delta.path} is a delta of {method_name(delta.meta)}, the model has no '
            'method; set model.backbone.method to the one of the delta'
        )
    try:
        check_delta_meta(model, delta.meta)
        load_delta_state(model, delta.state)
    except PETLError as error:
        raise PETLError(f'{delta.path}: {error}') from None
    return model


def method_name(meta: Mapping[str, Any]) -> str:
    """``'LoRA'``, or ``'LoRA + SSF'`` where several share the backbone."""
    methods = meta['method']
    methods = methods if isinstance(methods, list | tuple) else [methods]
    return ' + '.join(m['type'] for m in methods)


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files of one export: all are whole beside their names before any moves."""
    parts = {path: path.with_name(f'{path.name}.part') for path in files}
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


def to_data(value: Any) -> Any:
    """Plain JSON data: tuples and sets as lists, types and paths as their names."""
    if isinstance(value, Mapping):
        return {str(k): to_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_data(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, '__name__', str(value))


def portable_model(config: Any) -> dict[str, Any]:
    """``model`` of a config as data; folders of weight files are this machine's."""

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: Path(v).name if k == 'checkpoint' and v else visit(v)
                for k, v in value.items()
            }
        return [visit(v) for v in value] if isinstance(value, list) else value

    return visit(to_data(config.get('model', {})))


def _of_model(model: nn.Module) -> DeltaFile:
    from mmpetl.engine.hooks.delta_checkpoint import delta_meta

    name = Path(type(model).__name__)
    if not find_injected(model):
        raise PETLError(f'{name} holds no method, so there is no delta to export')
    dataset = getattr(model, 'dataset_meta', None) or {}
    return DeltaFile(name, delta_state(model), delta_meta(model), dict(dataset))


def _read_checkpoint(path: Path) -> DeltaFile:
    content = load_tensors(path)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    record = meta.get('mmpetl') if isinstance(meta, Mapping) else None
    if record is None:
        raise PETLError(
            f'{path} is no delta of mmpetl (it has no such record); base weights go '
            'to model.backbone.checkpoint'
        )
    return DeltaFile(
        path=path,
        state=dict(content['state_dict']),
        meta=dict(record),
        dataset=dict(meta.get('dataset_meta') or {}),
        metrics=_best_metrics(path, content),
    )


def load_tensors(path: Path) -> Any:
    """``torch.load`` of tensors and plain data; a PETLError of one line otherwise."""
    from mmpetl.compat import load_file

    try:
        return load_file(path)
    except ValueError as error:
        raise PETLError(str(error)) from None


def _best_metrics(path: Path, content: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the validation that chose a ``best_*`` checkpoint.

    Other checkpoints are written before their epoch is validated, so what they hold
    was measured on earlier weights and is no figure of theirs.
    """
    if not path.name.startswith('best_'):
        return {}
    scalars = content.get('message_hub', {}).get('log_scalars', {})
    return {
        name.removeprefix('val/'): float(buffer.current())
        for name, buffer in scalars.items()
        if name.startswith('val/') and 'time' not in name
    }


def _read_published(tensors: Path, facts: Path) -> DeltaFile:
    from safetensors import SafetensorError
    from safetensors.torch import load

    for path in (tensors, facts):
        if not path.is_file():
            raise FileNotFoundError(
                f'there is no {path}; a delta is two files, {tensors.name} and '
                f'{facts.name}'
            )
    try:
        meta = json.loads(facts.read_text(encoding='utf-8'))
    except ValueError as error:
        raise PETLError(f'{facts} is damaged or no JSON ({error})') from None
    if not isinstance(meta, dict) or any(k not in meta for k in REQUIRED):
        lacking = [k for k in REQUIRED if not isinstance(meta, dict) or k not in meta]
        raise PETLError(f'{facts} is no record of a delta: it lacks {lacking[0]!r}')
    _check_format(meta, facts)
    packed = tensors.read_bytes()
    wanted, found = meta['tensors'].get('sha256'), hashlib.sha256(packed).hexdigest()
    if wanted != found:
        raise PETLError(
            f'{tensors} has SHA-256 {found[:12]}, {facts.name} speaks of '
            f'{str(wanted)[:12]}; it is damaged, or the two files are of two exports'
        )
    try:
        state = load(packed)
    except SafetensorError as error:
        raise PETLError(f'{tensors} is damaged or no safetensors ({error})') from None
    dataset = {k: meta[k] for k in ('classes', 'palette') if meta.get(k)}
    return DeltaFile(tensors, state, meta, dataset, dict(meta.get('metrics') or {}))


def _check_format(meta: Mapping[str, Any], facts: Path) -> None:
    from mmpetl.engine.hooks.delta_checkpoint import FORMAT

    if meta['format'] != FORMAT:
        raise PETLError(
            f'{facts} has format {meta["format"]}, this mmpetl reads {FORMAT}; it was '
            f'written by mmpetl {meta.get("version")}'
        )


def _check_method(delta: DeltaFile, config: Any) -> None:
    """The config must be the run's own: its preprocessing goes on record."""
    from mmpetl.apis.model import petl_backbone_of

    backbone = petl_backbone_of(config)
    method = None if backbone is None else backbone.get('method')
    name = method if isinstance(method, str) else (method or {}).get('type')
    if name is None or str(name).rpartition('.')[2] != method_name(delta.meta):
        raise PETLError(
            f'{delta.path} is a delta of {method_name(delta.meta)}, the config has '
            f'{name or "no method"}; give the config of its run'
        )


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _more(names: list[str]) -> str:
    return f' (and {len(names) - 1} more)' if len(names) > 1 else ''
