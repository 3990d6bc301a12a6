"""Optimizer groups by owner: deltas, selected base parameters, heads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from mmengine.logging import MMLogger, print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn, optim
from torch.nn.modules.batchnorm import _NormBase

from mmpetl.core import Delta, Owner, PETLError, owners, suggest
from mmpetl.registry import OPTIM_WRAPPER_CONSTRUCTORS

TABLES = (
    'relative_position_bias_table',
    'absolute_pos_embed',
    'pos_embed',
    'cls_token',
)
"""Base parameters with two or more axes that are no weights of a linear map."""

OWNERS = (Owner.DELTA, Owner.SELECTED, Owner.HEAD)
"""Whose parameters train, in the order of their groups."""

FACTORS = (
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
)
"""Numbers that MMEngine's constructor multiplies rate or decay with, by kind."""

SWITCHES = ('decay_all', 'decay_biases')
"""Options that say which parameters decay."""

KNOWN = (
    *(o.value for o in OWNERS),
    *SWITCHES,
    *FACTORS,
    'custom_keys',
    'outside',
)

NAMING = ('params', 'param_names', 'param_name', 'group_name')
"""What upstream's groups hold beside settings of the optimizer."""

FUSED = {
    optim.Adagrad: ('cpu',),
    **dict.fromkeys((optim.Adam, optim.AdamW, optim.SGD), ('cpu', 'cuda')),
}
"""What torch has a fused step for, and on which devices."""

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
"""What MMEngine calls a norm: batch, instance, group and layer norm."""


@dataclass(frozen=True)
class Rule:
    """What a parameter's group adds to the optimizer's own settings."""

    name: str
    """Behind the owner in the name of the group."""
    lr_mult: float = 1.0
    decay_mult: float = 1.0
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of the optimizer, of a custom key."""

    def times(self, factor: float) -> Rule:
        """The same with another rate, which the name tells."""
        if factor == 1:
            return self
        name = f'{self.name}_x{factor:g}'
        return replace(self, name=name, lr_mult=self.lr_mult * factor)


def wished_factors(model: nn.Module) -> dict[int, float]:
    """What deltas wish the rate of their parameters to be multiplied by, by identity.

    Raises:
        PETLError: A delta has no parameter of a name that it gives.
    """
    factors = {}
    for path, module in model.named_modules():
        for name, factor in (
            module.lr_mults.items() if isinstance(module, Delta) else ()
        ):
            try:
                factors[id(module.get_parameter(name))] = factor
            except AttributeError:
                raise PETLError(
                    f'{type(module).__name__} at {path} names a rate for {name!r}, but '
                    'has no such parameter'
                ) from None
    return factors


def described(groups: list[dict[str, Any]]) -> str:
    """One line on groups: ``delta_x16: 24 tensors at lr=0.016, weight_decay=0.05``."""
    parts = []
    for group in groups:
        own = [f'{k}={v:g}' for k, v in group.items() if k in ('lr', 'weight_decay')]
        count = f'{group["name"]}: {len(group["params"])} tensors'
        parts.append(' at '.join([count, ', '.join(own)]) if own else count)
    return f'optimizer groups: {"; ".join(parts)}'


def can_fuse(settings: Mapping[str, Any], params: Iterable[nn.Parameter]) -> bool:
    """Whether torch can step these parameters in one pass, and nobody said otherwise.

    A few hundred small tensors are what many methods train, and by plain operations
    each takes a dozen of them in a step. The result is the same but for rounding.

    Args:
        settings: Config of an optimizer.
        params: What it trains.
    """
    kind = settings.get('type')
    kind = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    said = {'fused', 'foreach', 'capturable', 'differentiable'} & settings.keys()
    return (
        kind in FUSED
        and not said
        and all(p.is_floating_point() and p.device.type in FUSED[kind] for p in params)
    )


def _go_on_fused(optimizer: optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a run that stepped by plain operations, for one that is fused.

    Groups bring the settings that they were saved with, and a fused optimizer with
    those of a plain one fails under a gradient scaler.
    """
    groups = [{**group, 'fused': True} for group in state['param_groups']]
    return {**state, 'param_groups': groups}


@contextmanager
def _quiet() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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
    - ``bias_lr_mult``, ``bias_decay_mult``, ``norm_decay_mult``, ``dwconv_decay_mult``,
      ``flat_decay_mult``: as in MMEngine, for what trains, and in its order: norms,
      biases, depth-wise convolutions, parameters with one axis. A decay given so
      replaces the zero above; factors of the owner come on top;
    - ``custom_keys``: as in MMEngine, the longest key that is a part of a parameter's
      name decides alone, with ``lr_mult``, ``decay_mult`` and other arguments of the
      optimizer;
    - ``outside``: a ``paramwise_cfg`` of upstream for what is outside of the backbones:
      heads get the rates and decays that upstream's constructor gives them, and deltas
      and selected parameters none of it. ``constructor`` in it names another one than
      MMEngine's, such as one for layer decay. An empty dict is upstream's default: one
      rate and one decay for all;
    - ``bypass_duplicate``: a shared parameter is in one group, whatever it says.

    A method may ask for another rate for some of its parameters (``Delta.lr_mults``, as
    LoRA+ does for B). That factor comes on top of all of these, in a group of its own
    whose name ends in it: ``delta_x16``.

    Where torch has a fused step of the optimizer (:func:`can_fuse`), it is taken;
    ``fused=False`` among the optimizer's settings leaves it to plain operations.

    Args:
        optim_wrapper_cfg: Config of the wrapper and its optimizer.
        paramwise_cfg: See above.

    Raises:
        PETLError: ``paramwise_cfg`` holds something else, or factors of a rate or a
            decay that the optimizer is not given.
    """

    def __init__(
        self,
        optim_wrapper_cfg: dict[str, Any],
        paramwise_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(optim_wrapper_cfg, None)
        self._whole_cfg = optim_wrapper_cfg
        self.options = dict(paramwise_cfg or {})
        self.options.pop('bypass_duplicate', None)
        for key, value in self.options.items():
            self._check(key, value)

    def _check(self, key: str, value: Any) -> None:
        if key not in KNOWN:
            raise PETLError(
                f'paramwise_cfg has no key {key!r}.{suggest(key, KNOWN)} '
                f'It takes: {", ".join(KNOWN)}'
            )
        if key in FACTORS:
            self._check_base(
                f'paramwise_cfg: {key}={value}', 'lr' if '_lr_' in key else 'decay'
            )
        elif key == 'custom_keys':
            if not all(isinstance(v, Mapping) for v in dict(value).values()):
                raise PETLError(
                    'paramwise_cfg.custom_keys takes a dict for each part of a name, '
                    f"as in {{'head': dict(lr_mult=10)}}; got {value!r}"
                )
            for part, option in value.items():
                for mult in ('lr', 'decay'):
                    if f'{mult}_mult' in option:
                        what = f'custom_keys[{part!r}].{mult}_mult'
                        self._check_base(f'paramwise_cfg: {what}', mult)
        elif key == 'outside':
            if not isinstance(value, Mapping):
                raise PETLError(
                    'paramwise_cfg.outside takes a paramwise_cfg of upstream, as in '
                    f"dict(custom_keys={{'query_embed': dict(decay_mult=0)}}); got "
                    f'{value!r}'
                )
        elif key not in SWITCHES:
            for mult in value if isinstance(value, Mapping) else (value,):
                if mult not in ('lr_mult', 'decay_mult'):
                    raise PETLError(
                        f'paramwise_cfg.{key} takes lr_mult and decay_mult, '
                        f'not {mult!r}'
                    )

    def _check_base(self, what: str, kind: str) -> None:
        name = {'lr': 'lr', 'decay': 'weight_decay'}[kind]
        if self.optimizer_cfg.get(name) is None:
            raise PETLError(
                f'{what} multiplies {name}, which optim_wrapper.'
                'optimizer does not name; name it there'
            )

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups, each with its ``name``, in a fixed order."""
        lr = self.optimizer_cfg.get('lr')
        decay = self.optimizer_cfg.get('weight_decay')
        by_owner = owners(model)
        outside = self._outside(model) if 'outside' in self.options else None
        wished = wished_factors(model)
        if wished:
            self._check_base('a factor of a method', 'lr')
        groups: dict[tuple[int, str], dict[str, Any]] = {}
        for name, param in model.named_parameters():
            if not param.requires_grad:
                continue
            owner = by_owner[name]
            module = model.get_submodule(name.rpartition('.')[0])
            if owner is Owner.HEAD and outside is not None:
                rule = outside.get(id(param), Rule(''))
            else:
                rule = self._custom(name) or self._rule(owner, name, module, param)
            rule = rule.times(wished.get(id(param), 1.0))
            # Owners in their order, and within one what has a rule of its own last.
            key = (2 * OWNERS.index(owner) + bool(rule.name), owner.value + rule.name)
            if key not in groups:
                groups[key] = {'params': [], 'name': key[1]}
                if lr is not None:
                    groups[key]['lr'] = lr * rule.lr_mult
                if decay is not None:
                    groups[key]['weight_decay'] = decay * rule.decay_mult
                groups[key] |= rule.more
            groups[key]['params'].append(param)
        return [groups[key] for key in sorted(groups)]

    def _outside(self, model: nn.Module) -> dict[int, Rule]:
        """What upstream's constructor would do with each parameter, by identity."""
        options = dict(self.options['outside'])
        kind = options.pop('constructor', 'DefaultOptimWrapperConstructor')
        if not options:
            return {}
        whole = {'optim_wrapper_cfg': self._whole_cfg, 'paramwise_cfg': options}
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.build({'type': kind, **whole})
        given: list[dict[str, Any]] = []
        with _quiet():  # a line for each parameter, of the backbone too
            constructor.add_params(given, model)
        lr = self.optimizer_cfg.get('lr') or 1.0
        decay = self.optimizer_cfg.get('weight_decay') or 1.0
        rules, labels = {}, {}
        for group in given:
            more = {k: v for k, v in group.items() if k not in NAMING}
            factors = (
                more.pop('lr', lr) / lr,
                more.pop('weight_decay', decay) / decay,
            )
            same = repr((factors, more))
            label = labels.setdefault(same, f'_{len(labels)}' if labels else '')
            for param in group['params']:
                rules[id(param)] = Rule(label, *factors, more)
        return rules

    def _custom(self, name: str) -> Rule | None:
        """The rule of the longest custom key in a name, the first of equally long."""
        keys = self.options.get('custom_keys', {})
        for key in sorted(sorted(keys), key=len, reverse=True):
            if key in name:
                more = dict(keys[key])
                factors = more.pop('lr_mult', 1.0), more.pop('decay_mult', 1.0)
                return Rule(f'[{key}]', *factors, more)
        return None

    def _rule(
        self, owner: Owner, name: str, module: nn.Module, param: nn.Parameter
    ) -> Rule:
        """The rule of a parameter that no custom key names."""
        last = name.rpartition('.')[2]
        is_norm = isinstance(module, NORMS)
        is_bias = last == 'bias'
        is_layer_norm = isinstance(module, nn.LayerNorm)
        depthwise = (
            isinstance(module, nn.Conv2d) and module.in_channels == module.groups
        )
        kinds = {
            'norm': is_norm,
            'bias': is_bias,
            'dwconv': depthwise,
            'flat': param.ndim == 1,
        }
        own = self.options.get(owner.value, {})
        label, decay_mult = '', own.get('decay_mult', 1.0)
        decay_biases = self.options.get('decay_biases', False) and not is_layer_norm
        flat = last in TABLES or (param.ndim <= 1 and not decay_biases)
        for kind, applies in kinds.items():
            factor = self.options.get(f'{kind}_decay_mult')
            if applies and factor is not None:
                label, decay_mult = f'_{kind}', factor * decay_mult
                break
        else:
            if flat and not self.options.get('decay_all', False):
                label, decay_mult = '_no_decay', 0.0
        lr_mult = own.get('lr_mult', 1.0)
        if is_bias and not is_norm and 'bias_lr_mult' in self.options:
            lr_mult *= self.options['bias_lr_mult']
            label += '_bias_lr'
        return Rule(label, lr_mult, decay_mult)

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
        print_log(described(groups), logger='current')
        wrapper_cfg = self.optim_wrapper_cfg.copy()
        wrapper_cfg.setdefault('type', 'OptimWrapper')
        optimizer_cfg = self.optimizer_cfg.copy()
        fused = can_fuse(optimizer_cfg, (p for g in groups for p in g['params']))
        if fused:
            optimizer_cfg['fused'] = True
        optimizer_cfg['params'] = groups
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        if fused:
            optimizer.register_load_state_dict_pre_hook(_go_on_fused)
        return OPTIM_WRAPPERS.build(wrapper_cfg, default_args={'optimizer': optimizer})
