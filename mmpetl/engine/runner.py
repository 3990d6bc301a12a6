"""A Runner that adds what safe tuning needs to a config of upstream."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.runner import Runner

from mmpetl.core.several import PLUS, written_out
from mmpetl.engine.latest import file_to_resume, seed_of
from mmpetl.engine.schedule_nodes import check_schedules
from mmpetl.registry import RUNNERS

CHECKPOINTS = 'mmpetl.DeltaCheckpointHook'
HOOKS = ('mmpetl.CalibrationHook', 'mmpetl.BaseGuardHook', 'mmpetl.NonFiniteGuardHook')
CONSTRUCTOR = 'mmpetl.OwnerOptimWrapperConstructor'
WRAPPER = 'mmpetl.PETLDistributedDataParallel'


@RUNNERS.register_module()
class TuningRunner(Runner):
    """MMEngine's Runner; a config asks for it by one line.

    ``runner_type = 'mmpetl.TuningRunner'`` is read by the training tools of mmpretrain,
    mmdet, mmsegmentation and mmaction2 as well as by ours. It adds

    - small checkpoints that resume bit-equal: MMEngine's own ``CheckpointHook``, or
      none, becomes ``mmpetl.DeltaCheckpointHook`` with the same arguments;
    - the data pass before training that SCT and GPS need, the guard of the base, and
      the guard against losses that are not finite;
    - optimizer groups by owner, unless the config names a constructor;
    - the distributed wrapper that runs on CPUs too, unless the config names one;
    - the seed that was drawn, where a run without ``randomness.seed`` is resumed.

    For a config with ``mmpetl.PETLModel`` the ``paramwise_cfg`` and the constructor of
    upstream act on what is outside of the backbone, as they always did, and no longer
    on the backbone, for which they were written: a tenth of the rate for all of it
    would be a tenth for the deltas. With the method ``Full``, which is upstream's own
    training, they stay untouched.

    What the config says itself stays.
    """

    @classmethod
    def from_cfg(cls, cfg: Any) -> Runner:
        """Build the runner of a config, which stays as it is."""
        cfg, added = safe_config(cfg)
        _take_seed(cfg)
        runner = super().from_cfg(cfg)
        runner.logger.info(f'{cls.__name__} added {", ".join(added) or "nothing"}')
        return runner

    def train(self) -> Any:
        """Train, unless a schedule cannot go on behind its first step.

        Raises:
            PETLError: As of :func:`mmpetl.engine.schedule_nodes.check_schedules`.
        """
        check_schedules(self.param_schedulers)
        return super().train()


def _take_seed(config: Any) -> None:
    """Let a resumed run without a seed have the one that its first part drew.

    Data are in order by the seed before MMEngine reads the checkpoint.
    """
    randomness = config.get('randomness') or {}
    path = file_to_resume(config) if randomness.get('seed') is None else None
    seed = None if path is None else seed_of(path)
    if seed is not None:
        config['randomness'] = {**randomness, 'seed': seed}


def safe_config(config: Any) -> tuple[Any, list[str]]:
    """A copy of a config with what :class:`TuningRunner` adds, and what that was."""
    config, added = copy.deepcopy(config), []
    hooks = config.setdefault('default_hooks', {})
    saves = hooks.get('checkpoint') or {}
    if _named(saves) in ('', 'CheckpointHook'):
        hooks['checkpoint'] = {**saves, 'type': CHECKPOINTS}
        added.append(CHECKPOINTS)
    custom = config.get('custom_hooks') or []
    there = {_named(hook) for hook in custom}
    missing = [kind for kind in HOOKS if kind.partition('.')[2] not in there]
    config['custom_hooks'] = [*custom, *({'type': kind} for kind in missing)]
    added += missing
    optim = config.get('optim_wrapper')
    if isinstance(optim, dict):
        added += _set_constructor(config, optim)
    if not config.get('model_wrapper_cfg'):
        config['model_wrapper_cfg'] = {'type': WRAPPER}
        added.append(WRAPPER)
    return config, added


def _set_constructor(config: Any, optim: dict[str, Any]) -> list[str]:
    """Let groups go by owner; what was added."""
    own = optim.get('constructor')
    method = whole_method(config)
    if method is None:
        if own:
            return []
        optim['constructor'] = CONSTRUCTOR
        return [CONSTRUCTOR]
    if _named({'type': own or ''}) == CONSTRUCTOR.partition('.')[2] or method == 'Full':
        return []
    outside = dict(optim.get('paramwise_cfg') or {})
    if own:
        outside['constructor'] = own
    optim['constructor'] = CONSTRUCTOR
    optim['paramwise_cfg'] = {'outside': outside}
    return [f'{CONSTRUCTOR} (paramwise_cfg acts outside of the backbone)']


def whole_method(config: Any) -> str | None:
    """What ``mmpetl.PETLModel`` of a config injects, by name; None without one."""
    model = config.get('model')
    if not isinstance(model, dict) or not _is_petl_model(model):
        return None
    petl = model.get('petl')
    return PLUS.join(
        _named(entry if isinstance(entry, dict) else {'type': entry})
        for entry in written_out(petl)
    )


def _is_petl_model(model: Any) -> bool:
    """Whether a model's config is one of ``mmpetl.PETLModel``."""
    return _named({'type': model.get('type') or ''}) in ('PETLModel', 'petl_model')


def _named(hook: Any) -> str:
    """Class of a hook, or of its config, without its scope; '' where none is named."""
    kind = hook.get('type', '') if isinstance(hook, dict) else type(hook)
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]
