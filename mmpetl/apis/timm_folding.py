"""A folded classifier on a trunk of timm as the weights of timm's own model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmpetl.apis.building import without_memory
from mmpetl.config.nodes import BUILDER
from mmpetl.core import PETLError

TRUNK = 'mmpetl.TimmBackbone'
PREFIX = 'backbone.timm_model.'
HEAD = 'head.fc.'


def timm_trunk(model: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Config of the trunk, where a model is timm's with a Linear behind; else None.

    Args:
        model: Config of a model.
    """
    trunk = (model or {}).get('backbone') or {}
    trunk = trunk.get('backbone') if trunk.get('type') == BUILDER else trunk
    head = (model or {}).get('head') or {}
    plain = head.get('type') == 'LinearClsHead' and not (model or {}).get('neck')
    return trunk if plain and (trunk or {}).get('type') == TRUNK else None


def load_line(model: Mapping[str, Any], checkpoint: str | os.PathLike) -> str | None:
    """The call of timm that loads a folded checkpoint; None where timm does not.

    Args:
        model: Config of the model that was folded.
        checkpoint: What :func:`mmpetl.apis.fold_checkpoint` wrote.
    """
    trunk = timm_trunk(model)
    if not trunk:
        return None
    given = {'num_classes': model['head']['num_classes'], **_arguments(trunk)}
    given['checkpoint_path'] = str(checkpoint)
    words = ', '.join(f'{key}={value!r}' for key, value in given.items())
    return f'timm.create_model({trunk["model_name"]!r}, {words})'


def as_timm(state: Mapping[str, Tensor], model: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a folded classifier by the keys of timm's model.

    Args:
        state: By the keys of the classifier.
        model: Its config, of which :func:`timm_trunk` gives a trunk.

    Raises:
        PETLError: The model of timm has no single Linear as its classifier.
    """
    import timm

    trunk = timm_trunk(model)
    name, classes = trunk['model_name'], model['head']['num_classes']
    with without_memory():
        plain = timm.create_model(name, num_classes=classes, **_arguments(trunk))
    head = plain.pretrained_cfg.get('classifier')
    found = {
        key.replace(PREFIX, '').replace(HEAD, f'{head}.'): value
        for key, value in state.items()
        if key.startswith((PREFIX, HEAD))
    }
    wanted = {key: value.shape for key, value in plain.state_dict().items()}
    if {key: value.shape for key, value in found.items()} != wanted:
        odd = sorted(found.keys() ^ wanted.keys()) or [f'{head}']
        raise PETLError(
            f'{name} of timm has no single linear classifier that the head of this '
            f'model could be ({odd[0]} differs); load the run as it is by '
            'mmpetl.apis.init_model'
        )
    return found


def _arguments(trunk: Mapping[str, Any]) -> dict[str, Any]:
    return dict(trunk.get('model_args') or {})
