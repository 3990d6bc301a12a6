"""The Inferencers of the four toolboxes on a config and a delta of ours.

Upstream's classes read a config file as it stands and load a whole checkpoint. Here
each is given the model that :func:`mmpetl.apis.init_model` makes, and a config that is
written out; what they do with inputs and predictions is theirs.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

from mmpetl.apis.building import class_names, pick_device
from mmpetl.apis.draw import colours
from mmpetl.apis.model import init_model
from mmpetl.apis.names import is_named
from mmpetl.apis.runs import open_run
from mmpetl.config.load import as_config
from mmpetl.config.nodes import find_dataset, test_pipeline
from mmpetl.config.scope import scope_of
from mmpetl.core import PETLError


def inferencer(
    config: Any,
    delta: str | os.PathLike | None = None,
    device: str = 'auto',
    **kwargs: Any,
) -> Any:
    """The Inferencer of a config's toolbox, on a tuned model.

    ============  =====================================================
    mmpretrain    ``ImageClassificationInferencer``
    mmaction2     ``MMAction2Inferencer``
    mmseg         ``MMSegInferencer``
    mmdet         ``DetInferencer``
    ============  =====================================================

    Args:
        config: Config of the run: path, row of a table or ``Config``; or ``zoo/NAME``,
            ``hub://USER/NAME``, which know theirs and are the delta too.
        delta: A published delta, a run's checkpoint or, of a config without a method, a
            whole checkpoint; None leaves the head as it is drawn.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        kwargs: Further arguments of the class, such as ``classes`` or ``input_format``.

    Raises:
        FileNotFoundError: A file is missing.
        PETLError: No Inferencer is known for the config, or the delta is of another
            model.
    """
    if delta is None and is_named(config):
        run = open_run(config)
        config, delta = run.config, run.weights
    config = copy.deepcopy(as_config(config))
    scope = config.get('default_scope')
    if scope not in _MAKERS:
        raise PETLError(
            f'there are Inferencers of {", ".join(_MAKERS)}, and the config is of '
            f'{scope}'
        )
    steps = test_pipeline(config)
    if not steps:
        raise PETLError('the config has no test pipeline, so no input can be prepared')
    # A data set of data sets holds its pipeline deeper than an Inferencer looks.
    config.test_dataloader = {'dataset': {**find_dataset(config), 'pipeline': steps}}
    model = init_model(config, delta, device)
    # Upstream's classes resolve types by the scope of the process, which who made a
    # detector or an Inferencer before may have set, and leave it set.
    with scope_of(config):
        return _MAKERS[scope](model, config, str(pick_device(device)), kwargs)


def _given(base: type, model: Any) -> type:
    """An Inferencer class whose model is there already."""

    class Given(base):
        def _init_model(self, cfg: Any, weights: Any, device: str = 'cpu') -> Any:
            return model

    Given.__name__ = Given.__qualname__ = base.__name__
    return Given


def _count(head: Any, model: Any) -> int:
    """Classes that a head or a model tells apart."""
    count = getattr(head, 'num_classes', None)
    if count is None:
        raise PETLError(
            f'{type(model).__name__} has no num_classes, and the Inferencers are of '
            'models that tell classes apart'
        )
    return count


def _palette(model: Any) -> list[tuple[int, ...]] | None:
    """Colours by label, as tuples, which the visualizers tell from lists of colours."""
    known = model.dataset_meta.get('palette')
    return known and [tuple(colour) for colour in known]


def _classes(model: Any, config: Any, device: str, kwargs: dict[str, Any]) -> Any:
    from mmpretrain.apis import ImageClassificationInferencer

    model._config = config
    names = class_names(model, _count(getattr(model, 'head', None), model))
    return ImageClassificationInferencer(
        model, device=device, **{'classes': names, **kwargs}
    )


def _actions(model: Any, config: Any, device: str, kwargs: dict[str, Any]) -> Any:
    from mmaction.apis.inferencers import ActionRecogInferencer, MMAction2Inferencer

    inner = _given(ActionRecogInferencer, model)(config, device=device, **kwargs)
    if inner.visualizer is not None and 'label_file' not in kwargs:
        inner.visualizer.dataset_meta = model.dataset_meta

    class Given(MMAction2Inferencer):
        def __init__(self) -> None:
            # What its own does, which builds the inner one from a name.
            self.visualizer = None
            self.num_visualized_imgs = 0
            self.actionrecog_inferencer = inner
            self.mode = 'rec'

    Given.__name__ = Given.__qualname__ = MMAction2Inferencer.__name__
    return Given()


def _segments(model: Any, config: Any, device: str, kwargs: dict[str, Any]) -> Any:
    from mmseg.apis import MMSegInferencer

    # Without these its visualizer takes the classes and colours of Cityscapes.
    count = _count(model, model)
    model.dataset_meta = {
        'classes': class_names(model, count),
        'palette': _palette(model) or colours(count),
    }
    return _given(MMSegInferencer, model)(
        config, device=device, **{**model.dataset_meta, **kwargs}
    )


def _boxes(model: Any, config: Any, device: str, kwargs: dict[str, Any]) -> Any:
    from mmdet.apis import DetInferencer

    palette = kwargs.get('palette') or _palette(model) or 'random'
    model.dataset_meta = {**model.dataset_meta, 'palette': palette}
    return _given(DetInferencer, model)(config, device=device, **kwargs)


_MAKERS: dict[str, Callable[[Any, Any, str, dict[str, Any]], Any]] = {
    'mmpretrain': _classes,
    'mmaction': _actions,
    'mmseg': _segments,
    'mmdet': _boxes,
}
