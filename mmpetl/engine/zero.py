"""Training through DeepSpeed's ZeRO, whose checkpoints are those of any other run."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from torch import Tensor, nn, optim

from mmpetl.core import Injection, PETLError, injections, suggest
from mmpetl.core.errors import shorten
from mmpetl.core.fingerprint import converting
from mmpetl.core.injection import check_whole
from mmpetl.registry import MODEL_WRAPPERS

STAGES = (1, 2, 3)
"""1 shards the state of the optimizer, 2 gradients too, 3 all weights too."""

LEAST = (0, 19)
"""The first version of DeepSpeed that this was tried with."""

SAID_ELSEWHERE = {
    'train_batch_size': 'train_dataloader.batch_size',
    'train_micro_batch_size_per_gpu': 'train_dataloader.batch_size',
    'gradient_accumulation_steps': 'optim_wrapper.accumulative_counts',
    'gradient_clipping': 'optim_wrapper.clip_grad',
    'optimizer': 'optim_wrapper.optimizer',
    'scheduler': 'param_scheduler',
}
"""Settings of DeepSpeed that have a place in the configs of MMEngine."""

TAKEN = (
    'comms_logger',
    'communication_data_type',
    'flops_profiler',
    'gradient_predivide_factor',
    'memory_breakdown',
    'prescale_gradients',
    'steps_per_print',
    'wall_clock_breakdown',
    'zero_force_ds_cpu_optimizer',
    'zero_optimization',
)
"""Settings of DeepSpeed that may be given; others change what is trained."""

OF_ZERO = (
    'allgather_bucket_size',
    'allgather_partitions',
    'contiguous_gradients',
    'offload_optimizer',
    'offload_param',
    'overlap_comm',
    'reduce_bucket_size',
    'reduce_scatter',
    'stage',
    'stage3_max_live_parameters',
    'stage3_max_reuse_distance',
    'stage3_model_persistence_threshold',
    'stage3_param_persistence_threshold',
    'stage3_prefetch_bucket_size',
    'sub_group_size',
    'zero_hpz_partition_size',
)
"""Settings of ``zero_optimization`` that may be given: others lay weights out anew, so
that a checkpoint would gather something else."""

HALF = ('fp16', 'bf16', 'bfloat16', 'amp', 'torch_autocast')
"""Settings of DeepSpeed for weights or passes in less than float32."""

BY_ENTRY = (
    optim.ASGD,
    optim.Adadelta,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.SGD,
)
"""Optimizers that step each number by itself, so that parts of a tensor may step."""

WRAPPER = 'mmpetl.ZeroModel'


def zero_settings(asked: Any) -> dict[str, Any]:
    """The settings of DeepSpeed that the key ``deepspeed`` of a config stands for.

    Args:
        asked: A stage, 1, 2 or 3; or settings of DeepSpeed, a dict with
            ``zero_optimization.stage``.

    Raises:
        PETLError: It is neither, or says what a config says elsewhere.
    """
    if isinstance(asked, int) and not isinstance(asked, bool):
        asked = {'zero_optimization': {'stage': asked}}
    if not isinstance(asked, Mapping):
        raise PETLError(
            'deepspeed is a stage of ZeRO, 1, 2 or 3, or a dict of settings, as in '
            f'dict(zero_optimization=dict(stage=3)); got {asked!r}'
        )
    asked = dict(asked)
    zero = asked.get('zero_optimization')
    stage = zero.get('stage') if isinstance(zero, Mapping) else None
    if isinstance(stage, bool) or stage not in STAGES:
        raise PETLError(
            'deepspeed needs zero_optimization.stage (or the number alone), which is '
            f'1, 2 or 3; got {stage!r}'
        )
    for key, place in SAID_ELSEWHERE.items():
        if key in asked:
            raise PETLError(f'deepspeed.{key} is said by {place}; leave it out')
    for key in HALF:
        if key in asked:
            raise PETLError(
                f'deepspeed.{key} would hold deltas in less than float32, in which '
                'they do not learn well; leave it out'
            )
    for key in asked:
        if key not in TAKEN:
            raise PETLError(
                f'deepspeed takes no {key!r}.{suggest(key, TAKEN)} It takes: '
                f'{", ".join(TAKEN)}'
            )
    for key in zero:
        if key not in OF_ZERO:
            raise PETLError(
                f'deepspeed.zero_optimization takes no {key!r}.{suggest(key, OF_ZERO)} '
                f'It takes: {", ".join(OF_ZERO)}'
            )
    for part in ('offload_param', 'offload_optimizer'):
        where = zero.get(part) or {}
        if isinstance(where, Mapping) and where.get('device') == 'nvme':
            raise PETLError(
                f'deepspeed.zero_optimization.{part} on nvme is not supported, as a '
                "checkpoint could not be gathered from there; take device='cpu'"
            )
    return {**asked, 'zero_optimization': dict(zero)}


def check_runner(config: Any) -> None:
    """Raise PETLError where a config asks for MMEngine's Runner of strategies.

    It builds models and resumes before hooks begin, and its strategy for DeepSpeed
    neither asks them what to save nor shows them what was loaded.
    """
    flexible = _last(config.get('runner_type') or '') == 'FlexibleRunner'
    if flexible or config.get('strategy'):
        asked = 'runner_type is FlexibleRunner' if flexible else 'strategy is given'
        raise PETLError(
            f'{asked}: the Runner of MMEngine that takes strategies builds and loads '
            'models before our hooks begin, so that no checkpoint would be held to the '
            'base; leave runner_type and strategy out, and say deepspeed = 3 (or 1, 2, '
            'or a dict of its settings) or shard_base = True'
        )


def check_zero(config: Any, processes: int | None = None) -> None:
    """Raise PETLError where a config asks for DeepSpeed in a way that cannot be.

    Args:
        config: A config; one that does not ask for it passes.
        processes: How many train, where it is known.
    """
    asked = config.get('deepspeed')
    if asked is None or asked is False:
        return
    zero_settings(asked)
    if importlib.util.find_spec('deepspeed') is None:
        raise PETLError(
            'deepspeed is asked for and not installed: pip install "deepspeed>='
            f'{_dotted(LEAST)}", or shard_base = True (--shard-base), which needs '
            'torch alone'
        )
    there = version('deepspeed')
    if tuple(int(n) for n in re.findall(r'\d+', there)[:2]) < LEAST:
        raise PETLError(
            f'deepspeed {there} is installed, and {_dotted(LEAST)} or newer is needed: '
            f'pip install "deepspeed>={_dotted(LEAST)}"'
        )
    if processes is not None and processes < 2:
        raise PETLError(
            'deepspeed shards over the processes of a run, and this one has one; '
            'start several (--gpus 2, or tools/dist_train.sh CONFIG 2)'
        )
    if config.get('shard_base'):
        raise PETLError(
            'deepspeed and shard_base are two ways to shard a base; leave one out'
        )
    if config.get('cache_features'):
        raise PETLError(
            'deepspeed shards a base that cache_features does not run; leave one out'
        )
    if config.get('compile'):
        raise PETLError('deepspeed is not supported beside compile; leave one out')
    if config.get('offload_activations'):
        raise PETLError(
            'deepspeed is not supported beside offload_activations, which would take '
            'the weights that it gathers for activations; leave one out'
        )
    given = (config.get('model_wrapper_cfg') or {}).get('type') or ''
    if _last(given) not in ('', *REPLACED, WRAPPER.partition('.')[2]):
        raise PETLError(
            f'deepspeed takes the place of the wrapper of the model, and '
            f'model_wrapper_cfg.type is {_last(given)}; leave model_wrapper_cfg out'
        )
    optimizer = config.get('optim_wrapper') or {}
    if isinstance(optimizer, Mapping):
        kind = _last(optimizer.get('type') or 'OptimWrapper')
        if kind != OptimWrapper.__name__:
            raise PETLError(_other_wrapper(kind))


REPLACED = (
    'DistributedDataParallel',
    'MMDistributedDataParallel',
    'PETLDistributedDataParallel',
)
"""Wrappers of a model that average gradients, which ZeRO does itself."""


def _dotted(numbers: tuple[int, ...]) -> str:
    return '.'.join(map(str, numbers))


def _last(kind: Any) -> str:
    """The name of a class, or of its config, without its scope."""
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def _other_wrapper(kind: str) -> str:
    amp = ' (without --amp)' if kind == 'AmpOptimWrapper' else ''
    return (
        f'deepspeed makes the steps itself, in float32, and optim_wrapper is a {kind}; '
        f'take OptimWrapper{amp}, or shard_base in place of deepspeed'
    )


def check_trainable(model: nn.Module, wrapper: Any) -> None:
    """Raise PETLError where ZeRO would train something else than was asked for.

    Args:
        model: A model, without wrappers.
        wrapper: Its optimizer wrapper, as it was built.
    """
    if type(wrapper) is not OptimWrapper:
        raise PETLError(_other_wrapper(type(wrapper).__name__))
    kind = type(wrapper.optimizer)
    if kind not in BY_ENTRY:
        names = ', '.join(one.__name__ for one in BY_ENTRY)
        raise PETLError(
            f'deepspeed steps parts of tensors joined together, and {kind.__name__} '
            f'is not known to step each number by itself; take one of {names}'
        )
    if wrapper._accumulative_counts != 1:
        raise PETLError(
            f'optim_wrapper.accumulative_counts={wrapper._accumulative_counts} is not '
            'supported beside deepspeed, as checkpoints between two steps would lack '
            'gradients; take more processes or a larger batch, or shard_base'
        )
    clip = wrapper.clip_grad_kwargs
    if clip and (
        wrapper.grad_name != 'grad_norm'
        or set(clip) - {'max_norm', 'norm_type'}
        or clip.get('norm_type', 2) != 2
    ):
        raise PETLError(
            'deepspeed clips gradients by their L2 norm alone, and optim_wrapper.'
            f'clip_grad is {dict(clip)}; take dict(max_norm=...)'
        )
    found = injections(model)
    if not found:
        raise PETLError(
            f'{type(model).__name__} holds no method, and deepspeed is supported for '
            'tuned models alone, whose checkpoints are small; put one in (--method '
            'LoRA), or leave deepspeed out'
        )
    for _, module, record in found:
        _check_record(module, record)
    groups = wrapper.optimizer.param_groups
    held = {id(param) for group in groups for param in group['params']}
    trained = {id(param) for param in model.parameters() if param.requires_grad}
    if held != trained:
        what = 'frozen parameters too' if held - trained else 'not all that trains'
        raise PETLError(
            f'the optimizer holds {what}, and deepspeed takes what trains and nothing '
            "else; give optim_wrapper constructor='mmpetl.OwnerOptimWrapperConstructor'"
        )
    if not all(group['params'] for group in groups):
        raise PETLError(
            'a group of the optimizer holds no parameters, which deepspeed would leave '
            'out; leave it out of paramwise_cfg'
        )
    odd = [
        name
        for name, param in model.named_parameters()
        if not (param.dim() and param.numel() and param.is_contiguous())
    ]
    if odd:
        raise PETLError(
            f'deepspeed joins rows of numbers that lie one behind the other, and '
            f'{shorten(odd)} of the model have no axis, no number or another order; '
            'take shard_base in place of deepspeed'
        )
    other = [
        f'{name} ({str(param.dtype).removeprefix("torch.")})'
        for name, param in model.named_parameters()
        if param.dtype is not torch.float32
    ]
    if other:
        raise PETLError(
            f'deepspeed is supported for models in float32, and not {shorten(other)}; '
            'take shard_base'
        )


def _check_record(module: nn.Module, record: Injection) -> None:
    if record.bits is not None:
        raise PETLError(
            f'the base of {type(module).__name__} is in {record.bits} bits, which '
            'are not sharded; leave out one of base_bits and deepspeed'
        )
    check_whole(module)
    for slot in record.slots.values():
        if slot.method.steps:
            raise PETLError(
                f'{type(slot.method).__name__} reads or writes its weights at each '
                'step of the optimizer, of which deepspeed holds copies; take '
                'shard_base in place of deepspeed'
            )


@MODEL_WRAPPERS.register_module()
class ZeroModel(nn.Module):
    """What stands for the model in a run through DeepSpeed.

    Until training begins it is the model; from then on a training step goes through the
    engine of DeepSpeed.

    Args:
        module: The model.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not next(module.parameters()).is_cuda:
            module = revert_sync_batchnorm(module)
        self.module = module
        self.zero: Zero | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, which gathers what it needs."""
        return self.module(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Train on a batch; what MMEngine's wrapper does, through the engine.

        Args:
            data: A batch, as the loader gives it.
            optim_wrapper: What steps.

        Returns:
            The losses to log.
        """
        if self.zero is None:
            raise PETLError(
                'model_wrapper_cfg is mmpetl.ZeroModel, and the config has no key '
                'deepspeed, so that nothing would average gradients; leave '
                'model_wrapper_cfg out'
            )
        run = self.zero.engine
        with optim_wrapper.optim_context(self):
            data = self.module.data_preprocessor(data, training=True)
            if isinstance(data, Mapping):
                losses = run(**data, mode='loss')
            else:
                losses = run(*data, mode='loss')
        loss, logged = self.module.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return logged

    def val_step(self, data: Any) -> Any:
        """Predict a batch of validation."""
        return self.module.val_step(data)

    def test_step(self, data: Any) -> Any:
        """Predict a batch of test."""
        return self.module.test_step(data)


class ZeroOptimWrapper(OptimWrapper):
    """MMEngine's wrapper over a :class:`Zero`."""

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Through the engine, which averages gradients over the processes."""
        self.optimizer.engine.backward(loss, scale_wrt_gas=False, **kwargs)
        self._inner_count += 1

    def _clip_grad(self) -> None:
        """The step of the engine does."""


@dataclass
class Piece:
    """Where this process holds a part of a parameter.

    Attributes:
        flat: A vector of numbers of many parameters, which the optimizer steps.
        at: Where in it the part begins.
        start: Where in the parameter, as one row, it begins.
        count: How many numbers it is; may be none.
    """

    flat: Tensor
    at: int
    start: int
    count: int


class Zero:
    """Stands for an optimizer whose state and weights DeepSpeed has sharded.

    Its state is, and is saved as, that of the optimizer of a run without DeepSpeed.

    Args:
        engine: The engine.
        stage: The stage of ZeRO.
        groups: Parameters of each group, as they were before.
        options: Keys of each group beside its parameters.
        names: Names of all that trains, by parameter.
    """

    def __init__(
        self,
        engine: Any,
        stage: int,
        groups: list[list[nn.Parameter]],
        options: list[list[str]],
        names: Mapping[nn.Parameter, str],
    ) -> None:
        self.engine = engine
        self.stage = stage
        self.groups = groups
        self.options = options
        self.names = names
        self.inner = engine.optimizer.optimizer
        self._collected: dict[str, Any] | None = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, whose rates schedules move."""
        return self.inner.param_groups

    def step(self, **kwargs: Any) -> None:
        """Clip, step, and forget the gradients."""
        self.engine.step()
        if self.engine.optimizer.overflow:
            raise PETLError(
                'a gradient is not finite, and deepspeed has left this step out; lower '
                'the learning rate, or look at the samples of this batch'
            )
        norm = self.engine.get_global_grad_norm()
        if self.engine.gradient_clipping() and norm is not None:
            # MMEngine's wrapper logs what it clips.
            hub = MessageHub.get_current_instance()
            hub.update_scalar('train/grad_norm', float(norm))

    def zero_grad(self, **kwargs: Any) -> None:
        """Nothing: a step of the engine ends with it."""

    def _pieces(self) -> Iterator[tuple[nn.Parameter, Piece]]:
        """What this process holds of each parameter, in the order of the groups."""
        zero = self.engine.optimizer
        rank = torch.distributed.get_rank()
        for number, group in enumerate(self.groups):
            for param in group:
                if self.stage == 3:
                    place = zero.grad_position[zero.get_param_id(param)]
                    joined, at, size = place
                    flat = zero.fp32_partitioned_groups_flat[joined]
                    start = rank * size
                    count = max(0, min(size, param.ds_numel - start))
                    yield param, Piece(flat, at, start, count)
                    continue
                flat = zero.single_partition_of_fp32_groups[number]
                held = param._hp_mapping
                if held is None:
                    yield param, Piece(flat, 0, 0, 0)
                    continue
                there, here = held.hp_fragment_address, held.lp_fragment_address
                yield param, Piece(flat, there.start, here.start, here.numel)

    def _shape(self, param: nn.Parameter) -> torch.Size:
        return torch.Size(param.ds_shape) if self.stage == 3 else param.shape

    def _whole(self, key: str | None) -> list[Tensor]:
        """Weights, or entries of the state, of all that trains; all processes ask.

        Each writes what it holds into one row of zeros, and the rows are added.
        """
        pieces = list(self._pieces())
        shapes = [self._shape(param) for param, _ in pieces]
        sizes = [shape.numel() for shape in shapes]
        row = torch.zeros(sum(sizes), device=self.engine.device)
        for (_, piece), part in zip(pieces, row.split(sizes), strict=True):
            source = piece.flat if key is None else self.inner.state[piece.flat][key]
            own = source.detach()[piece.at : piece.at + piece.count]
            part[piece.start : piece.start + piece.count].copy_(own)
        torch.distributed.all_reduce(row)
        parts = zip(row.cpu().split(sizes), shapes, strict=True)
        return [part.view(shape).clone() for part, shape in parts]

    def collect(self) -> dict[str, Tensor]:
        """Gather what trains and its state in every process; all of them call this.

        Returns:
            Weights by name.
        """
        params = [param for group in self.groups for param in group]
        state: dict[int, dict[str, Any]] = {}
        kept = next(filter(None, self.inner.state.values()), {})
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.dim():
                for index, whole in enumerate(self._whole(key)):
                    state.setdefault(index, {})[key] = whole
            else:
                for index in range(len(params)):
                    one = value.clone() if isinstance(value, Tensor) else value
                    state.setdefault(index, {})[key] = one
        groups, first = [], 0
        for group, own, names in zip(
            self.groups, self.param_groups, self.options, strict=True
        ):
            indices = list(range(first, first + len(group)))
            groups.append({name: own[name] for name in names} | {'params': indices})
            first += len(group)
        self._collected = {'state': state, 'param_groups': groups}
        weights = zip(params, self._whole(None), strict=True)
        return {self.names[param]: whole for param, whole in weights}

    def check_layout(self, weights: list[Tensor]) -> None:
        """Raise PETLError where what is gathered is not what was handed over.

        Where numbers lie is said by no interface of DeepSpeed.
        """
        same = all(map(torch.equal, self._whole(None), weights))
        # Those of the first process went to the others, which may have had others.
        said = torch.tensor([same], dtype=torch.uint8, device=self.engine.device)
        torch.distributed.broadcast(said, 0)
        if not said.item():
            raise PETLError(
                f'deepspeed {version("deepspeed")} lays weights out in a way that is '
                'not known here, and a checkpoint would hold others; take shard_base'
            )

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`collect` has gathered, as the optimizer alone would give it."""
        if self._collected is None:
            raise PETLError(
                'the state of an optimizer that deepspeed has sharded is saved by '
                'mmpetl.DeltaCheckpointHook alone, which gathers it in all processes'
            )
        state, self._collected = self._collected, None
        return state

    def load_state(self, state: Mapping[nn.Parameter, Mapping[str, Any]]) -> None:
        """Go on from the state of an optimizer.

        Args:
            state: Entries by parameter; none where no step was made.
        """
        for param, piece in self._pieces():
            own = self.inner.state[piece.flat] if param in state else {}
            for key, value in state.get(param, {}).items():
                if not isinstance(value, Tensor) or not value.dim():
                    own.setdefault(key, value)
                    continue
                if key not in own:
                    own[key] = torch.zeros_like(piece.flat)
                row = value.reshape(-1)[piece.start : piece.start + piece.count]
                own[key][piece.at : piece.at + piece.count].copy_(row)


def start_zero(wrapped: ZeroModel, wrapper: OptimWrapper, asked: Any) -> int:
    """Let DeepSpeed shard a model and its optimizer, in place.

    Call it in every process, when weights and the state of the optimizer are those that
    training begins with. What :func:`check_trainable` refuses is not looked at again.

    Args:
        wrapped: The model, in the wrapper for it.
        wrapper: Its optimizer wrapper.
        asked: See :func:`zero_settings`.

    Returns:
        Bytes of weights that this process holds less.
    """
    import deepspeed

    model, optimizer = wrapped.module, wrapper.optimizer
    settings = zero_settings(asked)
    stage = settings['zero_optimization']['stage']
    clip = wrapper.clip_grad_kwargs or {}
    whole = {
        'zero_allow_untested_optimizer': True,
        'zero_force_ds_cpu_optimizer': False,
        'steps_per_print': 2**31,
        **settings,
        'train_micro_batch_size_per_gpu': 1,
        'gradient_accumulation_steps': 1,
        'gradient_clipping': float(clip.get('max_norm', 0.0)),
    }
    if not next(model.parameters()).is_cuda:
        # It would compile a faster exchange than gloo's when it begins.
        deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False
    names = {param: name for name, param in model.named_parameters()}
    groups = [list(group['params']) for group in optimizer.param_groups]
    options = [[k for k in g if k != 'params'] for g in optimizer.param_groups]
    state = dict(optimizer.state)
    optimizer.state.clear()
    weights = [param.detach().cpu().clone() for group in groups for param in group]
    before = held_bytes(model)

    def begin() -> None:
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=whole
        )
        wrapped.zero = Zero(engine, stage, groups, options, names)
        if stage == 3:
            _keep_whole([param for group in groups for param in group], engine)

    _all_converting(model, begin)
    wrapped.zero.check_layout(weights)
    wrapped.zero.load_state(state)
    wrapper.optimizer = wrapped.zero
    wrapper.__class__ = ZeroOptimWrapper
    return before - held_bytes(model)


def _keep_whole(params: list[nn.Parameter], engine: Any) -> None:
    """Let every process keep some parameters whole beside its part of them.

    Autograd holds a gradient to the shape that its parameter has, and hosts read what
    trains outside of the passes that DeepSpeed gathers it for.
    """
    lasting = engine.optimizer.persistent_parameters
    for param in params:
        if not param.ds_persist:
            param.ds_persist = True
            lasting.append(param)
        # The first pass drops even what lasts, unless several modules may read it.
        param.is_external_param = True
    if lasting:
        lasting[0].all_gather(lasting)


def _all_converting(model: nn.Module, convert: Callable[[], object]) -> None:
    """Convert the bases of all backbones of a model at once."""
    for _, module, record in injections(model):
        convert = partial(converting, module, record, convert)
    convert()


def held_bytes(model: nn.Module) -> int:
    """Bytes of weights that this process holds between two passes.

    What is too small to be worth a gathering DeepSpeed keeps whole beside its part.
    """
    total = 0
    for param in model.parameters():
        share = getattr(param, 'ds_tensor', None)
        if share is None:
            numbers = param.numel()
        else:
            numbers = share.numel() + param.ds_numel * param.ds_persist
        total += numbers * param.element_size()
    return total
