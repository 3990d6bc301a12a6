"""Optimizer groups by owner: deltas, selected base parameters, heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from mmpetl.core import Owner, PETLError, owners, suggest
from mmpetl.registry import OPTIM_WRAPPER_CONSTRUCTORS

TABLES = (
    'relative_position_bias_table',
    'absolute_pos_embed',
    'pos_embed',
    'cls_token',
)
"""Base parameters with two or more axes that are no weights of a linear map."""

SWITCHES = ('decay_all', 'decay_biases')
"""Options that say which parameters decay."""


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OwnerOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Groups trainable parameters by owner; a frozen tensor is never handed on.

    Biases, norms, scales (every parameter with at most one axis) and position tables
    get no weight decay. ``paramwise_cfg`` may hold

    - ``delta``, ``selected``, ``head``: ``dict(lr_mult=1.0, decay_mult=1.0)`` each;
    - ``decay_all``: True gives every trainable parameter the same decay, as most
      public code does;
    - ``decay_biases``: True spares position tables and LayerNorms only, as the
      published configs of dense Swins do.

    Args:
        optim_wrapper_cfg: Config of the wrapper and its optimizer.
        paramwise_cfg: See above.
    """

    def __init__(
        self,
        optim_wrapper_cfg: dict[str, Any],
        paramwise_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(optim_wrapper_cfg, None)
        self.options = dict(paramwise_cfg or {})
        known = ('delta', 'selected', 'head', *SWITCHES)
        for key, value in self.options.items():
            if key not in known:
                raise PETLError(
                    f'paramwise_cfg has no key {key!r}.{suggest(key, known)} '
                    f'It takes: {", ".join(known)}'
                )
            for mult in () if key in SWITCHES else value:
                if mult not in ('lr_mult', 'decay_mult'):
                    raise PETLError(
                        f'paramwise_cfg.{key} takes lr_mult and decay_mult, '
                        f'not {mult!r}'
                    )

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups, each with its ``name``, in a fixed order."""
        lr = self.optimizer_cfg.get('lr')
        decay = self.optimizer_cfg.get('weight_decay')
        by_owner = owners(model)
        groups: dict[str, dict[str, Any]] = {}
        for owner in (Owner.DELTA, Owner.SELECTED, Owner.HEAD):
            option = self.options.get(owner.value, {})
            for flat in (False, True):
                group: dict[str, Any] = {
                    'params': [],
                    'name': f'{owner.value}{"_no_decay" if flat else ""}',
                }
                if lr is not None:
                    group['lr'] = lr * option.get('lr_mult', 1.0)
                if decay is not None:
                    mult = 0.0 if flat else option.get('decay_mult', 1.0)
                    group['weight_decay'] = decay * mult
                groups[group['name']] = group
        spared = self.spared(model)
        for name, param in model.named_parameters():
            if not param.requires_grad:
                continue
            flat = name in spared
            key = f'{by_owner[name].value}{"_no_decay" if flat else ""}'
            groups[key]['params'].append(param)
        return [group for group in groups.values() if group['params']]

    def spared(self, model: nn.Module) -> set[str]:
        """Names of the parameters that no decay pulls at."""
        if self.options.get('decay_all', False):
            return set()
        biases = not self.options.get('decay_biases', False)
        return {
            name
            for path, module in model.named_modules()
            for name, param in module.named_parameters(path, recurse=False)
            if name.rpartition('.')[2] in TABLES
            or (param.ndim <= 1 and (biases or isinstance(module, nn.LayerNorm)))
        }

    def __call__(self, model: nn.Module) -> Any:
        """The optimizer wrapper for ``model``.

        Raises:
            PETLError: Nothing in the model trains.
        """
        if is_model_wrapper(model):
            model = model.module
        groups = self.groups(model)
        if not groups:
            raise PETLError(
                'nothing trains: the model has no head and the method no parameters; '
                'choose another method, or give the model a head'
            )
        wrapper_cfg = self.optim_wrapper_cfg.copy()
        wrapper_cfg.setdefault('type', 'OptimWrapper')
        optimizer_cfg = self.optimizer_cfg.copy()
        optimizer_cfg['params'] = groups
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        return OPTIM_WRAPPERS.build(wrapper_cfg, default_args={'optimizer': optimizer})
