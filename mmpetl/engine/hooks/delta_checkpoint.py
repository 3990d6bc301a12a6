"""Checkpoints that hold the delta only, written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    is_main_process,
)
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from mmpetl.core import (
    PETLError,
    check_range,
    delta_facts,
    find_injected,
    frozen_keys,
    load_base,
    load_delta_state,
)
from mmpetl.core.delta_file import check_facts
from mmpetl.engine.base_watch import BaseWatch
from mmpetl.engine.best import Best, write_best
from mmpetl.engine.files import AtomicLocalBackend, Pace
from mmpetl.engine.hooks.common import as_number, finite, plain_model
from mmpetl.engine.latest import (
    POINTER,
    STOPPED,
    is_remote,
    left_to_resume,
    newest_checkpoint,
    progress,
)
from mmpetl.engine.resumable import (
    check_average,
    check_loaded,
    check_resumable,
    check_run,
    data_facts,
    folder_free,
)
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
    - A resumed run makes up for a validation that it was killed before or in, and keeps
      one best checkpoint; ``best.json`` says which (:mod:`mmpetl.engine.best`).
    - It goes on from the newest whole checkpoint of its own folder, and only from one
      that holds all that it needs (:mod:`mmpetl.engine.resumable`).
    - It holds the random generators and the accumulated gradients of every process, so
      that a resumed run computes what an uninterrupted one would have, also from inside
      an epoch. Persistent data workers are seeded by epoch for that.

    Args are those of ``mmengine.hooks.CheckpointHook``, and ``most_mb_per_s``: a due
    checkpoint is passed over while writing it would be more than so many MB for each
    second since the one before; the first and the last of a run never are. A model
    without a method is saved whole.
    """

    def __init__(
        self, *args: Any, most_mb_per_s: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        said = self.backend_args is not None or self.file_client_args is not None
        if not said and not is_remote(self.out_dir):
            # Beside a scheme, it would win and write to a local folder of that name.
            self.backend_args = {'backend': 'mmpetl.atomic'}
        if most_mb_per_s is not None:
            check_range('DeltaCheckpointHook', 'most_mb_per_s', most_mb_per_s, 0.001)
        self._pace = Pace(most_mb_per_s)
        self._completion: Hook | None = None
        self._watch: BaseWatch | None = None
        self._data: dict | None = None
        self._resuming: str | None = None
        """The file that is being resumed from, while it is."""
        self._from: str | None = None
        """The same, from then on."""
        self._seeds: EpochSeeds | None = None
        # What a checkpoint brought, by name of its record, one entry per process.
        self._resumed: dict[str, list[dict]] = {}
        # The same of this moment; see `_gather`.
        self._processes: dict[str, list[dict]] = {}
        # What trains, where the model of a process holds parts of it.
        self._whole: dict[str, Tensor] = {}
        self._epoch_rng: dict | None = None
        self._train_rng: dict | None = None
        self._validated: int | None = 0
        """Iteration of the last validation, None where a checkpoint does not say."""

    def before_run(self, runner: Runner) -> None:
        """Come first in loading, spare the base averaging, and seed data workers."""
        if self._completion is None:
            self._completion = _Completion(self)
            runner.register_hook(self._completion)
        self._find_newest(runner)
        frozen = frozen_keys(plain_model(runner))
        for hook in runner.hooks:
            if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
                average = hook.ema_model.avg_parameters
                for key in frozen & set(average):
                    del average[key]
                _share_frozen(hook.ema_model.module, plain_model(runner), frozen)
        if isinstance(runner._train_loop, BaseLoop):
            self._seeds = seed_by_epoch(runner.train_loop, runner.seed, runner.rank)

    def _find_newest(self, runner: Runner) -> None:
        """Let an automatic resumption find the newest whole file of this folder."""
        if not runner._resume or runner._has_loaded:
            return
        if not runner._load_from and not is_remote(self.out_dir):
            place = {'out_dir': self.out_dir, 'filename_tmpl': self.filename_tmpl}
            path, wrong = newest_checkpoint(runner.work_dir, place)
            if wrong:
                runner.logger.warning(wrong)
            runner._load_from = None if path is None else str(path)
        resume = runner.resume

        def resume_marked(filename: str, *args: Any, **kwargs: Any) -> None:
            self._resuming = self._from = str(filename)
            try:
                resume(filename, *args, **kwargs)
            finally:
                self._resuming = None

        # Weights may be loaded by other ways too while a run is a resumed one.
        runner.resume = resume_marked

    # ---------------------------------------------------------------- saving

    def _save_checkpoint(self, runner: Runner) -> None:
        """Save, unless it is too soon; the processes of a run agree on it."""
        ends = self.is_last_train_epoch if self.by_epoch else self.is_last_train_iter
        soon = [self._pace.is_soon() and not ends(runner)]
        broadcast_object_list(soon)
        if soon[0]:
            runner.logger.info('too soon after the one before: not saved')
            return
        super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated, hub = [], runner.message_hub
        if self.max_keep_ckpts > 0 and (
            not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step
        ):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.keep_ckpt_ids[0])
            self.keep_ckpt_ids.append(step)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        # On record, for a kill may come before they are deleted.
        hub.update_info('outdated_ckpt_ids', outdated)
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        hub.update_info('last_ckpt', self.last_ckpt)
        self._write(runner, filename, meta)
        self._remove_outdated(outdated, filename)

    def _remove_outdated(self, ids: list[int], newest: str) -> None:
        """Delete what the newest checkpoint has taken the place of."""
        if not is_main_process():
            return
        stopped = Path(self.out_dir).glob(STOPPED.format('*'))
        names = [self.filename_tmpl.format(step) for step in ids]
        for name in [*names, *(path.name for path in stopped)]:
            if name != newest:
                self._remove(self.file_backend.join_path(self.out_dir, name))

    def _write(self, runner: Runner, filename: str, meta: dict) -> None:
        """Write a checkpoint that a run goes on from, and let the pointer name it."""
        self._gather(runner)
        with self._failure_named(runner, filename):
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
            # A name alone, so that a folder that is copied or moved names its own.
            here = os.path.abspath(self.out_dir) == os.path.abspath(runner.work_dir)
            self._pace.written(os.path.join(self.out_dir, filename))
            said = filename if here else os.path.join(self.out_dir, filename)
            with self._failure_named(runner, POINTER):
                pointer = os.path.join(runner.work_dir, POINTER)
                AtomicLocalBackend().put_text(said, pointer)

    def save_stopped(self, runner: Runner, iteration: int) -> str:
        """Save a run as it stands between two steps, beside its usual checkpoints.

        All processes call this. The next usual checkpoint takes the place of it.

        Args:
            runner: The runner.
            iteration: Steps that are done.

        Returns:
            The name of the file.

        Raises:
            PETLError: It cannot be written.
        """
        filename = STOPPED.format(iteration)
        self._write(runner, filename, {'epoch': runner.epoch, 'iter': iteration})
        return filename

    @contextmanager
    def _failure_named(self, runner: Runner, filename: str) -> Iterator[None]:
        """Say which file is missing when the system refuses to write it."""
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            left = left_to_resume(runner.work_dir, {'out_dir': self.out_dir})
            path = os.path.join(self.out_dir, filename)
            raise PETLError(
                f'{path} is missing: {why}{folder_free(path)}; {left}; make room, or '
                'save less often (default_hooks.checkpoint)'
            ) from error

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        metrics = self._comparable(metrics)
        hub = runner.message_hub
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        # On record with the best itself, for 'auto' does not say it.
        hub.update_info('best_metrics', list(self.key_indicators))
        before = self._best_paths(runner)
        self._gather(runner)
        with self._deferred_removal():
            step = runner.epoch if self.by_epoch else runner.iter
            name = f'best_*_{self.filename_tmpl.format(step)}'
            with self._failure_named(runner, name):
                super()._save_best_checkpoint(runner, metrics)
            if self._best_paths(runner) != before:
                # The record first, so that it never names a file that is gone.
                self._record_best(runner)
        if self._best_paths(runner) != before:
            self._remove_stale_best(runner)

    def _best_paths(self, runner: Runner) -> dict[str, str]:
        """What the message hub has on record: paths by metric."""
        hub = runner.message_hub
        info, keys = hub.runtime_info, hub.runtime_info.get('best_metrics', ())
        several = len(keys) > 1
        found = {
            k: info.get(f'best_ckpt_{k}' if several else 'best_ckpt') for k in keys
        }
        return {key: path for key, path in found.items() if path}

    def _record_best(self, runner: Runner) -> None:
        """Write ``best.json`` from the message hub."""
        if not is_main_process() or not self.save_best:
            return
        info = runner.message_hub.runtime_info
        record, several = [], len(info.get('best_metrics', ())) > 1
        for key, path in self._best_paths(runner).items():
            score = info.get(f'best_score_{key}' if several else 'best_score')
            score = finite(as_number(score))
            where = progress(Path(path))
            record.append(Best(os.path.basename(path), key, score, *where))
        with self._failure_named(runner, 'best.json'):
            write_best(runner.work_dir, record)

    def _remove_stale_best(self, runner: Runner) -> None:
        """Delete best checkpoints that the record does not name.

        A run that was killed between writing the new one and deleting the old one, or
        that goes on from an older checkpoint, has left them.
        """
        paths = self._best_paths(runner)
        if not is_main_process() or is_remote(self.out_dir):
            return
        kept = {os.path.basename(path) for path in paths.values()}
        head, _, tail = self.filename_tmpl.partition('{}')
        end = rf'{re.escape(head)}\d+{re.escape(tail)}'
        for key in paths:
            own = re.compile(rf'best_{re.escape(key.replace("/", "_"))}_{end}')
            for path in Path(self.out_dir).glob('best_*'):
                if own.fullmatch(path.name) and path.name not in kept:
                    runner.logger.info(f'{path.name} is not the best any more: removed')
                    path.unlink(missing_ok=True)

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
        zero = getattr(runner.model, 'zero', None)
        self._whole = {} if zero is None else zero.collect()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Drop the frozen base and say what is left."""
        checkpoint |= self._processes
        checkpoint['validated'] = self._validated
        if self._data is not None:
            checkpoint['data'] = self._data
        model = plain_model(runner)
        if not find_injected(model):
            return
        if self._watch is not None:
            self._watch.check()
        checkpoint['state_dict'] |= self._whole
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
        self._check_file(runner, checkpoint)
        checkpoint[_WHOLE] = True
        about = checkpoint.get('meta') or {}
        # MMEngine runs meta['config'] of a resumed file as Python.
        about.pop('config', None)
        names = ('rng', 'gradients', 'epoch_rng')
        self._resumed = {name: checkpoint[name] for name in names if name in checkpoint}
        self._validated = checkpoint.get('validated')
        model = plain_model(runner)
        if not find_injected(model):
            return
        meta = about.get('mmpetl')
        if meta is None:
            self._take_whole(runner, model, checkpoint)
            return
        check_delta_meta(model, meta)
        load_delta_state(model, checkpoint['state_dict'])
        whole = model.state_dict()
        for state, prefix in _states(checkpoint):
            for key in frozen_keys(model) & set(whole):
                state[f'{prefix}{key}'] = whole[key]

    def _check_file(self, runner: Runner, checkpoint: dict) -> None:
        """Hold what was loaded to its schema before anything takes a part of it."""
        place = self._resuming or str(runner._load_from or 'the checkpoint')
        if self._resuming is None:
            check_loaded(checkpoint, place)
            return
        lines = check_resumable(checkpoint, place, runner._randomness_cfg.get('seed'))
        check_average(checkpoint, plain_model(runner), place)
        saves = (self.save_optimizer, self.save_param_scheduler)
        for line in lines + check_run(checkpoint, place, runner, saves):
            runner.logger.warning(line)

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
        self._data = data_facts(runner.train_loop.dataloader.dataset)
        self._take_up_names(runner)
        if not runner.iter:
            self._resumed, self._validated = {}, 0
            return
        replay_early_stopping(runner)
        if self._resumed:
            self._check_processes(runner)
        restore_gradients(model, self._own('gradients') or {})
        loop = runner.train_loop
        if self._validation_is_missing(runner) and validation_is_due(loop):
            if self._resumed:
                set_rng_state(self._own('rng'))  # what is the best is saved with it
            runner.val_loop.run()
        if self._resumed and hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = SkippingIterator(
                loop.dataloader_iterator, runner.iter, self._own('rng')
            )

    def _take_up_names(self, runner: Runner) -> None:
        """Let what is on record mean files of this folder, and delete what is stale."""
        info = runner.message_hub.runtime_info

        def here(path: str | None) -> str | None:
            name = os.path.basename(path or '')
            return self.file_backend.join_path(self.out_dir, name) if name else None

        if runner.iter:
            self.last_ckpt = here(info.get('last_ckpt'))
            folder, name = os.path.split(os.path.abspath(self._from or ''))
            if folder == os.path.abspath(self.out_dir):
                self._remove_outdated(info.get('outdated_ckpt_ids') or [], name)
        if not self.save_best:
            return
        for key in [k for k in info if k.startswith('best_ckpt')]:
            runner.message_hub.update_info(key, here(info[key]))
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = here(self.best_ckpt_path)
        else:
            named = self.best_ckpt_path_dict
            self.best_ckpt_path_dict = {k: here(v) for k, v in named.items()}
        self._record_best(runner)
        if not runner.iter:
            return
        for path in self._best_paths(runner).values():
            if is_main_process() and not self.file_backend.isfile(path):
                runner.logger.warning(
                    f'{path}, the best checkpoint on record, is not there; a later one '
                    'takes its place only where it is better'
                )
        self._remove_stale_best(runner)

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
    if checkpoint.get('ema_state_dict') is not None:
        states.append((checkpoint['ema_state_dict'], 'module.'))
    return states


def delta_meta(model: nn.Module) -> dict[str, Any]:
    """What a delta says of itself: format, version, method, backbone, base."""
    return delta_facts(model)


def check_delta_meta(model: nn.Module, meta: Mapping[str, Any]) -> None:
    """Raise PETLError unless a delta belongs to this model, method and base."""
    check_facts(meta, delta_facts(model))
