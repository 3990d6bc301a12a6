"""Checkpoints that hold the delta only, written whole or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import nn

from mmpetl.core import (
    PETLError,
    base_changes,
    delta_facts,
    find_injected,
    frozen_keys,
    load_base,
    load_delta_state,
)
from mmpetl.core.delta_file import check_facts
from mmpetl.engine.hooks.common import plain_model
from mmpetl.registry import HOOKS


class AtomicLocalBackend(LocalBackend):
    """Local files that are whole or absent: written beside, flushed, then renamed."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes."""
        part = f'{os.fspath(filepath)}.part'
        os.makedirs(os.path.dirname(os.path.abspath(part)), exist_ok=True)
        with open(part, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, filepath)

    def put_text(
        self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8'
    ) -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


register_backend('mmpetl.atomic', AtomicLocalBackend, force=True)


def rng_state() -> dict[str, Any]:
    """The random generators of this process, in types that load without pickle."""
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        'torch': torch.get_rng_state(),
        'cuda': cuda,
        'numpy': [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        'python': [version, list(internal), gauss],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Undo :func:`rng_state`."""
    torch.set_rng_state(state['torch'].cpu())
    if torch.cuda.is_available() and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state['cuda']])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))


class _Skipping:
    """A data iterator that sets the generators after ``skip`` batches.

    A resumed iteration-based loop draws the batches it has seen, and throws them
    away; what follows must see the generators as the checkpoint left them.
    """

    def __init__(self, inner: Any, skip: int, state: Mapping[str, Any]) -> None:
        self._inner = inner
        self._skip = skip
        self._state = state

    def __iter__(self) -> _Skipping:
        return self

    def __next__(self) -> Any:
        batch = next(self._inner)
        self._skip -= 1
        if self._skip == 0:
            set_rng_state(self._state)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@HOOKS.register_module()
class DeltaCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, for deltas.

    - A checkpoint holds the state minus the frozen base. ``meta['mmpetl']`` says
      which method, backbone and base it belongs to.
    - It is written beside its final name and renamed; what it replaces is deleted
      only when the new one is whole.
    - Loading checks method, sizes and base, and raises one line where they differ.
    - It holds the random generators of every process, so that a resumed run computes
      what an uninterrupted one would have.

    Args are those of ``mmengine.hooks.CheckpointHook``. A model without a method is
    saved as MMEngine saves it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault('backend_args', {'backend': 'mmpetl.atomic'})
        super().__init__(*args, **kwargs)
        self._resume_rng: list[dict] | None = None
        self._train_rng: dict | None = None
        self._all_rng: list[dict] = []

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
        self._gather_rng()
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
        self._gather_rng()
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

    def _gather_rng(self) -> None:
        # During validation the generators to keep are those of training.
        self._all_rng = all_gather_object(self._train_rng or rng_state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Drop the frozen base and say what is left."""
        model = plain_model(runner)
        injected = find_injected(model)
        if not injected:
            return
        frozen = frozen_keys(model)
        state = checkpoint['state_dict']
        for key in [k for k in state if k in frozen]:
            del state[key]
        checkpoint['meta']['mmpetl'] = delta_meta(model)
        checkpoint['rng'] = self._all_rng

    # --------------------------------------------------------------- loading

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check that the delta belongs here, and complete it with the base."""
        # MMEngine runs meta['config'] of a resumed file as Python.
        checkpoint.get('meta', {}).pop('config', None)
        model = plain_model(runner)
        if not find_injected(model):
            return
        meta = checkpoint.get('meta', {}).get('mmpetl')
        if meta is None:
            self._take_whole(runner, model, checkpoint)
            return
        check_delta_meta(model, meta)
        state = checkpoint['state_dict']
        load_delta_state(model, state)
        for key, value in model.state_dict().items():
            state.setdefault(key, value)
        self._resume_rng = checkpoint.get('rng')

    def _take_whole(self, runner: Runner, model: nn.Module, checkpoint: dict) -> None:
        """Start from a whole model, such as a detector of the zoo."""
        state = checkpoint.get('state_dict', checkpoint)
        state = {k.removeprefix('module.'): v for k, v in state.items()}
        source = str(runner._load_from)
        if load_base(model, state, source):
            runner.logger.info(
                f'the base is now that of {source}; its deltas need it as '
                'model.backbone.checkpoint'
            )

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        changed = base_changes(plain_model(runner))
        if changed:
            raise PETLError(
                f'{len(changed)} tensors of the frozen base changed before training '
                f"({changed[0]} is one); an initialiser outside of MMEngine's "
                'init_weights wrote them: let it leave the injected backbone out'
            )
        if not runner.iter:
            self._resume_rng = None
        if self._resume_rng is not None:
            if len(self._resume_rng) != runner.world_size:
                runner.logger.warning(
                    f'the checkpoint is of {len(self._resume_rng)} processes, these '
                    f'are {runner.world_size}: random numbers will differ'
                )
                self._resume_rng = None
                return
            loop = runner.train_loop
            if hasattr(loop, 'dataloader_iterator'):
                loop.dataloader_iterator = _Skipping(
                    loop.dataloader_iterator, runner.iter, self._own_rng()
                )

    def before_train_epoch(self, runner: Runner) -> None:
        """Continue with the generators as the checkpoint left them."""
        if self._resume_rng is not None:
            if not hasattr(runner.train_loop, 'dataloader_iterator'):
                set_rng_state(self._own_rng())
            self._resume_rng = None

    def _own_rng(self) -> dict:
        return self._resume_rng[get_rank()]

    # ------------------------------------------------------------ validation

    def before_val(self, runner: Runner) -> None:
        """Keep validation from moving the generators of training."""
        self._train_rng = rng_state()

    def after_val(self, runner: Runner) -> None:
        """See :meth:`before_val`."""
        if self._train_rng is not None:
            set_rng_state(self._train_rng)
            self._train_rng = None


def delta_meta(model: nn.Module) -> dict[str, Any]:
    """What a delta says of itself: format, version, method, backbone, base."""
    return delta_facts(model)


def check_delta_meta(model: nn.Module, meta: Mapping[str, Any]) -> None:
    """Raise PETLError unless a delta belongs to this model, method and base."""
    check_facts(meta, delta_facts(model))
