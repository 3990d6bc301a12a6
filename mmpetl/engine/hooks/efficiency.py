"""What a run costs: parameters, memory, time; and the PPT metric."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from mmpetl.core import count_trainable, describe
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.hooks.common import as_number, finite, plain_model, plain_value
from mmpetl.evaluation.metric_names import FRACTIONS, PRIMARY, meant
from mmpetl.evaluation.ppt import ppt
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class EfficiencyHook(Hook):
    """Logs parameters by owner, step time and peak memory, and adds PPT to metrics.

    Leaves ``efficiency.json`` in the work folder: counts, ``step_time_s`` (median
    over steps of the optimizer, all passes of each, without data loading, the first
    five left out), ``train_s``,
    ``peak_memory_bytes`` (allocated on the GPU, or the process's peak resident set
    on a CPU), device, and the last metrics, those per class as lists; what is not
    finite is null. PPT is left out where a metric is no number in its range.
    """

    priority = 'NORMAL'

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._passes = 0.0
        self.record: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        self.counts = count_trainable(plain_model(runner))

    def before_train(self, runner: Runner) -> None:
        model = plain_model(runner)
        self.counts = count_trainable(model)
        runner.logger.info(describe(model))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        self.step_started = time.perf_counter()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        self._passes += time.perf_counter() - self.step_started
        if _has_stepped(runner.optim_wrapper):
            self.steps.append(self._passes)
            self._passes = 0.0

    def after_train(self, runner: Runner) -> None:
        later = self.steps[5:] or self.steps
        on_gpu = torch.cuda.is_available()
        self.record |= {
            'counts': self.counts.as_dict(),
            'step_time_s': statistics.median(later) if later else None,
            'steps': len(self.steps),
            'train_s': time.perf_counter() - self.started,
            'peak_memory_bytes': peak_memory_bytes(),
            'device': torch.cuda.get_device_name() if on_gpu else 'cpu',
        }
        self._write(runner)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        self._add_ppt(runner, metrics, 'val')

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        self._add_ppt(runner, metrics, 'test')

    def _add_ppt(self, runner: Runner, metrics: dict | None, phase: str) -> None:
        if not metrics:
            return
        for name, value in list(metrics.items()):
            score = as_number(value)
            if score is None or name.startswith('PPT/') or meant(name) not in PRIMARY:
                continue
            score /= 1 if meant(name) in FRACTIONS else 100
            if 0 <= score <= 1:  # COCO's metrics say -1 where there was nothing to find
                metrics[f'PPT/{name}'] = ppt(score, self.counts.backbone)
        self.record[phase] = plain_value(metrics)
        self.record['counts'] = self.counts.as_dict()
        self._write(runner)

    def _write(self, runner: Runner) -> None:
        if is_main_process():
            path = Path(runner.work_dir) / 'efficiency.json'
            text = json.dumps(finite(self.record), indent=2) + '\n'
            AtomicLocalBackend().put_text(text, path)


def _has_stepped(wrapper: Any) -> bool:
    """Whether the pass that has just ended was the last of a step.

    Several optimizers, and engines that step themselves, do not say; each pass counts.
    """
    plain = isinstance(wrapper, OptimWrapper)
    if not plain or isinstance(wrapper, OptimWrapperDict):
        return True
    return wrapper.should_update()


def peak_memory_bytes() -> int:
    """Most memory allocated on the GPU, or the process's peak resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
