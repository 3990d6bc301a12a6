"""Methods: what is plugged where. One paper per file in ``mmpetl/methods``."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmpetl.core.affine import Affine
from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError, suggest
from mmpetl.core.patterns import first_match
from mmpetl.core.peft_format import PeftFormat
from mmpetl.core.plugins import VARIABLE, import_plugins
from mmpetl.core.role import Role
from mmpetl.core.site import KINDS, LEAF_KINDS, Site
from mmpetl.registry import METHODS

FAMILIES = (
    'baseline',
    'specification',
    'adapter',
    'prompt',
    'prefix',
    'side',
    'reparameterisation',
    'multi_task',
)
"""Families of methods, in the order of tables and pictures."""


class Method:
    """Base of every method.

    A subclass keeps each argument of its ``__init__`` as an attribute of the same
    name, so that :meth:`config` can write it down.

    Attributes:
        targets: Kinds of the sites it plugs into. An instance may narrow or widen
            them.
        optional: Kinds it plugs into where a backbone offers them.
        requires: Kinds that a backbone must offer for what it reads of their sites,
            though nothing is plugged there.
        substitutes: Kinds that together take the place of a target where a backbone
            does not offer it: ``attn.q``, ``attn.k`` and ``attn.v`` for ``attn.qkv``
            where the algebra is one of rows.
        targets_any: Whether it acts at those of its targets that a backbone offers,
            and needs only one of them.
        calibration_pipeline: Whose transforms the training data go through in
            :meth:`calibrate`, those of ``'train'`` or of ``'test'``.
        starts_as_identity: Whether a freshly injected backbone computes what the
            base computes. Where that depends on the backbone, :meth:`choose` says it
            of the one at hand.
        family: One of :data:`FAMILIES`.
        replaces: Which of the sites ``out`` and ``feature`` it hands a feature of its
            own over at, dropping what arrives there.
        normed: Whether what it hands over at ``out`` passes the norm there, which then
            is not lost.
        splits: A kind at which it acts in just those blocks where it makes several
            streams of one, stacked along the batch axis from ``attn.proj`` to the end
            of the block; empty where it makes none.
        tasks: Names of the tasks, where it tells tasks apart.
        phases: Training loops (:class:`mmpetl.engine.loops.Phase`), as configs name
            them, that run in this order before the training that counts. An instance
            that needs none has none.
        losses: Names of the losses that it adds to those of the task, of what its
            deltas note by :meth:`~mmpetl.core.delta.Delta.add_term`.
        teaches: Whether a second pass over each batch, with it :meth:`as_teacher`,
            teaches the first one (:mod:`mmpetl.core.teaching`).
        leaf_kinds: Which :data:`~mmpetl.core.site.LEAF_KINDS` it acts at in a model
            that no file describes; ``()`` where it acts there by what it selects
            alone, None where it needs a described backbone.
        sized: Arguments that may differ by layer, ``rank={'*.attn.qkv': 16, '*': 4}``.
            Only :meth:`check`, :meth:`build` and what follows from them read these.
        placed: What it reads at a place of any model that a user names: ``''`` what
            enters and leaves, ``'grid'`` their grid too; None where it needs more.
        across: Whether it also acts where what leaves has another shape than what
            enters (:attr:`Site.reshapes`), as it makes nothing of both.
        reads_grid: Whether the features of a block, from its entry to its exit, must
            lie on a grid.
        apart: Whether its deltas act each for itself, so that ``layers`` and
            ``blocks`` may leave some out.
        reads_windows: Whether its deltas have windows of their own, made of those of
            their sites, so that a host keeps its windows while they are in it.
        along_time: Whether it looks along time, so that time must be an axis of the
            grid, or frames of clips the images of a batch.
        neutral: Values of the parameters of its deltas at which they change nothing,
            by name, where what they do is linear in the distance from these: then
            slots can be mixed. None where it is not.
        peft: How an adapter of Hugging Face's peft says it, None where none does.
        peft_bias: Arguments with which it trains the biases that peft's ``bias`` does,
            None where it is not about that.
    """

    neutral: ClassVar[Mapping[str, float] | None] = None
    peft: ClassVar[PeftFormat | None] = None
    peft_bias: ClassVar[Mapping[str, Any] | None] = None

    leaf_kinds: ClassVar[tuple[str, ...] | None] = None
    sized: ClassVar[tuple[str, ...]] = ()
    placed: ClassVar[str | None] = None
    across: bool = False
    reads_grid: ClassVar[bool] = False
    apart: ClassVar[bool] = True
    reads_windows: ClassVar[bool] = False
    along_time: ClassVar[bool] = False
    targets: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    substitutes: Mapping[str, tuple[str, ...]] = {}
    targets_any: ClassVar[bool] = False
    calibration_pipeline: ClassVar[str] = 'train'
    starts_as_identity: bool = True
    family: ClassVar[str] = ''
    replaces: ClassVar[tuple[str, ...]] = ()
    normed: ClassVar[bool] = False
    splits: ClassVar[str] = ''
    tasks: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    teaches: bool = False

    def __init__(self) -> None:
        # Without it a method that takes nothing would show the signature of `object`.
        pass

    def wants(self, site: Site) -> bool:
        """Whether a delta goes into this site."""
        return site.kind in self.targets or site.kind in self.optional

    def choose(self, sites: list[Site]) -> list[Site]:
        """The wanted ones of all sites; override where one depends on others."""
        instead = self.instead_of({site.kind for site in sites})
        return [site for site in sites if self.wants(site) or site.kind in instead]

    def instead_of(self, offered: set[str]) -> set[str]:
        """The kinds that take the place of targets that are not offered."""
        return {
            kind
            for target in self.targets
            if target not in offered
            for kind in self.substitutes.get(target, ())
        }

    def lacks(self, offered: set[str]) -> list[str]:
        """The kinds it needs and a backbone with these kinds does not offer."""
        lacking = [
            kind
            for kind in self.targets
            if kind not in offered
            and not (self.substitutes.get(kind) and self._replaced(kind, offered))
        ]
        if self.targets_any and len(lacking) < len(self.targets):
            lacking = []
        return lacking + [kind for kind in self.requires if kind not in offered]

    def _replaced(self, kind: str, offered: set[str]) -> bool:
        return set(self.substitutes[kind]) <= offered

    def choose_leaves(self, sites: list[Site]) -> list[Site]:
        """The wanted ones of the layers of a model that no file describes.

        Raises:
            PETLError: The arguments ask for what such a model does not tell.
        """
        kinds = self.leaf_kinds or ()
        return [site for site in sites if site.kind in kinds or self.wants(site)]

    def has_room(self, site: Site) -> bool:
        """Whether a layer of such a model is wide enough for it."""
        return True

    @classmethod
    def on_any_model(cls) -> bool:
        """Whether it acts on a model that no file describes."""
        return not cls.plugs() or cls.leaf_kinds is not None

    @classmethod
    def plugs(cls) -> bool:
        """Whether it plugs deltas in, rather than only selecting parameters."""
        return cls.build is not Method.build

    @property
    def differs(self) -> bool:
        """Whether an argument is given by layer."""
        return any(isinstance(getattr(self, n), Mapping) for n in self.sized)

    def at(self, names: Sequence[str]) -> Method:
        """This method with the arguments that it has at one layer.

        Args:
            names: What the layer is called.

        Raises:
            PETLError: An argument is given by layer, and not for this one.
        """
        if not self.differs:
            return self
        args = {k: v for k, v in self.config().items() if k != 'type'}
        for name in self.sized:
            if isinstance(args[name], Mapping):
                pattern = first_match(args[name], names)
                if pattern is None:
                    raise PETLError(
                        f'{type(self).__name__} has no {name} for {names[-1]}; '
                        f"{name} names {', '.join(map(repr, args[name]))}: add '*' for "
                        'the rest'
                    )
                args[name] = args[name][pattern]
        return type(self)(**args)

    def check(self, sites: list[Site]) -> None:
        """Raise PETLError where the arguments do not fit the wanted sites."""

    def share(self, sites: list[Site]) -> nn.Module | None:
        """A module that all deltas of this method use, or None."""
        return None

    def build(self, site: Site) -> Delta:
        """The delta for one site."""
        raise NotImplementedError

    def selects(self, role: Role) -> bool:
        """Whether a base parameter stays trainable."""
        return False

    def select(self, roles: list[Role]) -> set[str]:
        """Names of all base parameters that stay trainable.

        Override it where one choice depends on the others, else :meth:`selects`.
        """
        return {role.name for role in roles if self.selects(role)}

    @property
    def trains_weights(self) -> bool:
        """Whether the base weights behind its own sites stay trainable, too.

        These and no others: what a role says does not tell whether a site is there.
        """
        return False

    def initialise(
        self, deltas: Mapping[Site, Delta], weights: Callable[..., Affine]
    ) -> None:
        """Start values that are read off the base weights.

        Args:
            deltas: What :meth:`build` returned, by site.
            weights: ``weights(host, kind)`` gives the base weights of a site;
                ``weights('', kind, index)`` those of one of several outputs.
        """

    def fold(self, site: Site, delta: Delta, affine: Affine) -> None:
        """Write an exact equivalent of ``delta`` into the base weights."""
        raise NotImplementedError

    def fold_before(self, site: Site, delta: Delta, affine: Affine) -> None:
        """Write what ``delta`` does in front of a projection, where it acts behind too.

        :meth:`fold` then writes what it does behind, to which other methods may stand
        nearer, or farther, than to what is in front.
        """
        raise NotImplementedError

    def mixed(self, others: Sequence[Method]) -> Method:
        """The method that holds a weighted sum of its own and of others of its class.

        Raises:
            PETLError: They differ in what a sum cannot bring together.
        """
        for other in others:
            if other.config() != self.config():
                raise PETLError(f'{self!r} and {other!r} differ, and do not mix')
        return self

    def mix(self, into: Delta, parts: Sequence[tuple[float, Delta]]) -> None:
        """Write the sum of deltas at one site, each times its weight, into another."""
        for name, neutral in (self.neutral or {}).items():
            change = sum(
                weight * (delta.get_parameter(name).double() - neutral)
                for weight, delta in parts
            )
            into.get_parameter(name).copy_(neutral + change)

    @property
    def mixes(self) -> bool:
        """Whether a weighted sum of what it has learnt does the sum of what it does."""
        own = type(self).mix is not Method.mix
        return own or self.neutral is not None or not self.plugs()

    def calibrate(self, backbone: nn.Module, batches: Iterable[Any]) -> None:
        """A pass over data before training that fills buffers.

        Args:
            backbone: The injected backbone, or the whole model around it.
            batches: The training data; see :attr:`calibration_pipeline`.
        """
        raise NotImplementedError

    def loss(self, name: str, terms: Sequence[Tensor]) -> Tensor:
        """A loss of what the deltas have noted in a pass, their sum unless overridden.

        Args:
            name: One of :attr:`losses`.
            terms: What each delta has noted under it, in float32 or finer.
        """
        return torch.stack(tuple(terms)).sum()

    def as_teacher(self, place: Any) -> AbstractContextManager[None]:
        """Inside of it passes are of the form that teaches, with gradients.

        Args:
            place: Where the deltas are, a :class:`~mmpetl.core.injection.Place`.
        """
        raise NotImplementedError

    def before_step(self, place: Any, step: int, total: int | None) -> None:
        """Add to gradients before a step of the optimizer; nothing else changes.

        They are averaged over processes, accumulated, unscaled and clipped.

        Args:
            place: Where the deltas are, a :class:`~mmpetl.core.calibration.Place`.
            step: Number of the step, from 1; it goes on where a run is resumed.
            total: Steps of the whole training, None where nobody has said.
        """

    def after_step(self, place: Any, step: int, total: int | None) -> None:
        """Write to own parameters and buffers after a step; gradients are still there.

        All processes compute the same. What it remembers lies in buffers, and
        :meth:`share` gives a :class:`~mmpetl.core.steps.Stepped`, so that a resumed run
        goes on as if it had not been killed.

        Args:
            place: As in :meth:`before_step`.
            step: Likewise.
            total: Likewise.
        """

    @classmethod
    def after_phases(cls, args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Arguments for the training that counts, by what the phases have left.

        Args:
            args: The arguments that asked for :attr:`phases`.
            folder: Work folder of the last phase.
        """
        raise NotImplementedError

    def supernet(self, place: Any) -> Any:
        """What a search chooses from, where deltas hold more than acts; else None.

        Args:
            place: Where they are, a :class:`~mmpetl.core.injection.Place`.

        Returns:
            A :class:`~mmpetl.core.supernet.Supernet`.
        """
        return None

    def feature_dims(self, site: Site) -> int:
        """Width of the vector that leaves at a ``feature`` site, for the head."""
        return site.out_dims

    @property
    def scales(self) -> bool:
        """Whether what it changes at a site can be scaled down to nothing."""
        return not self.replaces

    @property
    def features_per_input(self) -> int:
        """How many features leave for one input, stacked along the batch axis."""
        return 1

    @property
    def shares_pass(self) -> bool:
        """Whether slots of it share a forward pass, each on samples of its own.

        Not where tokens, or keys and values, join those of the trunk, and not where
        features leave that are wider or more than those of the base.
        """
        joined = {'tokens', 'attn.core'} & {*self.targets, *self.optional}
        wider = type(self).feature_dims is not Method.feature_dims
        return not (joined or wider) and self.features_per_input == 1

    @property
    def folds(self) -> bool:
        """Whether a tuned backbone can become a plain one."""
        return type(self).fold is not Method.fold

    @property
    def steps(self) -> bool:
        """Whether the method does something at every step of an optimizer."""
        verbs = 'before_step', 'after_step'
        return any(getattr(type(self), v) is not getattr(Method, v) for v in verbs)

    @property
    def calibrates(self) -> bool:
        """Whether the method needs a pass over data before training."""
        return type(self).calibrate is not Method.calibrate

    @classmethod
    def stem(cls) -> str:
        """Name of its file, which is the name of its configs and its page."""
        return cls.__module__.rpartition('.')[2]

    @classmethod
    def ours(cls) -> bool:
        """Whether its file is one of ``mmpetl/methods``."""
        return cls.__module__.partition('.')[0] == __name__.partition('.')[0]

    @classmethod
    def file(cls) -> Path | None:
        """The file that defines it; None in a notebook, say."""
        path = getattr(sys.modules.get(cls.__module__), '__file__', None)
        return None if path is None else Path(path)

    @classmethod
    def page(cls) -> str:
        """`` (docs/methods/lora.md)``, to end a message with; empty where none is."""
        return f' (docs/methods/{cls.stem()}.md)' if cls.ours() else ''

    def config(self) -> dict[str, Any]:
        """What builds this method again: ``dict(type='LoRA', rank=8, ...)``."""
        args = {arg.name: getattr(self, arg.name) for arg in arguments_of(type(self))}
        for name in self.sized:
            if isinstance(args[name], Mapping):
                args[name] = dict(args[name])
        return {'type': type(self).__name__, **args}

    def __repr__(self) -> str:
        args = {k: v for k, v in self.config().items() if k != 'type'}
        inside = ', '.join(f'{k}={v!r}' for k, v in args.items())
        return f'{type(self).__name__}({inside})'


def registered_methods() -> dict[str, type[Method]]:
    """Every registered method by name, those from outside of the package included.

    Raises:
        PETLError: One that a variable or an installed package names is not to be had.
    """
    METHODS.import_from_location()
    for cls in import_plugins():
        _check_listed(cls)
    return dict(METHODS.module_dict)


def _check_listed(cls: type[Method]) -> None:
    """Raise PETLError where what lists methods would not know what to do with one."""
    if cls.family not in FAMILIES:
        raise PETLError(
            f'{cls.__name__} says family = {cls.family!r}; tables group methods by '
            f'it, and there are {", ".join(FAMILIES)}'
        )
    stem = cls.stem()
    if stem in {other.stem() for other in METHODS.module_dict.values() if other.ours()}:
        raise PETLError(
            f'{cls.__name__} lies in a file {stem}.py, as a method of mmpetl does, '
            'and settings are found by that name; give the file another'
        )


def method_class(name: Any) -> type[Method]:
    """A registered method by its name, a scope in front of it or not; or a class.

    Raises:
        PETLError: The name is unknown.
    """
    if isinstance(name, type) and issubclass(name, Method):
        return name
    known = registered_methods()
    cls = known.get(str(name).rpartition('.')[2])
    if cls is None:
        raise PETLError(
            f'unknown method {name!r}.{suggest(str(name), known)} '
            f'Registered: {", ".join(sorted(known))}. One of your own is known once '
            'its module is imported (custom_imports of the config, or '
            f'{VARIABLE}=FILE.py)'
        )
    return cls


def build_method(config: Method | type[Method] | str | Mapping[str, Any]) -> Method:
    """A method from an instance, a class, a name, or ``dict(type=..., ...)``.

    Raises:
        PETLError: The name is unknown, or an argument does not exist or fit.
    """
    if isinstance(config, Method):
        return _checked(config)
    if isinstance(config, type) and issubclass(config, Method):
        return _checked(config())
    is_typed = isinstance(config, Mapping) and config.get('type') is not None
    if not isinstance(config, str) and not is_typed:
        shown = repr(config)
        shown = shown if len(shown) < 80 else f'an object {type(config).__name__}'
        raise PETLError(
            f'a method is a name or dict(type=..., ...), got {shown}; several that '
            'share a backbone are a list of these for mmpetl.inject and in configs '
            '(docs/stacking.md)'
        )
    args = {'type': config} if isinstance(config, str) else dict(config)
    cls = method_class(args.pop('type', None))
    accepted = [arg.name for arg in arguments_of(cls)]
    for arg in args:
        if arg not in accepted:
            raise PETLError(
                f'{cls.__name__} has no argument {arg!r}.{suggest(arg, accepted)} '
                f'It takes: {", ".join(accepted) or "none"}'
            )
    try:
        return _checked(cls(**args))
    except PETLError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
        given = ', '.join(f'{key}={value!r}' for key, value in args.items())
        raise PETLError(f'{cls.__name__}({given}) cannot be made: {err}') from None


@functools.lru_cache(maxsize=256)
def arguments_of(cls: type[Method]) -> tuple[inspect.Parameter, ...]:
    """What its ``__init__`` takes behind the instance, however that is called."""
    _, *arguments = inspect.signature(cls.__init__).parameters.values()
    return tuple(arguments)


def _checked(method: Method) -> Method:
    """The method, if it says what it is in the way that all read it."""
    who = type(method).__name__
    for name in ('targets', 'optional', 'requires'):
        if isinstance(kind := getattr(method, name), str):
            raise PETLError(
                f'{who}.{name} is the text {kind!r}; it takes a tuple, ({kind!r},)'
            )
    for arg in arguments_of(type(method)):
        if arg.kind in (arg.VAR_POSITIONAL, arg.VAR_KEYWORD):
            raise PETLError(
                f'{who}.__init__ takes {arg}; name each argument, so that configs and '
                'records can'
            )
        if not hasattr(method, arg.name):
            raise PETLError(
                f'{who} keeps no attribute {arg.name!r}, from which configs and '
                'records read the argument; write '
                f'self.{arg.name} = {arg.name} in __init__'
            )
    own = type(method)
    asks = own.wants, own.choose, own.choose_leaves
    idle = asks == (Method.wants, Method.choose, Method.choose_leaves)
    if own.plugs() and idle and not (method.targets or method.optional):
        raise PETLError(
            f'{who} names no targets, so that `build` is never called; there are '
            f'{", ".join(KINDS)}'
        )
    return method


def check_range(
    method: Method | str,
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Raise PETLError unless ``low <= value <= high``.

    An argument that is given by layer, which :attr:`Method.sized` allows, is checked
    for each.
    """
    if isinstance(value, Mapping) and name in getattr(method, 'sized', ()):
        if not value:
            raise PETLError(f'{type(method).__name__} needs {name} for some layer')
        for part in value.values():
            check_range(method, name, part, low, high)
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number
        or (low is not None and value < low)
        or (high is not None and value > high)
    ):
        who = method if isinstance(method, str) else type(method).__name__
        bounds = [f'at least {low}' if low is not None else '']
        bounds += [f'at most {high}' if high is not None else '']
        need = ' and '.join(b for b in bounds if b)
        raise PETLError(f'{who} needs {name} of {need}, got {value!r}')


def check_kinds(
    method: Method | str, kinds: Iterable[str], allowed: Iterable[str]
) -> tuple[str, ...]:
    """``kinds`` as a tuple; PETLError names the first that is not allowed."""
    kinds, allowed = tuple(kinds), tuple(allowed)
    who = method if isinstance(method, str) else type(method).__name__
    for kind in kinds:
        if kind not in allowed or kind not in KINDS:
            raise PETLError(
                f'{who} cannot act at {kind!r}.{suggest(kind, allowed)} '
                f'It can at: {", ".join(allowed)}'
            )
    if not kinds:
        raise PETLError(f'{who} needs at least one of: {", ".join(allowed)}')
    return kinds


ATTENTION = ('attn.q', 'attn.v')
"""Queries and values, the targets of LoRA's paper and of most that came after it."""


def in_networks(targets: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """What stands for queries and values where a trunk has none.

    Both projections of its feed-forward networks; nothing where other targets were
    asked for.
    """
    chosen = targets == ATTENTION
    return dict.fromkeys(ATTENTION, ('ffn.fc1', 'ffn.fc2')) if chosen else {}


def is_wider(site: Site, rank: int) -> bool:
    """Whether a projection has room for ``rank`` below its widths."""
    return rank < min(site.in_dims, site.out_dims)


def check_rank(method: Method | str, rank: int, sites: Iterable[Site]) -> None:
    """PETLError names the narrowest projection that has no room for ``rank``.

    Layers of any model may be small networks of a few channels, and can be left out.
    """
    thin = min(sites, key=lambda site: min(site.in_dims, site.out_dims))
    narrow = min(thin.in_dims, thin.out_dims)
    if rank < narrow:
        return
    who = method if isinstance(method, str) else type(method).__name__
    way = ''
    if thin.kind in LEAF_KINDS:
        out = '*' + '.'.join(thin.host.split('.')[-2:])
        own = f"give it its own, rank={{'{out}': {narrow // 2}, '*': {rank}}}, or "
        way = f"; {own * (narrow > 1)}leave it out, layers=['*', '!{out}']"
    raise PETLError(
        f'{who} needs rank below the narrowest projection ({narrow}), got {rank} at '
        f'{thin}{way}'
    )


def kaiming_uniform_(weight: Tensor) -> None:
    """The start of PyTorch's Linear, a = sqrt(5), whatever the host's initialiser."""
    nn.init.kaiming_uniform_(weight, a=5**0.5)
