"""Checkpoints that hold the delta only, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmpetl.core import (
    PETLError,
    delta_facts,
    find_injected,
    frozen_keys,
    load_base,
    load_delta_state,
)
from mmpetl.core.delta_file import check_facts
from mmpetl.engine.base_watch import BaseWatch
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.hooks.common import as_number, plain_model
from mmpetl.engine.resuming import (
    EpochSeeds,
    RestOfEpoch,
    SkippingIterator,
    pending_gradients,
    replay_early_stopping,
    restore_gradients,
    rng_state,
    seed_by_epoch,
    set_rng_state,
    validation_is_due,
)
from mmpetl.registry import HOOKS

_WHOLE = 'mmpetl_whole'
"""Marks a loaded checkpoint that has been checked and completed."""


class _Completion(Hook):
    """Completes a loaded checkpoint before any other hook reads it."""

    priority = 'HIGHEST'

    def __init__(self, hook: DeltaCheckpointHook) -> None:
        self.hook = hook

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.hook.after_load_checkpoint(runner, checkpoint)


@HOOKS.register_module()
class DeltaCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, for deltas.

    - A checkpoint holds the state minus the frozen base, and so does the average of
      MMEngine's EMAHook. ``meta['mmpetl']`` says which method, backbone and base it
      belongs to.
    - None is written while the base differs from that base.
    - It is written beside its final name and renamed; what it replaces is deleted
      only when the new one is whole.
    - Loading checks method, sizes and base, and raises one line where they differ.
    - It holds the random generators and the accumulated gradients of every process, so
      that a resumed run computes what an uninterrupted one would have, also from inside
      an epoch. Persistent data workers are seeded by epoch for that.

    Args are those of ``mmengine.hooks.CheckpointHook``. A model without a method is
    saved whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault('backend_args', {'backend': 'mmpetl.atomic'})
        super().__init__(*args, **kwargs)
        self._completion: Hook | None = None
        self._watch: BaseWatch | None = None
        self._seeds: EpochSeeds | None = None
        # What a checkpoint brought, by name of its record, one entry per process.
        self._resumed: dict[str, list[dict]] = {}
        # The same of this moment; see `_gather`.
        self._processes: dict[str, list[dict]] = {}
        self._epoch_rng: dict | None = None
        self._train_rng: dict | None = None
        self._validated: int | None = 0
        """Iteration of the last validation, None where a checkpoint does not say."""

    def before_run(self, runner: Runner) -> None:
        """Come first in loading, spare the base averaging, and seed data workers."""
        if self._completion is None:
            self._completion = _Completion(self)
            runner.register_hook(self._completion)
        frozen = frozen_keys(plain_model(runner))
        for hook in runner.hooks:
            if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
                average = hook.ema_model.avg_parameters
                for key in frozen & set(average):
                    del average[key]
                _share_frozen(hook.ema_model.module, plain_model(runner), frozen)
        if isinstance(runner._train_loop, BaseLoop):
            self._seeds = seed_by_epoch(runner.train_loop, runner.seed, runner.rank)

    # ---------------------------------------------------------------- saving

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and (
            not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step
        ):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids[0]))
            self.keep_ckpt_ids.append(step)
            ids = list(self.keep_ckpt_ids)
            runner.message_hub.update_info('keep_ckpt_ids', ids)
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._gather(runner)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            pointer = os.path.join(runner.work_dir, 'last_checkpoint')
            AtomicLocalBackend().put_text(self.last_ckpt, pointer)
            for name in outdated:
                self._remove(self.file_backend.join_path(self.out_dir, name))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best:
            metrics = self._comparable(metrics)
        self._gather(runner)
        with self._deferred_removal():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _deferred_removal(self) -> Iterator[None]:
        """Delete the previous best only after the new one is whole."""
        backend, later = self.file_backend, []
        backend.remove = later.append
        try:
            yield
        finally:
            del backend.remove
        for path in later:
            self._remove(path)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _comparable(self, metrics: dict) -> dict:
        """The metrics that can be the best, which are numbers, or missing as None."""
        numbers = {k: v for k, v in metrics.items() if as_number(v) is not None}
        for key in self.key_indicators:
            if key == 'auto' and numbers:
                continue
            if key not in numbers and metrics.get(key, '') is not None:
                what = 'is no number' if key in metrics else 'is not among the metrics'
                raise PETLError(
                    f'save_best={key!r} {what}; a best checkpoint can be kept of: '
                    f'{", ".join(numbers) or "none"}'
                )
        return numbers | {k: v for k, v in metrics.items() if k not in numbers}

    def _init_rule(self, rules: list, key_indicators: list[str]) -> None:
        try:
            super()._init_rule(rules, key_indicators)
        except ValueError:
            raise PETLError(
                f'save_best cannot tell whether more or less of {key_indicators[0]!r} '
                "is better; say rule='greater' or rule='less' beside it"
            ) from None

    def _gather(self, runner: Runner) -> None:
        """What every process has that the checkpoint of the first one must hold."""
        own = {
            # During validation the generators to keep are those of training.
            'rng': self._train_rng or rng_state(),
            'gradients': pending_gradients(plain_model(runner)),
        }
        if self._epoch_rng is not None:
            own['epoch_rng'] = self._epoch_rng
        every = all_gather_object(own)
        self._processes = {name: [one[name] for one in every] for name in own}
        if not any(self._processes['gradients']):
            del self._processes['gradients']

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Drop the frozen base and say what is left."""
        checkpoint |= self._processes
        checkpoint['validated'] = self._validated
        model = plain_model(runner)
        if not find_injected(model):
            return
        if self._watch is not None:
            self._watch.check()
        frozen = frozen_keys(model)
        for state, prefix in _states(checkpoint):
            for key in frozen:
                state.pop(f'{prefix}{key}', None)
        checkpoint['meta']['mmpetl'] = delta_meta(model)

    # --------------------------------------------------------------- loading

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that the delta belongs here, and complete it with the base."""
        if checkpoint.get(_WHOLE):
            return
        checkpoint[_WHOLE] = True
        # MMEngine runs meta['config'] of a resumed file as Python.
        checkpoint.get('meta', {}).pop('config', None)
        names = ('rng', 'gradients', 'epoch_rng')
        self._resumed = {name: checkpoint[name] for name in names if name in checkpoint}
        self._validated = checkpoint.get('validated')
        model = plain_model(runner)
        if not find_injected(model):
            return
        meta = checkpoint.get('meta', {}).get('mmpetl')
        if meta is None:
            self._take_whole(runner, model, checkpoint)
            return
        check_delta_meta(model, meta)
        load_delta_state(model, checkpoint['state_dict'])
        whole = model.state_dict()
        for state, prefix in _states(checkpoint):
            for key in frozen_keys(model) & set(whole):
                state[f'{prefix}{key}'] = whole[key]

    # -------------------------------------------------------------- training

    def _take_whole(self, runner: Runner, model: nn.Module, checkpoint: dict) -> None:
        """Start from a whole model, such as a detector of the zoo."""
        state = checkpoint.get('state_dict', checkpoint)
        state = {k.removeprefix('module.'): v for k, v in state.items()}
        source = str(runner._load_from)
        if load_base(model, state, source):
            runner.logger.info(
                f'the base is now that of {source}; its deltas need it as '
                'model.base (PETLModel) or model.backbone.checkpoint (PETLBackbone)'
            )

    def before_train(self, runner: Runner) -> None:
        """Go on with what the checkpoint brought."""
        super().before_train(runner)
        model = plain_model(runner)
        if find_injected(model):
            self._watch = BaseWatch(model)
            self._watch.check()
        if not runner.iter:
            self._resumed, self._validated = {}, 0
        if not self._resumed:
            return
        replay_early_stopping(runner)
        self._check_processes(runner)
        if not self._resumed:
            return
        restore_gradients(model, self._own('gradients') or {})
        loop = runner.train_loop
        if self._validation_is_missing(runner) and validation_is_due(loop):
            set_rng_state(self._own('rng'))  # what is the best is saved with it
            runner.val_loop.run()
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = SkippingIterator(
                loop.dataloader_iterator, runner.iter, self._own('rng')
            )

    def _check_processes(self, runner: Runner) -> None:
        """Leave out what the checkpoint has of other processes than these."""
        number = len(self._resumed['rng'])
        if number == runner.world_size:
            return
        what = f'the checkpoint is of {number} processes, these are {runner.world_size}'
        if len(self._resumed) > 1:
            raise PETLError(
                f'{what}: it was written inside an epoch or between two steps; resume '
                f'with {number}'
            )
        runner.logger.warning(f'{what}: random numbers will differ')
        self._resumed = {}

    def _validation_is_missing(self, runner: Runner) -> bool:
        """Whether the run was killed between a checkpoint and the validation there."""
        inside = 'epoch_rng' in self._resumed
        return not inside and self._validated not in (None, runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        """Continue with the generators as the checkpoint left them."""
        loop = runner.train_loop
        by_epoch = not hasattr(loop, 'dataloader_iterator')
        if self._seeds is not None:
            self._seeds.epoch.fill_(runner.epoch)
        rng, start = self._own('rng'), self._own('epoch_rng')
        self._resumed = {}
        if not by_epoch:
            return
        if start is not None:
            seen = runner.iter - runner.epoch * len(loop.dataloader)
            loop.dataloader = RestOfEpoch(loop, seen, start, rng)
        elif rng is not None:
            set_rng_state(rng)
        self._epoch_rng = start or rng_state()

    def after_train_epoch(self, runner: Runner) -> None:
        """Save, if it is time."""
        self._epoch_rng = None  # what is saved from here on stands between epochs
        super().after_train_epoch(runner)

    def _own(self, name: str) -> dict | None:
        """What the checkpoint brought for this process."""
        return self._resumed[name][get_rank()] if name in self._resumed else None

    # ------------------------------------------------------------ validation

    def before_val(self, runner: Runner) -> None:
        """Keep validation from moving the generators of training."""
        self._train_rng = rng_state()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Keep the best."""
        self._validated = runner.iter
        super().after_val_epoch(runner, metrics)

    def after_val(self, runner: Runner) -> None:
        """See :meth:`before_val`."""
        if self._train_rng is not None:
            set_rng_state(self._train_rng)
            self._train_rng = None


def _share_frozen(average: nn.Module, model: nn.Module, frozen: set[str]) -> None:
    """Let the copy that is averaged hold no second frozen base."""
    own = dict(average.named_parameters())
    for name, param in model.named_parameters():
        if name in frozen and name in own:
            own[name].data = param.data


def _states(checkpoint: dict) -> list[tuple[dict, str]]:
    """The states that a checkpoint holds, with what their keys begin with."""
    states = [(checkpoint['state_dict'], '')]
    if 'ema_state_dict' in checkpoint:
        states.append((checkpoint['ema_state_dict'], 'module.'))
    return states


def delta_meta(model: nn.Module) -> dict[str, Any]:
    """What a delta says of itself: format, version, method, backbone, base."""
    return delta_facts(model)


def check_delta_meta(model: nn.Module, meta: Mapping[str, Any]) -> None:
    """Raise PETLError unless a delta belongs to this model, method and base."""
    check_facts(meta, delta_facts(model))
