"""What a checkpoint must hold for a run to go on from it as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from torch import Tensor, nn

from mmpetl.core import PETLError
from mmpetl.core.boundary import Count, checked
from mmpetl.core.delta_file import check_values

LOOKED_AT = 2000
"""Samples of a training set, evenly spread, that its digest is made of."""


class Progress(msgspec.Struct):
    """``meta``: how far the run is, its seed and its settings."""

    epoch: Count
    iter: Count
    seed: int | None = None
    cfg: str | None = None
    experiment_name: str | None = None


class Hub(msgspec.Struct):
    """``message_hub``: what MMEngine's log buffers hold."""

    log_scalars: dict[str, Any]
    runtime_info: dict[str, Any]
    resumed_keys: dict[str, bool]


class Generators(msgspec.Struct):
    """``rng``: the random generators of one process."""

    torch: Any
    cuda: list[Any]
    numpy: tuple[str, Any, int, int, float]
    python: tuple[int, list[int], float | None]


class Group(msgspec.Struct):
    """One group of parameters of an optimizer."""

    params: list[int]


class Optimizer(msgspec.Struct):
    """The optimizer."""

    state: dict[int, dict[str, Any]]
    param_groups: list[Group]


class Data(msgspec.Struct):
    """``data``: what the training set was."""

    samples: int
    digest: str | None = None


class RunFile(msgspec.Struct):
    """The parts of a checkpoint that resuming reads."""

    meta: Progress
    state_dict: dict[str, Any]
    message_hub: Hub
    optimizer: dict[str, Any] | None = None
    param_schedulers: list[dict[str, Any]] | dict[str, list[dict[str, Any]]] | None = (
        None
    )
    rng: list[Generators] | None = None
    epoch_rng: list[Generators] | None = None
    gradients: list[dict[str, Any]] | None = None
    validated: Count | None = None
    data: Data | None = None


class Kind(msgspec.Struct):
    """One method of a delta; its arguments are the method's to judge."""

    type: str


class DeltaFacts(msgspec.Struct):
    """``meta.mmpetl``: what the delta of a run's checkpoint belongs to."""

    format: int
    method: Kind | list[Kind]
    num_blocks: Count
    fingerprint: str
    base: str | None
    backbone: dict[str, Any] | None = None


class LoadedFile(msgspec.Struct):
    """The parts of a checkpoint that loading weights reads, where it is a run's."""

    state_dict: dict[str, Any]
    meta: dict[str, Any] | None = None
    ema_state_dict: dict[str, Any] | None = None


def check_loaded(checkpoint: Any, place: str) -> None:
    """Raise PETLError unless weights can be read off a checkpoint.

    A file that is a state itself, without ``state_dict`` and ``meta``, passes.
    """
    if not isinstance(checkpoint, Mapping):
        raise PETLError(
            f'{place} holds a {type(checkpoint).__name__}, and no checkpoint'
        )
    if 'state_dict' in checkpoint or 'meta' in checkpoint:
        checked(_fields(checkpoint, LoadedFile), LoadedFile, place)
        _check_tensors(checkpoint['state_dict'], f'{place}: state_dict')
        average = checkpoint.get('ema_state_dict')
        if average is not None:
            _check_tensors(average, f'{place}: ema_state_dict')
        facts = (checkpoint.get('meta') or {}).get('mmpetl')
        if facts is not None:
            checked(facts, DeltaFacts, f'{place}: meta.mmpetl')
        state = checkpoint['state_dict']
    else:
        state = checkpoint
    _check_names(state, place)


def check_resumable(checkpoint: Any, place: str, seed: int | None = None) -> list[str]:
    """Hold a checkpoint to what resuming needs.

    Args:
        checkpoint: As it was loaded.
        place: Its file, for messages.
        seed: That of the run now; None where none is asked for.

    Returns:
        Lines to log: what cannot be taken up again.

    Raises:
        PETLError: Something is missing or is something else; the message says where.
    """
    check_loaded(checkpoint, place)
    try:
        given = checked(_fields(checkpoint, RunFile), RunFile, place)
    except PETLError as error:
        raise PETLError(
            f'{error}; a run cannot go on from it, so name another (--resume FILE)'
        ) from None
    for name, value in given.message_hub.log_scalars.items():
        if not isinstance(value, HistoryBuffer):
            raise PETLError(
                f'{place}: message_hub.log_scalars.{name}: expected a HistoryBuffer, '
                f'got {type(value).__name__}'
            )
    was = given.meta.seed
    _check_names_of_files(given.message_hub.runtime_info, place)
    if seed is not None and was is not None and seed != was:
        raise PETLError(
            f'{place} is of a run with the seed {was}, and randomness.seed is {seed}; '
            f'resume with {was}, or begin another run in another work_dir'
        )
    _check_generators(given, place)
    marks = ('validated', 'epoch_rng', 'gradients')
    ours = 'mmpetl' in checkpoint['meta'] or any(mark in checkpoint for mark in marks)
    if given.rng is not None:
        return []
    if ours:
        raise PETLError(
            f'{place} cannot be resumed: it lacks rng, the random generators, so that '
            f'what follows would differ; load_from={place} takes its weights'
        )
    return [
        f'{place} holds no random generators, so what follows differs from a run that '
        'was not interrupted'
    ]


AVERAGED = 'module.'
"""What keys of MMEngine's average begin with."""


def check_average(checkpoint: Mapping[str, Any], model: nn.Module, place: str) -> None:
    """Hold MMEngine's average of the weights to the model that is to take it up.

    Args:
        checkpoint: One that :func:`check_loaded` let pass.
        model: The model, without wrappers.
        place: The file, for messages.

    Raises:
        PETLError: The average lacks a weight that the checkpoint has, or a value is of
            another shape or kind, or not finite.
    """
    average = checkpoint.get('ema_state_dict')
    if average is None:
        return
    place = f'{place}: ema_state_dict'
    for name in checkpoint['state_dict']:
        key = f'{AVERAGED}{name.removeprefix("module.")}'
        if key not in average:
            raise PETLError(f'{place} lacks {key}, so the run cannot go on from it')
    here = model.state_dict()
    expected = {f'{AVERAGED}{name}': value for name, value in here.items()}
    check_fits(average, expected, place)


def check_fits(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], place: str
) -> None:
    """Raise PETLError unless tensors have the shapes and kinds of those of their names.

    Args:
        tensors: What was loaded; one without a counterpart is held to be plain and
            finite alone.
        expected: Tensors that are to take them.
        place: Where they come from, for messages.
    """
    for name, value in tensors.items():
        if name in expected and value.shape != expected[name].shape:
            raise PETLError(
                f'{place}: {name} has shape {tuple(value.shape)}, wanted '
                f'{tuple(expected[name].shape)}; it is of another model'
            )
    try:
        check_values(tensors, expected)
    except PETLError as error:
        raise PETLError(f'{place}: {error}') from None


def check_run(
    checkpoint: Mapping[str, Any],
    place: str,
    runner: Any,
    saves: tuple[bool, bool] = (True, True),
) -> list[str]:
    """Compare a resumable checkpoint with the run that is to take it up.

    Args:
        checkpoint: One that :func:`check_resumable` let pass.
        place: Its file, for messages.
        runner: Its loop, optimizer and schedulers are built.
        saves: Whether the run saves its optimizer and its schedulers at all.

    Returns:
        Lines to log: what cannot be taken up again, and was never saved.

    Raises:
        PETLError: Optimizer, schedulers, place or data are those of another run, or its
            seed inside of an epoch.
    """
    said = []
    meta, loop = checkpoint['meta'], runner.train_loop
    was, seed = meta.get('seed'), _seed_of(runner)
    if was is not None and seed != was:
        what = (
            f'{place} is of a run with the seed {was}, and this one has drawn {seed}, '
            'which its data are in order by'
        )
        remedy = f'set randomness.seed={was}'
        if checkpoint.get('epoch_rng') or hasattr(loop, 'dataloader_iterator'):
            # What was seen of an epoch could not be told from what is to come.
            raise PETLError(f'{what}; {remedy}')
        said.append(f'{what}; for the order of an unbroken run, {remedy}')
    for what in ('epoch', 'iter'):
        most = getattr(loop, f'max_{what}s', None)
        if most is not None and meta[what] > most:
            raise PETLError(
                f'{place}: meta.{what} is {meta[what]}, and this run ends at {most}'
            )
    wanted = (
        ('optimizer', getattr(runner, 'optim_wrapper', None), saves[0]),
        ('param_schedulers', runner.param_schedulers or None, saves[1]),
    )
    for part, here, saved in wanted:
        if here is None or checkpoint.get(part) is not None:
            continue
        what = f'{place} lacks {part}'
        if saved:
            raise PETLError(
                f'{what}, so it cannot be resumed (best_* files hold weights alone); '
                f'--resume takes the newest, and load_from={place} its weights'
            )
        said.append(f'{what}, which the run does not save: it begins anew there')
    if checkpoint.get('optimizer') is not None:
        # Gradients that are pending may be those of the very first step.
        steps = 0 if any(checkpoint.get('gradients') or ()) else meta['iter']
        _check_optimizer(checkpoint['optimizer'], runner.optim_wrapper, place, steps)
    if checkpoint.get('param_schedulers') is not None:
        _check_schedulers(checkpoint['param_schedulers'], runner, place)
    _check_gradients(checkpoint.get('gradients') or (), runner.model, place)
    here = data_facts(loop.dataloader.dataset)
    there = checkpoint.get('data')
    if here and there and here != there:
        counts = (there['samples'], here['samples'])
        what = (
            f'is of a run on {counts[0]} training samples, these are {counts[1]}'
            if counts[0] != counts[1]
            else f'is of a run on other training samples or labels ({counts[0]} both)'
        )
        raise PETLError(
            f'{place} {what}; give the list of the run again, or begin another run in '
            f'another work_dir (load_from={place} takes its weights)'
        )
    return said


def _seed_of(runner: Any) -> int:
    """The seed of a run, given or drawn, as its first process has it."""
    differ = runner._randomness_cfg.get('diff_rank_seed')
    return runner.seed - runner.rank if differ else runner.seed


def data_facts(dataset: Any) -> dict[str, Any] | None:
    """Number of samples and a digest of what they are, without their folders.

    Args:
        dataset: A dataset; one that does not say its samples has no digest.

    Returns:
        None for one without a length.
    """
    try:
        samples = len(dataset)
    except TypeError:
        return None
    read = getattr(dataset, 'get_data_info', None)
    if read is None or not samples:
        return {'samples': samples, 'digest': None}
    digest = hashlib.sha256()
    step = max(1, samples // LOOKED_AT)
    for index in range(0, samples, step):
        digest.update(repr(_plain(read(index))).encode())
    return {'samples': samples, 'digest': digest.hexdigest()[:16]}


def _plain(value: Any, depth: int = 0) -> Any:
    """What a sample is, in words that are the same in every process and folder."""
    if isinstance(value, str):
        return value.replace('\\', '/').rpartition('/')[2]
    if isinstance(value, bool | int | float | bytes | type(None)):
        return value
    if hasattr(value, 'tolist') and hasattr(value, 'shape'):
        size = 1
        for side in value.shape:
            size *= side
        return value.tolist() if size <= 256 else tuple(value.shape)
    if depth < 6 and isinstance(value, Mapping):
        items = sorted((str(k), v) for k, v in value.items() if k != 'sample_idx')
        return [(k, _plain(v, depth + 1)) for k, v in items]
    if depth < 6 and isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value[:256]] + [len(value)]
    return type(value).__name__


def _fields(checkpoint: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The fields of a struct that are there, with ordered mappings as plain ones."""
    found = {}
    for name in kind.__struct_fields__:
        if name in checkpoint:
            value = checkpoint[name]
            found[name] = dict(value) if isinstance(value, dict) else value
    return found


def _check_names_of_files(info: Mapping[str, Any], place: str) -> None:
    """What the checkpoint hook takes up from the hub is of the type it writes."""
    kinds = {
        'last_ckpt': str | None,
        'best_ckpt': str | None,
        'best_metrics': list[str],
        'keep_ckpt_ids': list[Count],
        'outdated_ckpt_ids': list[Count],
    }
    for key, value in info.items():
        name = 'best_ckpt' if key.startswith('best_ckpt') else key
        if name in kinds:
            checked(value, kinds[name], f'{place}: message_hub.runtime_info.{key}')


def _check_names(state: Mapping[str, Any], place: str) -> None:
    for name in state:
        if not isinstance(name, str):
            raise PETLError(f'{place}: the state has the key {name!r}, wanted a name')


def _check_tensors(state: Mapping[str, Any], place: str) -> None:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise PETLError(
                f'{place}.{name}: expected a tensor, got {type(value).__name__}'
            )


def _check_generators(given: RunFile, place: str) -> None:
    size = torch.get_rng_state().numel()
    for field in ('rng', 'epoch_rng'):
        states = getattr(given, field)
        if states is None:
            continue
        if not states or (given.rng is not None and len(states) != len(given.rng)):
            raise PETLError(f'{place}: {field} is not one entry for each process')
        for number, state in enumerate(states):
            whole = (
                _is(state.torch, torch.uint8, size)
                and all(_is(s, torch.uint8) for s in state.cuda)
                and _is(state.numpy[1], torch.int64, 624)
                and state.numpy[0] == 'MT19937'
                and state.python[0] == 3
                and len(state.python[1]) == 625
                and all(0 <= n < 1 << 32 for n in state.python[1])
            )
            if not whole:
                raise PETLError(
                    f'{place}: {field}[{number}] is no state of the random generators'
                )


def _is(value: Any, dtype: torch.dtype, size: int | None = None) -> bool:
    fits = isinstance(value, Tensor) and value.dtype == dtype and value.dim() == 1
    return fits and (size is None or value.numel() == size)


MOMENTS = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer', 'square_avg')
"""Entries of an optimizer that have the shape of their parameter."""


def _keeps_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has something of each parameter after its first step."""
    group = optimizer.param_groups[0]
    return 'betas' in group or bool(group.get('momentum'))


def _check_optimizer(
    saved: Mapping[str, Any], wrapper: Any, place: str, steps: int
) -> None:
    """Raise PETLError unless a state fits one optimizer; several check themselves."""
    optimizer = getattr(wrapper, 'optimizer', None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    parts = {name: saved[name] for name in ('state', 'param_groups') if name in saved}
    given = checked(parts, Optimizer, f'{place}: optimizer')
    here = [len(group['params']) for group in optimizer.param_groups]
    there = [len(group.params) for group in given.param_groups]
    # The wrapper may keep one more group, of the settings alone.
    if there[: len(here)] != here:
        raise PETLError(
            f'{place}: the optimizer is of groups with {_short(there)} parameters, '
            f'this run has {_short(here)}; give the settings of the run again'
        )
    if not given.state and steps and _keeps_state(optimizer):
        raise PETLError(
            f'{place}: optimizer.state is empty after {steps} iterations, so what '
            f'follows would differ; load_from={place} takes its weights'
        )
    params = [p for group in optimizer.param_groups for p in group['params']]
    ids = [i for group in given.param_groups[: len(here)] for i in group.params]
    for index, param in zip(ids, params, strict=True):
        for key in MOMENTS:
            value = given.state.get(index, {}).get(key)
            if value is None:
                continue
            if not isinstance(value, Tensor) or value.shape != param.shape:
                what = (
                    tuple(value.shape)
                    if isinstance(value, Tensor)
                    else type(value).__name__
                )
                raise PETLError(
                    f'{place}: optimizer.state.{index}.{key} is {what}, wanted '
                    f'{tuple(param.shape)}; it is of another model'
                )


def _check_schedulers(saved: Any, runner: Any, place: str) -> None:
    here = runner.param_schedulers or []
    pairs = (
        [('param_schedulers', saved, here)]
        if isinstance(here, list)
        else [(f'param_schedulers.{k}', saved.get(k), v) for k, v in here.items()]
        if isinstance(saved, dict)
        else [('param_schedulers', None, [])]
    )
    for name, one, other in pairs:
        if not isinstance(one, list) or len(one) != len(other):
            count = len(one) if isinstance(one, list | dict) else 'no'
            raise PETLError(
                f'{place}: {name} are {count}, this run has {len(other)}; give the '
                'param_scheduler of the run again'
            )
        for number, (state, scheduler) in enumerate(zip(one, other, strict=True)):
            known = getattr(scheduler, 'state_dict', dict)()
            missing = sorted(set(known) - set(state))
            if missing:
                raise PETLError(f'{place}: {name}.{number} lacks {missing[0]}')


def _check_gradients(saved: Sequence[Any], model: nn.Module, place: str) -> None:
    shapes = {n.removeprefix('module.'): p.shape for n, p in model.named_parameters()}
    for grads in saved:
        for name, grad in grads.items():
            if not isinstance(grad, Tensor) or grad.shape != shapes.get(name):
                raise PETLError(
                    f'{place}: gradients.{name} does not fit a parameter of the model'
                )


def _short(counts: Sequence[int]) -> str:
    text = ', '.join(map(str, counts[:4]))
    return f'{text}, ... ({len(counts)} groups)' if len(counts) > 4 else text


def folder_free(path: str | os.PathLike) -> str:
    """How much room there is where a file could not be written, for messages."""
    import shutil

    try:
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    except OSError:
        return ''
    return f' ({free / 2**20:.1f} MiB are free there)'
