"""Adapters of Hugging Face's peft: read into a model, and written from one.

An adapter is a folder with two files, neither of which can run code:
``adapter_config.json`` and ``adapter_model.safetensors``. What a type means is said by
the method whose algebra it is (:class:`mmpetl.core.peft_format.PeftFormat`); here are
the files, the Linears they name, heads, biases, and what is refused. peft itself is not
needed.

Source: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from mmpetl.core import (
    Injection,
    Method,
    Owner,
    PETLError,
    Site,
    build_method,
    eject,
    inject,
    injection_of,
    injections,
    owners,
    registered_methods,
)
from mmpetl.core.boundary import checked, read_bytes, read_json
from mmpetl.core.delta_file import (
    check_values,
    plain_copies,
    plain_key,
    to_data,
    write_all,
)
from mmpetl.core.errors import shorten
from mmpetl.core.fingerprint import check_unmoved
from mmpetl.core.injection import learnt_values
from mmpetl.core.leaf_map import LeafMap
from mmpetl.core.narrow import linear_rows, locate, rows_of, why_no_pair
from mmpetl.core.patterns import nearest
from mmpetl.core.peft_format import PeftFormat, PeftLayer, TunedLinear
from mmpetl.core.sitemap import CONVOLUTIONS, class_name
from mmpetl.core.slots import pick_slot

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'

EVERY_TYPE = frozenset(
    {
        'peft_type',
        'peft_version',
        'task_type',
        'auto_mapping',
        'base_model_name_or_path',
        'revision',
        'inference_mode',
        'target_modules',
        'exclude_modules',
        'modules_to_save',
        'layers_to_transform',
        'layers_pattern',
        'bias',
    }
)
"""Entries of configs of all types. Which layers are meant is read off the tensors."""


class Entries(msgspec.Struct):
    """What is read of every config; more stands beside."""

    peft_type: str
    modules_to_save: list[str] | None = None
    bias: str | None = None
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, float] | None = None


class Sorted(NamedTuple):
    """The tensors of a file, by what they are of."""

    layers: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor]
    plain: dict[str, Tensor]
    """Parameters of the model, heads and biases, by its own names."""


def peft_types() -> dict[str, list[str]]:
    """Types of peft's adapters that are read and written, and the methods they are."""
    found: dict[str, list[str]] = {}
    for name, cls in sorted(registered_methods().items()):
        if cls.peft is not None:
            found.setdefault(cls.peft.kind, []).append(name)
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------- read


def load_peft(
    model: nn.Module,
    folder: str | os.PathLike,
    slot: str | None = None,
    trunk: str = '',
) -> nn.Module:
    """Inject what an adapter of peft says, and fill it with its values.

    Args:
        model: A timm or transformers model, or any other, with its base weights; the
            object that ``peft.PeftModel.from_pretrained`` would be given.
        folder: The adapter's folder, or one of the two files in it.
        slot: Name of the slot it takes, by default the next number.
        trunk: Path of the backbone that holds all layers of the adapter, where the
            model is none that a file describes and its backbone is.

    Returns:
        The same object. It computes what peft's model computes, and is as it was where
        an error is raised.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: A file is damaged, or says what has no equal here: which, and why.
    """
    folder = Path(folder)
    if folder.name in (CONFIG, TENSORS):
        folder = folder.parent
    if getattr(model, 'peft_config', None):
        raise PETLError(
            f'{class_name(type(model))} holds adapters of peft already; give the model '
            'that they were put into, built anew or by model.unload()'
        )
    config = read_json(folder / CONFIG, dict[str, Any], 'config of an adapter')
    tensors = _read_tensors(folder / TENSORS)
    try:
        return _load(model, config, tensors, slot, model.get_submodule(trunk))
    except PETLError as error:
        raise PETLError(f'{folder}: {error}') from None


def _load(
    model: nn.Module,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    slot: str | None,
    trunk: nn.Module,
) -> nn.Module:
    checked(dict(config), Entries, CONFIG)
    cls, form = _method_for(config)
    with _in_one_line(CONFIG):
        _check_entries(config, form)
    parts = _sorted(tensors, form)
    if not parts.layers:
        raise PETLError(f'no tensor is called like one of {form.kind}')
    module, site_map = locate(trunk, cls(), True)
    prefix = _path_of(model, module)
    chosen, kinds = _chosen(model, module, site_map, prefix, cls, parts.layers)
    layers = [
        PeftLayer(
            name,
            name.removeprefix(prefix),
            found,
            _kernel_of(model.get_submodule(name)),
        )
        for name, found in parts.layers.items()
    ]
    with _in_one_line(f'{CONFIG} and its tensors'):
        args = form.arguments(config, layers)
    if not isinstance(site_map, LeafMap):
        args['targets'] = kinds
    method = build_method({'type': cls.__name__, **args})
    paths = [layer.path for layer in layers]
    before = {id(r): set(r.slots) for _, _, r in injections(model)}
    head = _heads(parts.plain, prefix, config)
    inject(trunk, method, slot=slot, layers=paths, head=head)
    try:
        _, record = injection_of(module)
        name = next(n for n in record.slots if n not in before.get(id(record), ()))
        bias = config.get('bias', 'none') or 'none'
        if bias != 'none':
            only = None if bias == 'all' else paths
            inject(trunk, _bias_method(), layers=only)
        for layer in layers:
            site = chosen[layer.name]
            delta = module.get_submodule(f'{site.path}.{name}')
            with _in_one_line(layer.name):
                form.load(delta, layer, parts.shared)
        _fill_plain(model, parts.plain)
    except BaseException:
        for _, inner, record in injections(model):
            new = [n for n in record.slots if n not in before.get(id(record), ())]
            for name in reversed(new):
                eject(inner, name)
        raise
    return model


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Say in a line that what a file holds is not what its type holds."""
    try:
        yield
    except PETLError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        said = ' '.join(str(error).split())[:160]
        raise PETLError(f'{what} cannot be read: {said}') from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    pickled = path.with_suffix('.bin')
    if not path.is_file() and pickled.is_file():
        raise PETLError(
            f'{pickled} is a pickle, which can run code; save the adapter with '
            'safe_serialization=True'
        )
    data = read_bytes(path, 'adapter', sys.maxsize - 1)
    try:
        tensors = load(data)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise PETLError(f'{path} is damaged or no safetensors ({error})') from None
    try:
        check_values(tensors)
    except PETLError as error:
        raise PETLError(f'{path}: {error}') from None
    return tensors


def _method_for(config: Mapping[str, Any]) -> tuple[type[Method], PeftFormat]:
    kind = str(config.get('peft_type') or '').upper()
    for cls in registered_methods().values():
        if cls.peft is not None and cls.peft.kind == kind and cls.peft.fits(config):
            return cls, cls.peft
    known = ', '.join(peft_types())
    raise PETLError(
        f'peft_type is {config.get("peft_type")!r}, which no method here is one to one '
        f'with; it can be {known}'
    )


def _check_entries(config: Mapping[str, Any], form: PeftFormat) -> None:
    """Refuse what has no equal, and tell of what acts in training alone."""
    why = form.why_not(config)
    if why:
        raise PETLError(f'this {form.kind} adapter has no equal here: {why}')
    if config.get('fan_in_fan_out'):
        raise PETLError('fan_in_fan_out=True is of Conv1D layers, and only Linears are')
    known = EVERY_TYPE | {*form.reads, *form.idle, *form.training, 'fan_in_fan_out'}
    for entry, value in config.items():
        if entry not in known and value not in (None, False, 0, '', [], {}):
            raise PETLError(f'{entry}={value!r} of {form.kind} has no equal here')
        if entry in form.training and value:
            warnings.warn(
                f'{entry}={value!r} acts in training only, and there is none here',
                stacklevel=4,
            )


def _sorted(tensors: Mapping[str, Tensor], form: PeftFormat) -> Sorted:
    layers: dict[str, dict[str, Tensor]] = {}
    shared, plain = {}, {}
    suffixes = sorted(form.names, key=len, reverse=True)
    for key, value in tensors.items():
        if key in form.shared:
            shared[key] = value
            continue
        if not key.startswith(PREFIX):
            raise PETLError(f'{key} does not begin with {PREFIX!r}')
        name = key.removeprefix(PREFIX)
        suffix = next((s for s in suffixes if name.endswith(f'.{s}')), None)
        if suffix is not None:
            layers.setdefault(name.removesuffix(f'.{suffix}'), {})[suffix] = value
        elif '.original_module.' not in name:
            for wrapper in ('.base_layer.', '.modules_to_save.'):
                name = name.replace(wrapper, '.')
            plain[name] = value
    lacking = [key for key in form.shared if key not in shared]
    if lacking:
        raise PETLError(f'the adapter lacks {lacking[0]}')
    return Sorted(layers, shared, plain)


def _path_of(model: nn.Module, module: nn.Module) -> str:
    """Path of a trunk in a model with the dot behind it, empty for the model itself."""
    path = next(path for path, part in model.named_modules() if part is module)
    return f'{path}.' if path else ''


def _chosen(
    model: nn.Module,
    module: nn.Module,
    site_map: Any,
    prefix: str,
    cls: type[Method],
    names: Iterable[str],
) -> tuple[dict[str, Site], tuple[str, ...]]:
    """The site of each Linear that is named, and the kinds of these.

    Raises:
        PETLError: A name is none of a Linear that the method can act at as a whole.
    """
    offered = tuple(site_map.sites_of(module))
    convolves = cls.peft is not None and cls.peft.convolves
    rows = linear_rows(module, site_map, offered, convolves)
    whole = {
        f'{prefix}{path}': site
        for path, found in rows.items()
        for site, (start, stop) in found.items()
        if (start, stop) == (0, rows_of(module.get_submodule(path)))
    }
    modules = dict(model.named_modules())
    chosen = {}
    for name in names:
        site = whole.get(name)
        if site is None:
            if name not in modules:
                raise PETLError(
                    f'there is no {name} in {class_name(type(model))}.'
                    f'{nearest(name, whole)} Give the model that the adapter was '
                    'trained on'
                )
            why = _why_not_at(modules[name], cls, convolves)
            raise PETLError(
                f'{cls.__name__} of peft has no place at {name} '
                f'({type(modules[name]).__name__}){why}; in {class_name(type(model))} '
                f'it can be at {_places(whole)}'
            )
        chosen[name] = site
    return chosen, tuple(dict.fromkeys(site.kind for site in chosen.values()))


def _why_not_at(layer: nn.Module, cls: type[Method], convolves: bool) -> str:
    """What is wrong with a convolution, in words behind its class; else empty."""
    if not isinstance(layer, CONVOLUTIONS):
        return ''
    if not convolves:
        return f': {cls.__name__} is read at Linears, not at convolutions'
    if why := why_no_pair(layer):
        return f': {why}, and the two convolutions of peft are no change of its weight'
    return ': no site of the trunk is all of this convolution'


def _places(whole: Mapping[str, Site]) -> str:
    if not whole:
        return 'no layer: adapters are read at layers of the trunk, and none serves'
    return f'layers such as {shorten(list(whole), 3)}'


def _heads(
    plain: Mapping[str, Tensor], prefix: str, config: Mapping[str, Any]
) -> list[str]:
    """Paths in the trunk of what the adapter trained as a whole."""
    saved = tuple(config.get('modules_to_save') or ())
    owners_of = {key.rpartition('.')[0] for key in plain}
    found = {
        path
        for path in owners_of
        for name in saved
        if path == name or path.startswith(f'{name}.') or f'.{name}.' in f'.{path}.'
    }
    return sorted(p.removeprefix(prefix) for p in found if p.startswith(prefix))


def _bias_method() -> Method:
    """The method that trains what ``bias`` of peft's does."""
    for name, cls in registered_methods().items():
        if cls.peft_bias is not None:
            return build_method({'type': name, **cls.peft_bias})
    raise PETLError('no method trains biases')


@torch.no_grad()
def _fill_plain(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write heads and biases, where these are the model's and no frozen base."""
    owner = owners(model)
    state = {plain_key(k): (k, v) for k, v in model.state_dict().items()}
    for name, value in values.items():
        if name not in state:
            raise PETLError(f'the adapter holds {name}, which the model does not have')
        key, own = state[name]
        if owner.get(key) is Owner.BASE:
            if value.shape == own.shape and torch.equal(value.to(own), own):
                continue  # `bias='all'` saves biases that never train, too
            raise PETLError(
                f'the adapter holds {name}, which is frozen here; name its module in '
                'modules_to_save'
            )
        if value.shape != own.shape:
            raise PETLError(
                f'{name} has shape {tuple(value.shape)} in the adapter and '
                f'{tuple(own.shape)} in the model; build it with as many classes'
            )
    for name, value in values.items():
        state[name][1].copy_(value)


# ------------------------------------------------------------------------ write


def save_peft(
    model: nn.Module,
    folder: str | os.PathLike,
    slot: str | None = None,
    base_model: str | None = None,
) -> Path:
    """Write a slot, with the heads, as an adapter that peft loads.

    Args:
        model: An injected model. Paths in the files are those of this object, which is
            what ``peft.PeftModel.from_pretrained`` is to be given, without the method.
        folder: Where to; made where it is missing.
        slot: The method; may be left out where there is one, with or without one that
            trains biases beside it.
        base_model: Name or folder of the base model, for ``base_model_name_or_path``.

    Returns:
        The folder. Both files are whole or as they were before.

    Raises:
        PETLError: Nothing of peft's computes the same: why not.
    """
    module, record = injection_of(model)
    check_unmoved(module, record)
    name, biased = _slots_of(record, slot)
    method = record.slots[name].method
    form = type(method).peft
    if form is None:
        known = sorted(n for names in peft_types().values() for n in names)
        raise PETLError(
            f'{type(method).__name__} has no equal among the adapters of peft; these '
            f'have: {", ".join(known)}'
        )
    prefix = _path_of(model, module)
    linears = _tuned(module, record, name, prefix, form.convolves)
    adapter = form.write(method, linears)
    tensors = {
        f'{PREFIX}{path}.{key}': value
        for path, found in adapter.layers.items()
        for key, value in found.items()
    }
    heads, saved = _written_heads(model)
    bias, values = _written_biases(module, record, biased, prefix, linears)
    tensors |= {f'{PREFIX}{key}': value for key, value in {**heads, **values}.items()}
    tensors |= adapter.shared
    tensors = plain_copies(tensors)
    check_values(tensors)
    entries = {
        'peft_type': form.kind,
        'task_type': None,
        'base_model_name_or_path': base_model,
        'inference_mode': True,
        'target_modules': sorted(adapter.layers),
        'modules_to_save': saved or None,
        **({'bias': bias} if bias != 'none' else {}),
        **adapter.entries,
    }
    return _write(Path(folder), tensors, entries)


def _write(
    folder: Path, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]
) -> Path:
    from safetensors.torch import save

    text = json.dumps(to_data(entries), indent=2, ensure_ascii=False) + '\n'
    data = save(dict(tensors), metadata={'format': 'pt'})
    write_all({folder / TENSORS: data, folder / CONFIG: text.encode()})
    return folder


def _slots_of(record: Injection, slot: str | None) -> tuple[str, str | None]:
    """The slot that is written, and that of the biases beside it."""
    biased = [
        name
        for name, entry in record.slots.items()
        if type(entry.method).peft_bias is not None and name != slot
    ]
    others = [name for name in record.slots if name not in biased]
    if slot is None and len(others) == 1:
        return others[0], biased[0] if biased else None
    return pick_slot(record, slot), None


def _kernel_of(layer: nn.Module) -> tuple[int, ...]:
    """Extents of a convolution's kernel, empty of anything else."""
    return tuple(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else ()


def _tuned(
    module: nn.Module, record: Injection, name: str, prefix: str, convolves: bool
) -> list[TunedLinear]:
    """The Linears and convolutions of a slot with its deltas, in the order of sites."""
    sites = record.slots[name].sites
    rows = linear_rows(module, record.site_map, sites, convolves)
    inside = {site for found in rows.values() for site in found}
    outside = [site for site in sites if site not in inside]
    if outside:
        layer = module.get_submodule(outside[0].host)
        reason = 'it is no single Linear that the model calls'
        if outside[0].kind.startswith('layer.') and isinstance(layer, CONVOLUTIONS):
            reason = why_no_pair(layer) if convolves else 'it is a convolution'
        raise PETLError(
            f'{type(record.slots[name].method).__name__} acts at {outside[0]}, and '
            f'{reason}, so that no adapter of peft says it; choose other targets'
        )
    found = []
    for path, parts in rows.items():
        linear = module.get_submodule(path)
        cut = sorted((*span, site.path) for site, span in parts.items())
        deltas = tuple(
            (start, stop, module.get_submodule(f'{where}.{name}'))
            for start, stop, where in cut
        )
        width = linear.weight[0].numel(), rows_of(linear)
        found.append(TunedLinear(f'{prefix}{path}', *width, deltas, _kernel_of(linear)))
    return found


def _written_heads(model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """State of the heads by name, and the modules they are."""
    state = model.state_dict()
    names = [n for n, who in owners(model).items() if who is Owner.HEAD]
    modules = sorted({plain_key(name).rpartition('.')[0] for name in names})
    if '' in modules:
        name = next(name for name in names if '.' not in plain_key(name))
        raise PETLError(
            f'{name} trains as a head and lies in no module, so that modules_to_save '
            'cannot name it'
        )
    heads = {
        plain_key(key): value
        for key, value in state.items()
        if plain_key(key).rpartition('.')[0] in modules
    }
    return heads, modules


def _written_biases(
    module: nn.Module,
    record: Injection,
    slot: str | None,
    prefix: str,
    linears: Iterable[TunedLinear],
) -> tuple[str, dict[str, Tensor]]:
    """``bias`` of the config, and the biases by peft's names."""
    if slot is None:
        return 'none', {}
    tuned = {linear.path for linear in linears}
    values = {}
    for name, value in learnt_values(module, record, slot).items():
        path, _, last = f'{prefix}{name}'.rpartition('.')
        if last != 'bias':
            raise PETLError(
                f'{prefix}{name} trains beside the biases, and peft trains none such'
            )
        values[f'{path}.base_layer.bias' if path in tuned else f'{path}.bias'] = value
    return 'all', values
