"""Deltas of whole models: published, read, and loaded where they belong.

The file pair and what it holds at least are :mod:`mmpetl.core.delta_file`'s. What is
published here says more:

=================  ===================================================================
``scope``          upstream package of the task
``model``          config of the whole model, file names without folders
``preprocessing``  test pipeline
``preset``         its name: normalisation, augmentation, interpolation, size
``classes``        names by label, null where nothing names them
``palette``        an RGB triple for each class, or null
``seed``           of the run, where no file holds its base: it draws that again
``metrics``        what was measured, as the exporter was told or the checkpoint says
=================  ===================================================================

All but ``metrics`` are of the run's config, and are left out where none is given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor, nn

from mmpetl.apis.building import build_model, dataset_meta
from mmpetl.apis.names import locate
from mmpetl.compat import load_file
from mmpetl.config.load import as_config
from mmpetl.config.nodes import (
    built_model,
    method_of,
    test_pipeline,
    turns_channels,
)
from mmpetl.config.text import read_text
from mmpetl.core import (
    Owner,
    PETLError,
    build_entries,
    delta_state,
    find_injected,
    frozen_keys,
    injections,
    load_delta_state,
    methods_name,
    owners,
    tensor_digests,
)
from mmpetl.core.boundary import checked
from mmpetl.core.delta_file import (
    BASE_KEY,
    SUFFIXES,
    DataRecord,
    RunRecord,
    check_facts,
    check_format,
    check_record,
    check_values,
    delta_paths,
    file_keys,
    lone_slot,
    method_name,
    methods_of,
    plain_key,
    read_delta_file,
    state_for,
    to_data,
    write_delta_file,
)
from mmpetl.core.errors import shorten
from mmpetl.core.packing import few_values
from mmpetl.core.state import completed
from mmpetl.engine.hooks.common import plain_value
from mmpetl.engine.hooks.delta_checkpoint import delta_meta
from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'REQUIRED': 'mmpetl.core.delta_file',
        'write_all': 'mmpetl.core.delta_file',
    },
)


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


def export_delta(
    source: str | os.PathLike | nn.Module,
    config: Any,
    out: str | os.PathLike,
    metrics: Mapping[str, float] | None = None,
    packed: bool = False,
) -> Path:
    """Publish a delta as ``<out>.safetensors`` and ``<out>.json``.

    Args:
        source: A model with a method in it, or a checkpoint of a run: one of
            :class:`mmpetl.engine.DeltaCheckpointHook`, or the whole model as MMEngine's
            own hook saves it, of which the delta is taken.
        config: The config of the run: path or ``Config``. Gives preprocessing, class
            names and the model's config. None takes that of a model of
            :func:`mmpetl.apis.init_model`, and otherwise leaves these out.
        out: Path without a suffix, or with either suffix.
        metrics: Figures to put on record. By default those that a ``best_*``
            checkpoint was chosen by.
        packed: Whether weights that take few values in use are held in as few bits
            (:mod:`mmpetl.core.packing`). Such a delta computes the same, bit for bit,
            and cannot be trained further. To pack a file takes its config.

    Returns:
        The ``.safetensors`` file. Both files are whole or as they were before.

    Raises:
        PETLError: The source holds no delta, not this config's, or no finite one, or
            nothing that can be packed.
    """
    model = source if isinstance(source, nn.Module) else None
    if packed and model is None:
        delta, model = _filled(locate(source), config)
        slots = slot_names(model)
    elif model is not None:
        delta, slots = _of_model(model), slot_names(model)
        own = getattr(model, 'cfg', None)
        if config is None and _method_in(own) == method_name(delta.meta):
            config = own
    else:
        delta = _read(locate(source), config)
        slots = lone_slot(delta.state, len(methods_of(delta.meta)))
    facts = dict(delta.meta)
    if config is not None:
        config = as_config(config)
        _check_method(delta, config)
        dataset = {**dataset_meta(config), **delta.dataset}
        facts |= {
            'scope': config.get('default_scope'),
            'model': portable_model(config),
            'preprocessing': test_pipeline(config),
            'preset': config.get('preprocessing'),
            'classes': dataset.get('classes'),
            'palette': dataset.get('palette'),
        }
        if facts.get('base') is None:
            facts |= _seed_of(config)
    figures = delta.metrics if metrics is None else metrics
    facts['metrics'] = {name: plain_value(value) for name, value in figures.items()}
    keys = file_keys(delta.state, slots)
    tensors = {keys[k]: v for k, v in delta.state.items() if k != BASE_KEY}
    few = {} if model is None or not packed else _few_values(model, delta)
    tensors |= {keys[key]: value for key, (value, _) in few.items()}
    bits = {keys[key]: number for key, (_, number) in few.items()}
    try:
        return write_delta_file(out, tensors, facts, bits)
    except PETLError as error:
        raise PETLError(f'{delta.path}: {error}') from None


def _seed_of(config: Any) -> dict[str, int]:
    """The seed of a config: a base that no file holds is drawn again from it."""
    seed = (config.get('randomness') or {}).get('seed')
    return {'seed': seed} if isinstance(seed, int) else {}


def _filled(path: Path, config: Any) -> tuple[DeltaFile, nn.Module]:
    """A delta in the model of its config: what the model holds, and the model."""
    if config is None:
        raise PETLError(
            f'{path} is packed by what its model computes; give the config of the run'
        )
    model = build_model(as_config(config))
    read = fill_from(model, path)
    held = _of_model(model)
    return replace(read, state=held.state, meta=held.meta), model


def _few_values(model: nn.Module, delta: DeltaFile) -> dict[str, tuple[Tensor, int]]:
    """What can be packed of a model's delta: values in use and bits, by key."""
    found = {k: v for k, v in few_values(model).items() if k in delta.state}
    if not found:
        raise PETLError(
            f'{method_name(delta.meta)} has no weights of few values, so there is '
            'nothing to pack; export without packed'
        )
    return found


def read_delta(path: str | os.PathLike) -> DeltaFile:
    """Read a published delta (either file, or the stem) or a run's checkpoint.

    A delta is also named ``zoo/NAME`` or ``hub://USER/NAME``.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: A file is damaged, no delta, or the two are not of one export.
    """
    return _read(locate(path), None)


def load_delta(model: nn.Module | Any, path: str | os.PathLike) -> nn.Module:
    """Load a delta into a model that holds the same method on the same base.

    Args:
        model: The model, or a config (path or ``Config``) to build it from.
        path: A published delta or a run's checkpoint, also one of the whole model;
            or ``zoo/NAME``, ``hub://USER/NAME``.

    Returns:
        The model; nothing in it has changed where an error is raised.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: Format, method, depth, base, sizes, order of channels: what differs,
            both sides named.
    """
    model = model if isinstance(model, nn.Module) else build_model(model)
    fill_from(model, path)
    return model


def fill_from(model: nn.Module, path: str | os.PathLike) -> DeltaFile:
    """Load a delta into a model, as :func:`load_delta` does; returns what was read."""
    delta = _read(locate(path), model)
    if not find_injected(model):
        raise PETLError(
            f'{delta.path} is a delta of {method_name(delta.meta)}, the model has no '
            'method; set model.backbone.method to the one of the delta'
        )
    try:
        check_facts(delta.meta, delta_meta(model))
        _check_channels(delta, model)
        wanted = delta_state(model)
        state = state_for(delta.state, wanted, slot_names(model))
        load_delta_state(model, completed(model, wanted, state, delta.meta))
    except PETLError as error:
        raise PETLError(f'{delta.path}: {error}') from None
    _compare_classes(delta, model)
    return delta


def _check_channels(delta: DeltaFile, model: nn.Module) -> None:
    """Refuse a model that gets channels in another order than the delta has learnt."""
    said = (delta.meta.get('model') or {}).get('data_preprocessor')
    given = getattr(model, 'data_preprocessor', None)
    turned = [getattr(given, name, None) for name in TURNED]
    turned = [value for value in turned if value is not None]
    if not isinstance(said, Mapping) or not turned or 'mean' not in said:
        return
    learnt, here = turns_channels(said), any(turned)
    if learnt != here:
        raise PETLError(
            'it has learnt from channels that the preprocessor '
            f'{"turns" if learnt else "does not turn"} (to_rgb, bgr_to_rgb), and the '
            f'one of this model {"turns them" if here else "does not"}: colours would '
            "be swapped; set model.data_preprocessor as in the delta's .json, or name "
            'the delta without a config'
        )


TURNED = ('to_rgb', '_channel_conversion', 'channel_conversion')
"""What preprocessors of mmpretrain, MMEngine and mmdet, and mmseg keep the turning of
channels as."""


def _compare_classes(delta: DeltaFile, model: nn.Module) -> None:
    """Say where a delta names more or fewer classes than the model has."""
    names = delta.dataset.get('classes')
    sizes = {getattr(module, 'num_classes', None) for module in model.modules()}
    sizes = {size for size in sizes if type(size) is int}
    if names and sizes and len(names) not in sizes:
        print_log(
            f'{delta.path} names {len(names)} classes, the model has '
            f'{" and ".join(map(str, sorted(sizes)))}; others are shown as numbers',
            logger='current',
            level=logging.WARNING,
        )


def slot_names(model: nn.Module) -> list[str]:
    """Names of a model's slots, in the order of its methods."""
    return [name for _, _, record in injections(model) for name in record.slots]


def portable_model(config: Any) -> dict[str, Any]:
    """``model`` of a config as data; folders of weight files are this machine's."""

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: Path(v).name if k in ('checkpoint', 'base') and v else visit(v)
                for k, v in value.items()
            }
        return [visit(v) for v in value] if isinstance(value, list) else value

    return visit(to_data(built_model(config)))


def _of_model(model: nn.Module) -> DeltaFile:
    name = Path(type(model).__name__)
    if not find_injected(model):
        raise PETLError(f'{name} holds no method, so there is no delta to export')
    dataset = getattr(model, 'dataset_meta', None) or {}
    return DeltaFile(name, delta_state(model), delta_meta(model), dict(dataset))


def _read(path: Path, owner: Any) -> DeltaFile:
    """Read a delta; ``owner`` is the model, or its config, that a whole file is of."""
    if path.is_dir():
        raise PETLError(f'{path} is a folder; name a delta (.safetensors) inside')
    if path.suffix not in SUFFIXES and path.is_file():
        return _read_checkpoint(path, owner)
    tensors, facts = read_delta_file(path)
    dataset = {k: facts[k] for k in ('classes', 'palette') if facts.get(k)}
    metrics = dict(facts.get('metrics') or {})
    return DeltaFile(delta_paths(path)[0], tensors, facts, dataset, metrics)


def _read_checkpoint(path: Path, owner: Any) -> DeltaFile:
    content = load_tensors(path)
    content = content if isinstance(content, Mapping) else {}
    meta, record = _meta_of(content, path)
    state = content.get('state_dict')
    if record is None and owner is not None and isinstance(state, Mapping):
        model = owner if isinstance(owner, nn.Module) else build_model(owner)
        _check_state(state, path)
        state = delta_of_whole(model, state, path)
        check_method_of_text(model, meta.get('cfg'), path)
        record = delta_meta(model)
    if record is None:
        raise PETLError(
            f'{path} is no delta of mmpetl (it has no such record); base weights go '
            'to model.backbone.checkpoint, and a checkpoint of the whole model needs '
            "its run's config"
        )
    _check_state(state, path)
    return DeltaFile(
        path=path,
        state=dict(state),
        meta=dict(record),
        dataset=data_of(meta, path),
        metrics=_best_metrics(path, content),
    )


def _meta_of(
    content: Mapping[str, Any], path: Path
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """What a checkpoint says of itself, and its record as a delta where it has one."""
    meta = content.get('meta')
    if meta is not None and not isinstance(meta, Mapping):
        raise PETLError(f'{path}: meta is {type(meta).__name__}, and no mapping')
    record = (meta or {}).get('mmpetl')
    if record is not None:
        if not isinstance(record, Mapping):
            raise PETLError(f'{path}: meta.mmpetl is no record of a delta')
        check_format(record, path)
        check_record(record, RunRecord, f'{path}: meta.mmpetl')
    return meta or {}, record


def _check_state(state: Any, path: Path) -> None:
    """Raise PETLError unless it is tensors by name."""
    if not isinstance(state, Mapping):
        raise PETLError(f'{path} holds no state_dict of tensors by name')
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise PETLError(
                f'{path}: state_dict holds {type(value).__name__} at {key!r}, and no '
                'tensor'
            )


def data_of(meta: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``classes`` and ``palette`` of a checkpoint's meta, and what stands beside them.

    Raises:
        PETLError: Classes are no list of names, or a palette no list of RGB triples.
    """
    data = to_data(meta.get('dataset_meta') or {})
    checked(data, DataRecord, f'{path}: meta.dataset_meta')
    return data


def read_plain(
    model: nn.Module, path: Path
) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """State and meta of a checkpoint as MMEngine loads it by itself.

    Args:
        model: What it is for.
        path: A checkpoint of a whole model, or a run's with the delta alone.

    Raises:
        PETLError: It is damaged, holds something else than finite tensors of the kinds
            that the model has, or is a delta and the model has no method: MMEngine
            would load the little that fits, and the bare base would be evaluated.
    """
    if path.suffix in SUFFIXES:
        raise _without_method(path, read_delta(path).meta)
    content = load_tensors(path)
    if not isinstance(content, Mapping):
        raise PETLError(f'{path} holds {type(content).__name__}, and no checkpoint')
    meta, record = _meta_of(content, path)
    if record is not None and not find_injected(model):
        raise _without_method(path, record)
    state = content.get('state_dict', content)
    _check_state(state, path)
    try:
        check_values(state, model.state_dict())
    except PETLError as error:
        raise PETLError(f'{path}: {error}') from None
    return state, meta


def _without_method(path: Path, record: Mapping[str, Any]) -> PETLError:
    return PETLError(
        f'{path} is a delta of {method_name(record)}, the model has no method; give '
        'the config of its run, which its folder holds, or set model.backbone.method '
        '(of an mmpetl.PETLModel model.petl) to the one of the delta'
    )


def check_complete(model: nn.Module, state: Mapping[str, Any], path: Path) -> str:
    """What of a model a checkpoint lacks that is loaded as far as it goes.

    Args:
        model: What it is for.
        state: Its tensors by name.
        path: The file, for messages.

    Returns:
        A line to log; empty where nothing is lacking.

    Raises:
        PETLError: It lacks parameters that are trained, those of the method or of what
            is not the base: they would keep their values of initialisation.
    """
    there = {plain_key(key) for key in state}
    lacking = [key for key in model.state_dict() if plain_key(key) not in there]
    if not lacking:
        return ''
    owner = owners(model)
    trained = [k for k in lacking if owner.get(k, Owner.BASE) is not Owner.BASE]
    if trained:
        raise PETLError(
            f'{path} lacks {shorten(trained)} of the model, which would be tested as '
            'initialised; name a checkpoint of this model, with its method and head'
        )
    return f'{path} lacks {shorten(lacking)} of the model, which stay as they are'


def delta_of_whole(
    model: nn.Module, state: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """What a checkpoint of a whole model holds beside its frozen base.

    Args:
        model: The model as it is before training, with base and method.
        state: As MMEngine's own ``CheckpointHook`` saves it.
        path: The file, for errors.

    Raises:
        PETLError: The file has another base than the model, or only a part of it.
    """
    frozen = frozen_keys(model)
    here = {plain_key(k): v for k, v in model.state_dict().items() if k in frozen}
    there = {plain_key(k): v for k, v in state.items()}
    missing = sorted(set(here) - set(there))
    if missing or not frozen:
        raise PETLError(
            f'{path} is no delta of mmpetl and no checkpoint of this model: it lacks '
            f'{missing[0] if missing else "a method"}; base weights go to '
            'model.backbone.checkpoint'
        )
    was, now = tensor_digests(here), tensor_digests({k: there[k] for k in here})
    changed = sorted(k for k in was if was[k] != now[k])
    if changed:
        raise PETLError(
            f'{path} has another base than the model: {len(changed)} of {len(was)} '
            f'frozen tensors differ ({changed[0]} is one), so its delta would mean '
            'something else; name the base of that run (model.base of a PETLModel, '
            'model.backbone.checkpoint of a PETLBackbone), or, where it was random, '
            "its seed (randomness.seed=N; the run's log says it)"
        )
    return {k: v for k, v in state.items() if plain_key(k) not in here}


def check_method_of_text(model: nn.Module, text: str | None, path: Path) -> None:
    """Compare the model's method with that in the config that a checkpoint holds.

    Raises:
        PETLError: They differ.
    """
    method = method_of(read_text(text) if text else {})
    if method is None:
        print_log(
            f'{path} does not say how its method was set; the config is believed',
            logger='current',
            level=logging.WARNING,
        )
        return
    here = delta_meta(model)
    configs = [entry.method.config() for entry in build_entries(method)]
    there = configs if len(configs) > 1 else configs[0]
    try:
        check_facts({**here, 'method': there}, here)
    except PETLError as error:
        raise PETLError(f'{path}: {error}') from None


def load_tensors(path: Path) -> Any:
    """``torch.load`` of tensors and plain data; a PETLError of one line otherwise."""
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
    hub = content.get('message_hub') or {}
    scalars = hub.get('log_scalars') or {} if isinstance(hub, Mapping) else None
    if not isinstance(scalars, Mapping):
        raise PETLError(f'{path}: message_hub holds no log_scalars by name')
    return {
        name.removeprefix('val/'): _last(buffer, f'{path}: log_scalars.{name}')
        for name, buffer in scalars.items()
        if str(name).startswith('val/') and 'time' not in name
    }


def _last(buffer: Any, place: str) -> float:
    """The last value of a log buffer."""
    try:
        if isinstance(buffer, HistoryBuffer):
            return float(buffer.current())
    except (AttributeError, LookupError, TypeError, ValueError):
        pass  # a buffer of nothing, or of what is no numbers
    raise PETLError(f'{place} is no buffer with a value; name the metrics (--metrics)')


def _method_in(config: Any) -> str | None:
    """Name of the method in a config; None where there is none."""
    method = method_of(config or {})
    return None if method is None else methods_name(method)


def _check_method(delta: DeltaFile, config: Any) -> None:
    """The config must be the run's own: its preprocessing goes on record."""
    there, here = method_name(delta.meta), _method_in(config)
    if there != here:
        raise PETLError(
            f'{delta.path} is a delta of {there}, the config has '
            f'{here or "no method"}; give the config of its run'
        )
