"""The data pass that some methods need before training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.dist import broadcast, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmpetl.core import Method, injections
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.resuming import rng_state, set_rng_state
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Runs ``Method.calibrate`` once before training, on rank 0, and broadcasts.

    Rank 0 sees the whole training set, so that the result does not depend on the number
    of processes. A run that is resumed, or that starts from a calibrated delta, skips
    it: the buffers it fills are in the checkpoint. So do slots that are frozen or
    switched off. Training draws the same random numbers with and without it.
    """

    priority = 'HIGH'

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        model = plain_model(runner)
        for _, module, record in injections(model):
            for name, slot in record.slots.items():
                if not slot.enabled or slot.frozen or not slot.method.calibrates:
                    continue
                if self._done(module, name):
                    continue
                if is_main_process():
                    self._calibrate(runner, model, slot.method)
                if is_distributed():
                    with torch.no_grad():
                        for tensor in module.state_dict().values():
                            broadcast(tensor)

    def _done(self, module: torch.nn.Module, slot: str) -> bool:
        done = dict(module.named_buffers()).get(f'petl.shared.{slot}.done')
        return done is not None and bool(done)

    def _calibrate(
        self, runner: Runner, model: torch.nn.Module, method: Method
    ) -> None:
        runner.logger.info(f'calibrating {method!r}')
        state = rng_state()
        method.calibrate(model, training_data(runner, method.calibration_pipeline))
        set_rng_state(state)


def training_data(runner: Runner, pipeline: str) -> DataLoader:
    """The training data of a run, with the transforms of ``'train'`` or ``'test'``.

    Only the transforms of a dataset with a ``pipeline`` can be exchanged; where the run
    tests on none, those of validation serve, and else those of training. Test images
    may differ in size, so they come in batches of the size of the test loader.
    """
    loader = runner.train_loop.dataloader
    config = _dataset(runner.cfg.get('train_dataloader'))
    if pipeline == 'train' or config is None or 'pipeline' not in config:
        return loader
    for phase in ('test', 'val'):
        other = runner.cfg.get(f'{phase}_dataloader')
        dataset = _dataset(other)
        if dataset is not None and 'pipeline' in dataset:
            config = copy.deepcopy(config)
            config.pipeline = copy.deepcopy(dataset.pipeline)
            return DataLoader(
                DATASETS.build(config),
                batch_size=other.get('batch_size', 1),
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                worker_init_fn=loader.worker_init_fn,
            )
    return loader


def _dataset(loader: Any) -> Any:
    """The config of a loader's dataset, of the inner one where it is wrapped."""
    config = loader.get('dataset') if isinstance(loader, dict) else None
    while config is not None and isinstance(config.get('dataset'), dict):
        config = config.dataset
    return config
