"""Plans: methods x recipes x seeds, from a small YAML file to a list of jobs.

A plan holds these keys; ``methods`` and ``recipes`` are needed::

    name: mini                          its file's stem by default
    methods: [all]                      names, stems, families, all; LoRA + VPTDeep
    recipes: [mini/digits, vtab/*]      names as of configs/recipes, or patterns
    seeds: [42, 43]
    protocol: honest                    or published
    leaves: false                       true: a pair's published settings where it has
    sizes: mini                         a table of configs/_base_/sizes
    settings: {LoRA: {rank: 4}}         arguments of methods, on top of sizes
    options: {train_cfg.max_epochs: 3}  dotted config keys, for every job
    method_options: {NOAH: {...}}       the same, for one method
    recipe_options: {vtab/*: {...}}     the same, for recipes
    include: ['LoRA', 'prompt@vtab/*']  method (or family) @ recipe; all by default
    exclude: ['NOAH@mini/cub']
    processes: {ade20k: 8, voc: 2}      of each job, by recipe, or one number for all
    data: [digits]                      mini sets to write before the first job

A plan is data: what its options name as a ``type`` must be registered by a toolbox, and
nothing in them imports or names a file that runs; ``--trust`` lifts that.

A key of ``settings`` and ``method_options`` may name recipes too, by a pattern, and
goes before one that does not: ``{OFT@mini/coco: {block_size: 8}}``.

Pairs that cannot be, since a backbone lacks the sites that a method acts at, are
computed and listed with the reason; they are no failures.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmpetl.benchmark import run_facts
from mmpetl.benchmark.designs import Place
from mmpetl.benchmark.job_config import METHOD, PROCESSES, split_options
from mmpetl.benchmark.plan_file import check_plain, read_yaml
from mmpetl.benchmark.records import Job, check_job, write_json
from mmpetl.benchmark.scores import metric_of, suite_named
from mmpetl.benchmark.sizes import sizes
from mmpetl.benchmark.trust import check_trusted
from mmpetl.config.batch import check_processes, reach_batch, shares_of
from mmpetl.config.names import method_class, methods_stem
from mmpetl.config.options import MOST_SEED
from mmpetl.config.protocols import best_by
from mmpetl.core import (
    PETLError,
    is_several,
    methods_family,
    registered_methods,
    suggest,
    with_arguments,
)
from mmpetl.core.boundary import checked, read_json
from mmpetl.core.several import PLUS, written_out

ALL = 'all'
PROTOCOLS = ('honest', 'published')


@dataclass(frozen=True)
class Plan:
    """What is to be run; see the module's text for the keys."""

    name: str
    methods: tuple[str, ...]
    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (42,)
    protocol: str = 'honest'
    leaves: bool = False
    sizes: str = ''
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    processes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A pair that cannot be, and why."""

    recipe: str
    method: str
    reason: str


@dataclass(frozen=True)
class Resolved:
    """A plan's jobs, what cannot be, and the toolboxes that the jobs use."""

    plan: Plan
    jobs: tuple[Job, ...]
    refused: tuple[Refusal, ...]
    toolboxes: tuple[str, ...]
    batches: Mapping[str, str] = field(default_factory=dict)
    """How a step of each recipe's optimizer is put together, in words."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """The table that each recipe goes to."""


LISTS = ('methods', 'recipes', 'seeds', 'include', 'exclude', 'data')
MAPPINGS = ('settings', 'options', 'method_options', 'recipe_options')
TABLES = ('settings', 'method_options', 'recipe_options', 'processes')
"""Keys that say something of recipes."""


def pattern_of(table: str, key: str) -> str:
    """The recipes that a key of a table speaks of: ``OFT@mini/*`` of the mini ones."""
    if table in ('recipe_options', 'processes'):
        return key
    return key.partition('@')[2] or '*'


def plans_folder() -> Path:
    """Where the presets lie."""
    from mmpetl.config.names import config_root

    return config_root() / 'plans'


def read_plan(name: str | os.PathLike, **changes: Any) -> Plan:
    """A plan from a preset's name or a file.

    Args:
        name: ``mini``, or the path of a YAML file.
        changes: Keys that override the file's; None leaves a key.

    Raises:
        PETLError: No such plan, or one that says something wrong.
    """
    path = Path(name)
    if path.suffix not in ('.yaml', '.yml'):
        path = plans_folder() / f'{name}.yaml'
    if not path.is_file():
        known = sorted(p.stem for p in plans_folder().glob('*.yaml'))
        raise PETLError(
            f'there is no plan {str(name)!r}.{suggest(str(name), known)} Presets: '
            f'{", ".join(known)}; or name a .yaml file'
        )
    data = read_yaml(path)
    _need_keys(data, str(path))
    data = {'name': path.stem, **data}
    plan = parse_plan(data, str(path))
    asked = {key: value for key, value in changes.items() if value is not None}
    if asked.keys() & {'methods', 'recipes'}:
        asked = _narrowed(plan, asked) | asked
    return parse_plan(data | asked, str(path))


def _narrowed(plan: Plan, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says of the pairs that are asked for, and of others not at all.

    What fits no pair of the whole plan stays: :func:`resolve` names it.
    """

    def pairs(methods: Iterable[str], recipes: Iterable[str]) -> list[tuple[str, ...]]:
        return [
            (method, methods_family(method), recipe)
            for method in choose_methods(methods)
            for recipe in choose_recipes(recipes)
        ]

    whole = pairs(plan.methods, plan.recipes)
    some = pairs(asked.get('methods', plan.methods), asked.get('recipes', plan.recipes))

    def stays(pattern: str) -> bool:
        return any(matches(pattern, *pair) for pair in some) or not any(
            matches(pattern, *pair) for pair in whole
        )

    tables = {
        table: {
            key: value
            for key, value in getattr(plan, table).items()
            if stays(f'@{pattern_of(table, key)}')
        }
        for table in TABLES
    }
    filters = {
        key: tuple(filter(stays, getattr(plan, key))) for key in ('include', 'exclude')
    }
    return tables | filters


def parse_plan(data: Mapping[str, Any], where: str = 'the plan') -> Plan:
    """A plan from the keys of its file, checked.

    Raises:
        PETLError: The first thing that is wrong, in a line.
    """
    _need_keys(data, where)
    known = [f.name for f in fields(Plan)]
    for key in data:
        if key not in known:
            raise PETLError(
                f'{where} has a key {key!r}.{suggest(str(key), known)} A plan has: '
                f'{", ".join(known)}'
            )
    for key in ('name', 'methods', 'recipes'):
        if not data.get(key):
            raise PETLError(f'{where} needs {key}')
    data = dict(data)
    for key in LISTS:
        if key in data:
            data[key] = _list(data[key], key, where)
    if isinstance(data.get('processes'), int):
        data['processes'] = {'*': data['processes']}
    for key in (*MAPPINGS, 'processes'):
        if not isinstance(data.get(key, {}), Mapping):
            raise PETLError(f'{where}: {key} needs "name: value" lines')
    for key in ('settings', 'method_options', 'recipe_options'):
        for name, values in data.get(key, {}).items():
            if not isinstance(values, Mapping):
                raise PETLError(f'{where}: {key} of {name} needs "name: value" lines')
    for seed in data.get('seeds', ()):
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        if not whole or not 0 <= seed <= MOST_SEED:
            raise PETLError(
                f'{where}: seeds are whole numbers from 0 to 2^32 - 1, got {seed!r}'
            )
    for key in MAPPINGS:
        check_plain(data.get(key, {}), f'{where}: {key}')
    for pattern, number in data.get('processes', {}).items():
        try:
            check_processes(number)
        except PETLError as error:
            raise PETLError(f'{where}: processes of {pattern}: {error}') from None
    _check_texts(data, where)
    plan = Plan(**data)
    if plan.protocol not in PROTOCOLS:
        raise PETLError(
            f'{where}: there is no protocol {plan.protocol!r}.'
            f'{suggest(str(plan.protocol), PROTOCOLS)} There are: '
            f'{", ".join(PROTOCOLS)}'
        )
    if not isinstance(plan.leaves, bool):
        raise PETLError(f'{where}: leaves is true or false, got {plan.leaves!r}')
    if plan.sizes:
        sizes(plan.sizes)
    for name in (*plan.settings, *plan.method_options):
        choose_methods([name.partition('@')[0]])
    return plan


def _need_keys(data: Any, where: str) -> None:
    if not isinstance(data, Mapping):
        raise PETLError(f'{where} is no plan: it holds no keys (methods, recipes, ...)')


def _check_texts(data: Mapping[str, Any], where: str) -> None:
    """The name makes a folder; a method's ``type`` is what the plan calls it."""
    for key in ('name', 'protocol', 'sizes'):
        if not isinstance(data.get(key, ''), str):
            raise PETLError(f'{where}: {key} is a name, got {data[key]!r}')
    if not NAME.fullmatch(data['name']):
        raise PETLError(
            f'{where}: name is that of a folder, of letters, digits, _ . + -, at most '
            f'100 of them; got {data["name"][:120]!r}'
        )
    for method, args in data.get('settings', {}).items():
        if 'type' in args:
            raise PETLError(
                f'{where}: settings of {method} name a type; list it among methods'
            )


def _list(value: Any, key: str, where: str) -> tuple[Any, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    kind = int if key == 'seeds' else str
    for item in values:
        if not isinstance(item, kind):
            raise PETLError(f'{where}: {key} holds {item!r}, which is no {KIND[kind]}')
    if key in ('methods', 'recipes', 'seeds') and not values:
        raise PETLError(f'{where} needs {key}')
    return tuple(dict.fromkeys(values))


NAME = re.compile(r'[\w+-][\w .+-]{0,99}')
KIND = {int: 'whole number', str: 'name'}


def choose_methods(names: Iterable[str]) -> list[str]:
    """Registered methods for names, stems, families, or ``all``.

    Several that share a trunk are one name, ``LoRA + VPTDeep``, of names or stems.

    Raises:
        PETLError: A name that stands for nothing.
    """
    known = registered_methods()
    chosen: dict[str, None] = {}
    for name in names:
        if is_several(name):
            parts = [method_class(part).__name__ for part in written_out(name)]
            chosen[PLUS.join(parts)] = None
            continue
        found = [
            method
            for method, cls in known.items()
            if name in (ALL, method, cls.stem(), cls.family)
        ]
        if not found:
            families = sorted({cls.family for cls in known.values()})
            raise PETLError(
                f'unknown method or family {name!r}.'
                f'{suggest(name, [*known, *families])} Families: '
                f'{", ".join(families)}; methods: {", ".join(sorted(known))}'
            )
        chosen.update(dict.fromkeys(sorted(found, key=str.lower)))
    return list(chosen)


def choose_recipes(patterns: Iterable[str]) -> list[str]:
    """Recipes for names and patterns, in the order of the patterns.

    Raises:
        PETLError: A name or pattern that fits none.
    """
    from mmpetl.config.names import recipe_names

    known = recipe_names()
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise PETLError(
                f'there is no recipe {pattern!r}.{suggest(pattern, known)} There are: '
                f'{", ".join(known)}'
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def matches(pattern: str, method: str, family: str, recipe: str) -> bool:
    """Whether a filter names a pair: ``LoRA``, ``prompt@vtab/*``, ``@mini/digits``."""
    left, _, right = pattern.partition('@')
    names_method = any(fnmatch.fnmatchcase(n, left or '*') for n in (method, family))
    return names_method and fnmatch.fnmatchcase(recipe, right or '*')


def check_filters(
    filters: Sequence[str], methods: Sequence[str], recipes: Sequence[str]
) -> None:
    """Raise PETLError where a filter fits no pair: it is then misspelt."""
    for pattern in filters:
        if not any(
            matches(pattern, m, methods_family(m), r) for m in methods for r in recipes
        ):
            raise PETLError(
                f'the filter {pattern!r} fits no pair of the plan; write it as METHOD, '
                'FAMILY, @RECIPE or METHOD@RECIPE'
            )


def resolve(plan: Plan, trust: bool = False) -> Resolved:
    """The jobs of a plan: by seed, then by recipe, then by method.

    Args:
        plan: The plan.
        trust: Whether its options may import and name what no toolbox registers.

    Raises:
        PETLError: A name in it is unknown, or nothing is left to run.
    """
    methods, recipes = choose_methods(plan.methods), choose_recipes(plan.recipes)
    check_filters((*plan.include, *plan.exclude), methods, recipes)
    for table in TABLES:
        for key in getattr(plan, table):
            pattern = pattern_of(table, key)
            if not any(fnmatch.fnmatchcase(recipe, pattern) for recipe in recipes):
                raise PETLError(
                    f'{table} speak of {key!r}, which is no recipe of the plan'
                )
    leaves = _leaves() if plan.leaves else frozenset()
    cells: list[Job] = []
    refused: list[Refusal] = []
    boxes: set[str] = set()
    batches: dict[str, str] = {}
    places: dict[str, Place] = {}
    for recipe in recipes:
        wanted = [m for m in methods if _kept(plan, m, methods_family(m), recipe)]
        if not wanted:
            continue
        if not trust:
            _check_trusted(plan, wanted, recipe)
        config = _composed(plan, recipe, wanted[0])
        if shares := shares_of(config):
            batches[recipe] = str(shares)
        places[recipe] = _place_of(recipe, config)
        checker = Support(config)
        fitting = [_rest(plan, wanted[0], recipe)]
        for method in wanted:
            options = options_of(plan, method, recipe)
            if _rest(plan, method, recipe) not in fitting:
                _composed(plan, recipe, method)
                fitting.append(_rest(plan, method, recipe))
            reason = checker.reason(method, options)
            if reason:
                refused.append(Refusal(recipe, method, reason))
                continue
            leaf = (methods_stem(method), recipe) in leaves
            job = Job(
                recipe, method, protocol=plan.protocol, options=options, leaf=leaf
            )
            cells.append(job)
            boxes.add(config.get('default_scope', 'mmpretrain'))
    if not cells:
        why = f'; {refused[0].reason}' if refused else ''
        raise PETLError(f'the plan {plan.name} has nothing to run{why}')
    jobs = [_seeded(job, seed) for seed in plan.seeds for job in cells]
    boxes_used = tuple(sorted(boxes))
    return Resolved(plan, tuple(jobs), tuple(refused), boxes_used, batches, places)


def _place_of(recipe: str, config: Any) -> Place:
    """The table that runs of a composed recipe go to."""
    suite = suite_named(recipe, *run_facts.task_of(recipe, config))
    metric = metric_of(config.get('primary') or best_by(config) or '')
    return Place(suite, run_facts.backbone_of(config), metric.key)


def _check_trusted(plan: Plan, methods: Sequence[str], recipe: str) -> None:
    """Hold what a plan says of a recipe to data and registered names."""

    def scope() -> str:
        from mmpetl.config.compose import compose

        config = compose(recipe, 'LinearProbe')
        return config.get('default_scope') or 'mmengine'

    for method in methods:
        check_trusted(
            options_of(plan, method, recipe), scope, f'the plan {plan.name}, {method}'
        )


def _rest(plan: Plan, method: str, recipe: str) -> dict[str, Any]:
    """The options of a pair that are no arguments of the method."""
    return split_options(options_of(plan, method, recipe))[1]


def _composed(plan: Plan, recipe: str, method: str) -> Any:
    """A recipe with the options of the plan, which must fit it."""
    from mmpetl.config.compose import compose
    from mmpetl.config.protocols import check_honest, check_ranked

    options = dict(_rest(plan, method, recipe))
    processes = options.pop(PROCESSES, 1)
    try:
        config = compose(recipe, 'LinearProbe', options, protocol=plan.protocol)
        reach_batch(config, processes)
        check_honest(config)
        check_ranked(config)
        return config
    except PETLError as error:
        raise PETLError(
            f'the plan {plan.name}, recipe {recipe} ({plan.protocol} protocol): {error}'
        ) from None
    except (KeyError, IndexError, TypeError) as error:
        reason = ' '.join(str(error.args[0] if error.args else error).split())
        raise PETLError(
            f'the options of the plan {plan.name} do not fit the recipe {recipe} '
            f'({plan.protocol} protocol): {reason[:200]}'
        ) from None


def _seeded(job: Job, seed: int) -> Job:
    return dataclasses.replace(job, seed=seed)


def _leaves() -> frozenset[tuple[str, str]]:
    from mmpetl.config.compose import published_pairs

    return frozenset(published_pairs())


def _kept(plan: Plan, method: str, family: str, recipe: str) -> bool:
    kept = not plan.include or any(
        matches(p, method, family, recipe) for p in plan.include
    )
    return kept and not any(matches(p, method, family, recipe) for p in plan.exclude)


def options_of(plan: Plan, method: str, recipe: str) -> dict[str, Any]:
    """The dotted keys of a pair: the plan's, the recipe's, the method's."""
    args = arguments_of(plan, method, recipe)
    options = dict(plan.options)
    for pattern, values in plan.recipe_options.items():
        if fnmatch.fnmatchcase(recipe, pattern):
            options |= values
    for pattern, number in plan.processes.items():
        if fnmatch.fnmatchcase(recipe, pattern) and number > 1:
            options[PROCESSES] = number
    options |= _said_of(plan.method_options, method, recipe)
    return {**options, **{f'{METHOD}{name}': value for name, value in args.items()}}


def arguments_of(plan: Plan, method: str, recipe: str) -> dict[str, Any]:
    """Arguments that a plan gives a method on a recipe.

    Several have those of each, with its number in front, and on top of them what the
    plan says of all together.
    """
    if is_several(method):
        each = enumerate(written_out(method))
        found = {
            f'{number}.{name}': value
            for number, part in each
            for name, value in arguments_of(plan, part, recipe).items()
        }
        return found | _said_of(plan.settings, method, recipe)
    found = dict(sizes(plan.sizes).get(method, {})) if plan.sizes else {}
    return found | _said_of(plan.settings, method, recipe)


def _said_of(
    table: Mapping[str, Mapping[str, Any]], method: str, recipe: str
) -> dict[str, Any]:
    """What a table by methods says of one: everywhere, then on recipes like this one.

    Of each, what stands under the method's stem comes before what does under its name.
    """
    found: dict[str, Any] = {}
    for here in (False, True):
        for name in (methods_stem(method), method):
            for key, values in table.items():
                which, at, pattern = key.partition('@')
                if bool(at) != here or not fnmatch.fnmatchcase(recipe, pattern or '*'):
                    continue
                same = is_several(which) and choose_methods([which]) == [name]
                if which == name or same:
                    found |= values
    return found


class Support:
    """Which methods a recipe's backbone can serve.

    Args:
        config: The recipe with any method in it.
    """

    def __init__(self, config: Any) -> None:
        from mmpetl.config.nodes import petl_backbone_of

        node = petl_backbone_of(config)
        self._spec = None if node is None else dict(node['backbone'])
        self._several = str(config.model.get('type', '')).endswith('MultiTaskModel')
        self._plain: Any = None

    def reason(self, method: str, options: Mapping[str, Any]) -> str | None:
        """Why a method cannot be used here; None where it can."""
        from mmpetl.apis.counting import without_memory
        from mmpetl.core import build_entries, build_method, inject, wanted_sites

        if self._spec is None:
            return 'the recipe has no mmpetl.PETLBackbone'
        parts = build_entries(method)
        if not self._several:
            for part in parts:
                if part.method.family == 'multi_task':
                    name = type(part.method).__name__
                    return f'{name} is for several tasks at once; the recipe has one'
        args = {
            key.removeprefix(METHOD): value
            for key, value in options.items()
            if key.startswith(METHOD)
        }
        asked = with_arguments(method, args)
        build_entries(asked)
        try:
            if is_several(method):
                with without_memory():
                    inject(copy.deepcopy(self._backbone()), asked)
            else:
                wanted_sites(self._backbone(), build_method(asked))
        except PETLError as error:
            return ' '.join(str(error).split())
        return None

    def _backbone(self) -> Any:
        """The backbone without numbers: building it costs no memory."""
        if self._plain is None:
            import importlib
            import warnings

            from mmpetl.apis.counting import without_memory
            from mmpetl.registry import MODELS

            importlib.import_module(f'{self._spec["type"].partition(".")[0]}.registry')
            with without_memory(), warnings.catch_warnings():
                # Upstream's, of torch.meshgrid.
                warnings.simplefilter('ignore')
                self._plain = MODELS.build(dict(self._spec))
        return self._plain


def write_plan(resolved: Resolved, out: str | os.PathLike) -> Path:
    """Keep a resolved plan as ``plan.json``: what is asked, jobs, refusals."""
    path = Path(out) / 'plan.json'
    data = {
        'plan': dataclasses.asdict(resolved.plan),
        'jobs': [{'id': j.id, **dataclasses.asdict(j)} for j in resolved.jobs],
        'refused': [dataclasses.asdict(r) for r in resolved.refused],
        'toolboxes': list(resolved.toolboxes),
    }
    write_json(path, data)
    return path


def read_jobs(out: str | os.PathLike) -> tuple[list[Job], list[Refusal]]:
    """The jobs and refusals of a folder's ``plan.json``.

    Raises:
        PETLError: There is none, or it is damaged.
    """
    path = Path(out) / 'plan.json'
    try:
        plain = read_json(path, dict[str, Any], 'resolved plan')
        data = checked(plain, _Kept, f'{path}')
        for job in plain['jobs']:
            check_job(job, f'{path}')
    except FileNotFoundError:
        raise PETLError(
            f'{out} holds no plan.json; run a plan there first (mmpetl benchmark run)'
        ) from None
    except PETLError as error:
        raise PETLError(f'{path} is damaged: {error}') from None
    return list(data.jobs), list(data.refused)


@dataclass(frozen=True)
class _Kept:
    """What is read of a ``plan.json``."""

    jobs: tuple[Job, ...]
    refused: tuple[Refusal, ...]


def prepare_data(plan: Plan, root: Path) -> dict[str, Path]:
    """Write the mini sets that a plan needs; what is complete stays."""
    if not plan.data:
        return {}
    from mmpetl.datasets.mini import make

    try:
        return make(root, names=plan.data)
    except ValueError as error:
        raise PETLError(f'the plan {plan.name}: {error}') from None
