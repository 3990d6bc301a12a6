"""Options on top of a config: dotted keys, held to what the config can take."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmpetl.config.known import SCOPES, arguments, registered, takes_text
from mmpetl.core import PETLError, suggest

OF_MMENGINE = (
    'activation_checkpointing',
    'auto_scale_lr',
    'cfg',
    'compile',
    'custom_hooks',
    'custom_imports',
    'data_preprocessor',
    'default_hooks',
    'default_scope',
    'efficient_conv_bn_eval',
    'env_cfg',
    'experiment_name',
    'find_unused_parameters',
    'launcher',
    'load_from',
    'log_level',
    'log_processor',
    'model',
    'model_wrapper_cfg',
    'optim_wrapper',
    'param_scheduler',
    'randomness',
    'resume',
    'runner_type',
    'strategy',
    'sync_bn',
    'test_cfg',
    'test_dataloader',
    'test_evaluator',
    'train_cfg',
    'train_dataloader',
    'tta_model',
    'tta_pipeline',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
    'vis_backends',
    'visualizer',
    'work_dir',
)
OF_OURS = (
    'batch',
    'cache_features',
    'dataset',
    'deepspeed',
    'offload_activations',
    'on_bad_sample',
    'on_damaged_jpeg',
    'phases',
    'preprocessing',
    'primary',
    'processes',
    'protocol',
    'published',
    'shard_base',
    'stage',
    'timm',
    'tune',
)
"""Keys at the top of a config that something reads, though a config may lack them."""

LOOPS = ('train_cfg', 'val_cfg', 'test_cfg')
BY_RUNNER = ('runner', 'dataloader', 'evaluator')
"""Arguments of a loop that the Runner gives, and no config."""
LENGTHS = {'max_epochs': 'epochs', 'max_iters': 'iterations'}
"""Arguments that say how long a training is, and what they count."""
LOADER = (
    'batch_sampler batch_size collate_fn dataset drop_last generator '
    'multiprocessing_context num_batch_per_epoch num_workers persistent_workers '
    'pin_memory pin_memory_device prefetch_factor sampler shuffle timeout '
    'worker_init_fn'
).split()
WRAPPER = ('optimizer', 'paramwise_cfg', 'constructor')
"""Keys of ``optim_wrapper`` that its constructor takes out."""
UNTYPED = {
    'val_cfg': 'ValLoop',
    'test_cfg': 'TestLoop',
    'optim_wrapper': 'OptimWrapper',
    'log_processor': 'LogProcessor',
}
"""What the Runner builds of a node that names no type."""
ENVIRONMENT = ('cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit')
SCALING = ('base_batch_size', 'enable')
ALWAYS = ('type', '_scope_', '_delete_', 'priority', 'init_cfg', 'by_epoch')
"""Keys that builders take out before a class sees them."""
BEFORE = ('published', 'timm', 'tune')
"""Keys of a recipe that are written out, and gone, before options are laid over it."""
SCHEDULER = ('convert_to_iter_based',)


def merge(config: Any, options: Mapping[str, Any]) -> None:
    """Override values of a config by dotted keys.

    Text that spells a number becomes one where the config holds a number.

    Raises:
        PETLError: A key is unknown, leads below something that has no keys, past a
            list's end, or below what another option sets, text stands where a number is
            wanted, or another type takes not all keys of its node.
    """
    options = {_key(key): value for key, value in options.items()}
    _check_apart(options)
    numbers = {
        key: _numbers(_found(config, key.split('.')), value, key, config)
        for key, value in options.items()
    }
    new = [
        path
        for key, value in numbers.items()
        for path in _missing(config, key.split('.'), value)
    ]
    try:
        config.merge_from_dict(numbers)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        reason = ' '.join(str(error.args[0] if error.args else error).split())
        raise PETLError(
            f'the options {", ".join(options)} do not fit the config: {reason[:200]}'
        ) from None
    for path in new:
        _check_new(config, path)
    for path in _retyped(options):
        node = _found(config, path)
        for name in list(node) if isinstance(node, dict) else ():
            _check_taken(config, [*path, name])


def _check_apart(options: Mapping[str, Any]) -> None:
    """Raise PETLError where one option leads below the value of another."""
    for key, value in options.items():
        below = next((other for other in options if other.startswith(f'{key}.')), None)
        if below and not isinstance(value, Mapping | list | tuple):
            raise PETLError(
                f'{key} is to be {value!r}, and {below} leads below it; leave one out'
            )


def _retyped(options: Mapping[str, Any]) -> Iterator[list[str]]:
    """Paths of nodes to which options give a type; keys of the old one may remain."""
    for key, value in options.items():
        *above, name = key.split('.')
        if name == 'type':
            yield above
        elif isinstance(value, Mapping):
            inner = {str(k): v for k, v in value.items()}
            for path in () if inner.get('_delete_') else _retyped(inner):
                yield [*above, name, *path]


def _key(key: Any) -> str:
    if not isinstance(key, str) or not key or '' in key.split('.'):
        raise PETLError(
            f'the option {key!r} is no dotted key of a config; write it as '
            'train_cfg.max_epochs'
        )
    return key


_NOTHING = object()


def _child(node: Any, part: str) -> Any:
    if isinstance(node, dict):
        # As it is written: an attribute of a lazy config would import a class.
        return dict.__getitem__(node, part) if part in node else _NOTHING
    if isinstance(node, list | tuple) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    return _NOTHING


def _found(config: Any, parts: list[str]) -> Any:
    """What stands at a key; ``_NOTHING`` where nothing does."""
    node = _as_dict(config)
    for part in parts:
        node = _child(node, part)
        if node is _NOTHING:
            break
    return node


def _as_dict(config: Any) -> Any:
    return getattr(config, '_cfg_dict', config)


def _missing(config: Any, parts: list[str], value: Any) -> Iterator[list[str]]:
    """Paths of keys that a config lacks, and that an option will put there."""
    node = _as_dict(config)
    for number, part in enumerate(parts):
        if not isinstance(node, dict | list | tuple):
            return
        below = _child(node, part)
        if below is _NOTHING:
            if isinstance(node, dict):
                yield parts[: number + 1]
                yield from _inside(value, parts)
            return
        node = below
    if isinstance(node, dict) and isinstance(value, Mapping):
        if not value.get('_delete_'):
            for key, item in value.items():
                yield from _missing(config, [*parts, str(key)], item)
            return
    yield from _inside(value, parts)


def _inside(value: Any, path: list[str]) -> Iterator[list[str]]:
    """Paths of all keys within a value that becomes a part of a config as it is."""
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _inside(item, [*path, str(i)])
    for key, item in value.items() if isinstance(value, Mapping) else ():
        if key != '_delete_':
            yield [*path, str(key)]
            yield from _inside(item, [*path, str(key)])


def _numbers(old: Any, new: Any, key: str, config: Any) -> Any:
    """An option with its numbers as such, where the config holds numbers."""
    if isinstance(old, dict) and isinstance(new, Mapping):
        return {
            name: _numbers(_child(old, str(name)), value, f'{key}.{name}', config)
            for name, value in new.items()
        }
    if _are_numbers(old) and isinstance(new, list | tuple):
        pairs = zip(old, new, strict=True) if len(old) == len(new) else ()
        cast = [_numbers(a, b, f'{key}.{i}', config) for i, (a, b) in enumerate(pairs)]
        return type(new)(cast) if cast else new
    wanted = isinstance(old, int | float) and not isinstance(old, bool)
    if not (wanted and isinstance(new, str)):
        return new
    for kind in (int, float):
        try:
            value = kind(new)
        except ValueError:
            continue
        if not isinstance(value, float) or not math.isnan(value):
            return value
    *above, name = key.split('.')
    parent = _found(config, above)
    kinds = _kinds(parent, config) if isinstance(parent, dict) else []
    if any(takes_text(kind, name) for kind in kinds):
        return new
    raise PETLError(f'{key} needs a number, as {old!r} in the config; got {new!r}')


def _are_numbers(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )


def _kinds(node: Any, config: Any, place: str = '') -> list[Any]:
    """What the ``type`` of a node stands for; empty where that is not known.

    Args:
        node: The node.
        config: The config.
        place: Its key, where it is at the top of the config.
    """
    kind = _type_of(node, place)
    if callable(kind):
        return [kind]
    if not isinstance(kind, str):
        return []
    scope = str(config.get('default_scope') or 'mmengine')
    if place in LOOPS:
        import mmengine.runner  # noqa: F401  registers its loops

        return registered(kind, scope, of='LOOPS', quick=True)
    return registered(kind, scope)


def _type_of(node: Any, place: str) -> Any:
    """The ``type`` of a node, or that which the Runner takes where it says none."""
    kind = _child(node, 'type')
    if kind is not _NOTHING:
        return kind
    if place == 'train_cfg' and 'by_epoch' in node:
        by_epoch = _child(node, 'by_epoch')
        return 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    return UNTYPED.get(place, _NOTHING)


def _check_new(config: Any, path: list[str]) -> None:
    """Refuse a key that nothing reads."""
    *above, name = path
    if not above and name in BEFORE:
        raise PETLError(
            f'{".".join(path)} acts on a recipe before options are laid over it; '
            'change what it writes out'
        )
    if not above:
        known = {*OF_MMENGINE, *OF_OURS, *_as_dict(config)} - {name}
        if name not in (*OF_MMENGINE, *OF_OURS):
            raise PETLError(
                f'the config has no key {name!r}, and nothing reads one.'
                f'{suggest(name, known)} Keys: {", ".join(sorted(known))}'
            )
        return
    _check_taken(config, path)


def _check_taken(config: Any, path: list[str]) -> None:
    """Refuse a key that the class of its node does not take."""
    *above, name = path
    node = _found(config, above)
    known = _accepted(node, above, config)
    if known is None or name in known:
        return
    there = [key for key in node if key != name]
    if above == ['train_cfg'] and name in LENGTHS and known & {*LENGTHS}:
        (right,) = known & {*LENGTHS}
        raise PETLError(
            f'{".".join(path)}: {_name_of(node, above)} counts {LENGTHS[right]}; give '
            f'train_cfg.{right}, or, to count {LENGTHS[name]}, the whole of train_cfg '
            'with _delete_=True'
        )
    near = suggest(name, {*known, *there} - {'self', 'type'})
    raise PETLError(
        f'{".".join(path)}: {_name_of(node, above)} takes no {name!r}.{near} It '
        f'takes: {", ".join(sorted(known - {*ALWAYS, "self"}))}'
    )


def _of_saving(kind: Any) -> set[str] | None:
    """Arguments of a hook that saves checkpoints; None of anything else.

    It takes others too, which a saver of files that ours is not would read.
    """
    from mmengine.hooks import CheckpointHook

    if not (inspect.isclass(kind) and issubclass(kind, CheckpointHook)):
        return None
    inits = [vars(base).get('__init__') for base in kind.__mro__ if base is not object]
    return {
        p.name
        for init in filter(None, inits)
        for p in inspect.signature(init).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def _name_of(node: Any, above: list[str]) -> str:
    kind = _type_of(node, above[0] if len(above) == 1 else '')
    if kind is _NOTHING:
        return '.'.join(above)
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def _accepted(node: Any, above: list[str], config: Any) -> set[str] | None:
    """Keys that a node may have; None where any may be right."""
    if not isinstance(node, dict):
        return None
    own: set[str] | None = None
    place = above[0] if len(above) == 1 else ''
    if place:
        if above[0].endswith('_dataloader'):
            own = set(LOADER)
        elif above[0] == 'optim_wrapper':
            own = {*WRAPPER}
        elif above[0] == 'randomness':
            return {'seed', 'deterministic', 'diff_rank_seed'}
        elif above[0] == 'env_cfg':
            return {*ENVIRONMENT}
        elif above[0] == 'auto_scale_lr':
            return {*SCALING}
    if _type_of(node, place) is _NOTHING:
        return None if own is None else own | {*ALWAYS}
    kinds = _kinds(node, config, place)
    taken = [arguments(k) or _of_saving(k) for k in kinds]
    if not kinds or None in taken:
        return None
    extra = SCHEDULER if above[0] == 'param_scheduler' else ()
    known = set().union(*taken, own or (), ALWAYS, extra)
    if place in LOOPS:
        # The Runner takes it where it picks the loop, and beside a type refuses it.
        known -= {*BY_RUNNER, *(('by_epoch',) if 'type' in node else ())}
    return known


COUNTS: Mapping[str, int] = {
    **{
        f'{phase}_dataloader.{key}': least
        for phase in ('train', 'val', 'test')
        for key, least in (('batch_size', 1), ('num_workers', 0))
    },
    'train_cfg.max_epochs': 1,
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'optim_wrapper.accumulative_counts': 1,
    'log_processor.window_size': 1,
}
"""Whole numbers and the least that each may be."""

FLOATING = ('train_cfg.val_interval',)
"""Those of them that configs of upstream calculate, and MMEngine compares alone."""

MOST_WORKERS = 512

MAPPINGS = (
    'model',
    'data_preprocessor',
    'default_hooks',
    'env_cfg',
    'log_processor',
    'model_wrapper_cfg',
    'optim_wrapper',
    'optim_wrapper.optimizer',
    'randomness',
    'visualizer',
    *(
        f'{phase}_{part}'
        for phase in ('train', 'val', 'test')
        for part in ('cfg', 'dataloader', 'dataloader.sampler')
    ),
)
"""Keys that hold a mapping, or an object that a script has built, or None."""

LISTS = (
    'custom_hooks',
    'vis_backends',
    *(f'{phase}_dataloader.dataset.pipeline' for phase in ('train', 'val', 'test')),
)
"""Keys that hold a list of mappings, or None."""

PLAIN = (bool, int, float, str, bytes)


def _check_shapes(config: Any) -> None:
    """Refuse plain values where a mapping or a list belongs."""
    for key in (*MAPPINGS, *LISTS):
        value = _found(config, key.split('.'))
        wanted = 'a list of dict(type=...)' if key in LISTS else 'dict(...)'
        wrong = (*PLAIN, list, tuple) if key in MAPPINGS else (*PLAIN, dict)
        if value is not _NOTHING and isinstance(value, wrong):
            raise PETLError(f'{key} needs {wanted}, got {value!r}')


MEASURES = ('optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay')
"""Finite numbers of at least 0."""

MOST_SEED = 2**32 - 1


def check_values(config: Any) -> None:
    """Hold the numbers that every run needs to their ranges.

    Raises:
        PETLError: A batch size, count, rate or seed that nothing can run with, a loop
            with keys that it does not take, or an optimizer that is not registered.
    """
    _check_shapes(config)
    for key, least in COUNTS.items():
        value = _found(config, key.split('.'))
        own_batches = f'{key.partition(".")[0]}.batch_sampler'
        if value is _NOTHING or (
            value is None and _found(config, own_batches.split('.')) is not _NOTHING
        ):
            continue
        if isinstance(value, float) and value.is_integer() and key in FLOATING:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise PETLError(f'{key} needs a whole number >= {least}, got {value!r}')
        if key.endswith('num_workers') and value > MOST_WORKERS:
            raise PETLError(
                f'{key} is {value:,}, each of them a process; at most {MOST_WORKERS} '
                'are begun'
            )
    for key in MEASURES:
        value = _found(config, key.split('.'))
        if value is _NOTHING or value is None:
            continue
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(value) or value < 0:
            raise PETLError(f'{key} needs a finite number >= 0, got {value!r}')
    norm = _found(config, ['optim_wrapper', 'clip_grad', 'max_norm'])
    if isinstance(norm, int | float) and not norm > 0:
        # Of a negative one, gradients would turn around.
        raise PETLError(f'optim_wrapper.clip_grad.max_norm is > 0, got {norm!r}')
    resume = _found(config, ['resume'])
    if not (resume is _NOTHING or resume is None or isinstance(resume, bool)):
        raise PETLError(f'resume is true or false, got {resume!r}; see load_from')
    seed = _found(config, ['randomness', 'seed'])
    if seed is not _NOTHING and seed is not None:
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        if not whole or not 0 <= seed <= MOST_SEED:
            raise PETLError(
                f'randomness.seed needs a whole number from 0 to 2^32 - 1, got {seed!r}'
            )
    _check_loops(config)
    _check_optimizer(config)


def _check_loops(config: Any) -> None:
    """Hold the keys of each loop to what it takes, whoever has written them."""
    for place in LOOPS:
        node = _found(config, [place])
        if not isinstance(node, dict):
            continue
        for name in node:
            # Some configs of upstream have a type beside it, and are for tests alone.
            if name != 'by_epoch':
                _check_taken(config, [place, name])


def _check_optimizer(config: Any) -> None:
    kind = _found(config, ['optim_wrapper', 'optimizer', 'type'])
    node = config.get('custom_imports') or {}
    if not isinstance(node, Mapping):
        raise PETLError(f'custom_imports needs dict(imports=[...]), got {node!r}')
    imports = node.get('imports') or ()
    imports = [imports] if isinstance(imports, str) else imports
    ours = all(str(name).partition('.')[0] in SCOPES for name in imports)
    # What other modules register is theirs to know.
    if not isinstance(kind, str) or not ours or '.' in kind:
        return
    scope = str(config.get('default_scope') or 'mmengine')
    if scope not in SCOPES:
        return
    import mmengine.optim  # noqa: F401  registers those of torch
    from mmengine.registry import OPTIMIZERS

    if not registered(kind, scope, of='OPTIMIZERS', quick=True):
        raise PETLError(
            f'optim_wrapper.optimizer.type: there is no optimizer {kind!r}.'
            f'{suggest(kind, [n for n in OPTIMIZERS.module_dict if _plain(n)])}'
        )


def _plain(name: str) -> bool:
    return re.fullmatch(r'[A-Za-z0-9]+', name) is not None
