"""A run on random pictures: seconds, no files but those of the run."""

from __future__ import annotations

import copy

import pytest
from pictures import BACKBONE


@pytest.fixture
def make_runner(tmp_path):
    """``make_runner(folder, by_epoch=True, **overrides)`` builds a Runner."""
    import mmpretrain.datasets
    import mmpretrain.evaluation
    import mmpretrain.models  # noqa: F401
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    import mmpetl.engine  # noqa: F401

    count = 0

    made: list[Runner] = []

    def make(
        folder='run',
        *,
        by_epoch=True,
        method=None,
        backbone=None,
        spoil=None,
        num_workers=0,
        checkpoint=None,
        hooks=(),
        of=None,
        **overrides,
    ):
        nonlocal count
        count += 1
        sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
        loader = {
            'batch_size': 8,
            'num_workers': num_workers,
            'persistent_workers': False,
            'collate_fn': {'type': 'default_collate'},
        }
        pictures = {'type': 'mmengine.RandomPictures'}
        length = 4 if by_epoch else 20
        config = Config(
            {
                'default_scope': 'mmpretrain',
                'work_dir': str(tmp_path / folder),
                'experiment_name': f'{tmp_path.name}-{folder}-{count}',
                'model': {
                    'type': 'ImageClassifier',
                    'backbone': {
                        'type': 'mmpetl.PETLBackbone',
                        'backbone': copy.deepcopy(backbone or BACKBONE),
                        'method': method
                        or {'type': 'LoRA', 'rank': 2, 'drop_rate': 0.1},
                        'checkpoint': checkpoint,
                    },
                    'head': {
                        'type': 'LinearClsHead',
                        'num_classes': 10,
                        'in_channels': 32,
                    },
                    'data_preprocessor': {
                        'mean': [127.5] * 3,
                        'std': [127.5] * 3,
                        'num_classes': 10,
                    },
                },
                'train_dataloader': {
                    **loader,
                    'sampler': {'type': sampler, 'shuffle': True},
                },
                'val_dataloader': {
                    **loader,
                    'sampler': {'type': 'DefaultSampler', 'shuffle': False},
                },
                'train_cfg': {'by_epoch': True, 'max_epochs': length, 'val_interval': 1}
                if by_epoch
                else {'by_epoch': False, 'max_iters': length, 'val_interval': 5},
                'val_cfg': {},
                'val_evaluator': {'type': 'Accuracy'},
                'optim_wrapper': {
                    'type': 'OptimWrapper',
                    'optimizer': {'type': 'AdamW', 'lr': 1e-2, 'weight_decay': 0.05},
                    'constructor': 'mmpetl.OwnerOptimWrapperConstructor',
                },
                'param_scheduler': [
                    {
                        'type': 'CosineAnnealingLR',
                        'T_max': length,
                        'by_epoch': by_epoch,
                    }
                ],
                'default_hooks': {
                    'checkpoint': {
                        'type': 'mmpetl.DeltaCheckpointHook',
                        'interval': 1 if by_epoch else 5,
                        'by_epoch': by_epoch,
                        'max_keep_ckpts': 2,
                        'save_best': 'auto',
                    }
                },
                'custom_hooks': [
                    {'type': 'mmpetl.CalibrationHook'},
                    {'type': 'mmpetl.BaseGuardHook'},
                    {'type': 'mmpetl.EfficiencyHook'},
                    {'type': 'mmpetl.NonFiniteGuardHook'},
                ],
                'randomness': {'seed': 42},
                'log_level': 'WARNING',
                **overrides,
            }
        )
        config.train_dataloader.dataset = {**pictures, 'spoil': spoil}
        config.val_dataloader.dataset = pictures
        DefaultScope._instance_dict.clear()
        runner = (of or Runner).from_cfg(config)
        for hook in hooks:
            runner.register_hook(hook)
        made.append(runner)
        return runner

    yield make
    # Workers that the next test's are forked beside end seconds later.
    for runner in made:
        for loop in (runner._train_loop, runner._val_loop):
            iterator = getattr(getattr(loop, 'dataloader', None), '_iterator', None)
            if iterator is not None:
                iterator._shutdown_workers()
