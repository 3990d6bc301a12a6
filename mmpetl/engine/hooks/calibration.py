"""The data pass that some methods need before training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import broadcast, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmpetl.core import Method, PETLError, injections
from mmpetl.datasets.identity import REPEATING, innermost, kind_of
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.resuming import rng_state, set_rng_state
from mmpetl.registry import HOOKS

MIXING = ('MultiImageMixDataset',)
"""Data sets that make samples of several, by transforms of their own."""


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Runs ``Method.calibrate`` once before training, on rank 0, and broadcasts.

    Rank 0 sees the whole training set, so that the result does not depend on the number
    of processes. A run that is resumed, or that starts from a calibrated delta, skips
    it: the buffers it fills are in the checkpoint. So do slots that are frozen or
    switched off. Training draws the same random numbers with and without it.

    Args:
        pipeline: Transforms of the training set during the pass; None for those that
            the method asks for.
    """

    priority = 'HIGH'

    def __init__(self, pipeline: Sequence[Any] | None = None) -> None:
        self.pipeline = pipeline

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
        pipeline = method.calibration_pipeline
        method.calibrate(model, training_data(runner, pipeline, self.pipeline))
        set_rng_state(state)


def training_data(
    runner: Runner, pipeline: str, transforms: Sequence[Any] | None = None
) -> DataLoader:
    """The training data of a run, with the transforms of ``'train'`` or ``'test'``.

    Only the transforms of a dataset with a ``pipeline`` can be exchanged; where the run
    tests on none, those of validation serve, and else those of training. What divides
    or joins data sets stays around them, so that no sample is read that the training
    holds out; what repeats or mixes the whole is left out. Test images may differ in
    size, so they come in batches of the size of the test loader.

    Args:
        runner: Its training data are read.
        pipeline: Whose transforms.
        transforms: Others, in place of these.

    Raises:
        PETLError: There are other transforms, and none that they could replace.
    """
    loader = runner.train_loop.dataloader
    own = runner.cfg.get('train_dataloader')
    config = _dataset(own)
    if not _exchangeable(config):
        if transforms is None:
            return loader
        raise PETLError(
            'CalibrationHook has a pipeline, but the training set has none to exchange '
            'for it; give it a dataset with a pipeline, or leave the pipeline out'
        )
    if transforms is not None:
        return _with_transforms(loader, config, transforms, own.get('batch_size', 1))
    for phase in ('test', 'val') if pipeline == 'test' else ():
        other = runner.cfg.get(f'{phase}_dataloader')
        dataset = _dataset(other)
        if _exchangeable(dataset):
            size, first = other.get('batch_size', 1), next(innermost(dataset))
            return _with_transforms(loader, config, first['pipeline'], size)
    return loader


def _with_transforms(
    loader: DataLoader, config: Any, transforms: Sequence[Any], batch_size: int
) -> DataLoader:
    """A loader like this one, of the set that ``config`` builds with ``transforms``.

    What stands around the innermost sets stays: it may say which samples are held out.
    """
    config = copy.deepcopy(config)
    for dataset in innermost(config):
        dataset['pipeline'] = copy.deepcopy(transforms)
    return DataLoader(
        DATASETS.build(config),
        batch_size=batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )


def _dataset(loader: Any) -> Any:
    """The config of a loader's dataset, without what repeats or mixes all of it."""
    config = loader.get('dataset') if isinstance(loader, dict) else None
    while isinstance(config, dict) and kind_of(config) in (*REPEATING, *MIXING):
        config = config['dataset']
    return config


def _exchangeable(config: Any) -> bool:
    """Whether every innermost set of a dataset's config has transforms to exchange."""
    return config is not None and all(
        isinstance(dataset, dict) and 'pipeline' in dataset
        for dataset in innermost(config)
    )
