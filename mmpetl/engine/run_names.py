"""Names of runs that no two of a process share.

MMEngine keeps loggers, message hubs and visualizers by name for as long as the process
lives. It names them by config and second, and configs of mmdet and mmseg call every
visualizer ``visualizer``: a second run would write its figures into the first one's
folder.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

_runs = itertools.count(1)


def named_apart(config: Any) -> Any:
    """A copy of a config whose run shares nothing with another of this process.

    The first run keeps its names; those that follow have their number behind them.
    """
    number = next(_runs)
    config = copy.deepcopy(config)
    if number == 1:
        return config
    file = getattr(config, 'filename', None)
    name = config.get('experiment_name') or Path(file or 'run').stem
    config.experiment_name = f'{name}-{number}'
    shown = config.get('visualizer')
    if isinstance(shown, dict) and shown.get('name'):
        shown['name'] = f'{shown["name"]}-{number}'
    return config


def forget(name: str) -> None:
    """Drop what MMEngine keeps of a run, and close its log.

    Args:
        name: ``experiment_name`` of its config; MMEngine's names go on behind it.
    """
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.visualization import Visualizer

    for kind in (MessageHub, MMLogger, Visualizer):
        for full in list(kind._instance_dict):
            if full == name or full.startswith((f'{name}-', f'{name}_')):
                instance = kind._instance_dict.pop(full)
                # Visualizer keeps what its subclasses make; each subclass does too.
                type(instance)._instance_dict.pop(full, None)
                for handler in getattr(instance, 'handlers', ()):
                    handler.close()
