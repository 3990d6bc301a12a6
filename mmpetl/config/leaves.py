"""Tables of published settings: one file per method, one row per dataset.

A file such as ``configs/ssf/vtab.py`` holds::

    recipes = 'vtab'                        rows are recipes below configs/recipes/vtab
    method = dict(type='SSF')               what all rows share of the method
    values = dict(warmup_lr=1e-7, ...)      what all rows share of the rest
    tables = dict(ssf='''
    task      lr    weight_decay  drop_path
    cifar100  5e-3  5e-5          0
    ''')

Columns are those of :data:`COLUMNS` and arguments of the method. ``-`` leaves a cell to
the recipe. Later tables complete or override earlier ones row by row, so that a table
shared by several methods is one ``_base_``. Any other key (``published``, ``timm``,
``model``, ...) is merged into the config as in a leaf of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpetl.config.names import method_class, recipe_names, recipe_path
from mmpetl.core import PETLError, suggest
from mmpetl.core.method import arguments_of
from mmpetl.engine.schedule_nodes import LEAST_FACTOR

OWN_KEYS = ('recipes', 'method', 'values', 'tables')

COLUMNS: Mapping[str, str] = {
    'lr': 'optim_wrapper.optimizer.lr',
    'weight_decay': 'optim_wrapper.optimizer.weight_decay',
    'optimizer': 'optim_wrapper.optimizer.type',
    'decay_all': 'optim_wrapper.paramwise_cfg.decay_all',
    'drop_path': 'model.backbone.backbone.drop_path_rate',
    'batch_size': 'train_dataloader.batch_size',
    'published_split': 'published.train_dataloader.dataset.split',
    'augmentation': 'preprocessing.augmentation',
    'epochs': 'train_cfg.max_epochs',
    'warmup_epochs': '',
    'warmup_lr': '',
    'min_lr': '',
    'label_smoothing': '',
    'ema_decay': '',
}
"""Columns and the key that each sets; those without one act on several."""


@dataclass(frozen=True)
class Table:
    """A method's table.

    Attributes:
        path: Its file.
        recipes: Folder of its rows' recipes.
        method: Config of the method, without the rows' arguments.
        rows: Settings by dataset, shared values included.
        extra: Other keys, merged into every row's config.
    """

    path: Path
    recipes: str
    method: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    extra: Mapping[str, Any]


def parse_rows(text: str, where: str) -> dict[str, dict[str, Any]]:
    """Rows of one table: a header line, then one line per dataset.

    Args:
        text: Columns are separated by blanks; a cell is a Python literal without
            blanks or a word.
        where: File and table, for errors.

    Raises:
        PETLError: A line has another number of cells than the header, or a dataset
            occurs twice.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    header, *body = lines or [[]]
    rows: dict[str, dict[str, Any]] = {}
    for cells in body:
        if len(cells) != len(header):
            raise PETLError(
                f'{where}: the row of {cells[0]} has {len(cells)} cells, the header '
                f'{len(header)} ({" ".join(header)})'
            )
        if cells[0] in rows:
            raise PETLError(f'{where}: there are two rows of {cells[0]}')
        pairs = zip(header[1:], cells[1:], strict=True)
        rows[cells[0]] = {name: _value(cell) for name, cell in pairs if cell != '-'}
    return rows


def _value(cell: str) -> Any:
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell


def read_table(path: Path) -> Table:
    """Read a method's table.

    Raises:
        PETLError: It is malformed, or has a column that means nothing.
    """
    from mmengine.config import Config

    config = Config.fromfile(path).to_dict()
    method = config.get('method')
    if not isinstance(config.get('recipes'), str) or not isinstance(method, Mapping):
        raise PETLError(f'{path} needs recipes, method and tables, as a table does')
    shared = config.get('values') or {}
    rows: dict[str, dict[str, Any]] = {}
    for name, text in config['tables'].items():
        for task, cells in parse_rows(text, f'{path}, {name}').items():
            rows.setdefault(task, dict(shared)).update(cells)
    known = [*COLUMNS, *_arguments(method_class(method['type']))]
    for task, cells in rows.items():
        for column in cells:
            if column not in known:
                raise PETLError(
                    f'{path}: {task} has a column {column!r}, which is none of the '
                    f"method's or ours.{suggest(column, known)} "
                    f'There are: {", ".join(known)}'
                )
    extra = {k: v for k, v in config.items() if k not in OWN_KEYS}
    return Table(path, config['recipes'], method, rows, extra)


def _arguments(cls: Any) -> list[str]:
    return [arg.name for arg in arguments_of(cls)]


def row_config(path: Path, task: str) -> Any:
    """The config of one row: its recipe with the method and the row's values.

    Raises:
        PETLError: There is no such row.
    """
    from mmengine.config import Config

    table = read_table(path)
    if task not in table.rows:
        kind = table.method['type']
        recipe = f'{table.recipes}/{task}'
        hint = suggest(task, table.rows)
        if recipe in recipe_names():
            hint = (
                f' No settings are published for this pair; take the recipe: configs/'
                f'recipes/{recipe}.py --cfg-options model.backbone.method.type={kind}.'
            )
        raise PETLError(
            f'there is no config {path.with_suffix("") / task}.py: {path.name} has no '
            f'row {task!r}.{hint} It has: {", ".join(table.rows)}'
        )
    config = Config.fromfile(recipe_path(f'{table.recipes}/{task}'))
    cells = dict(table.rows[task])
    args = {k: cells.pop(k) for k in list(cells) if k not in COLUMNS}
    config.model.backbone.method = {**table.method, **args}
    config.merge_from_dict(options_of(cells, config))
    config.merge_from_dict(dict(table.extra))
    return config


def options_of(cells: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The dotted keys that the cells of a row set.

    Args:
        cells: Values by column.
        config: The recipe: its rate and schedule are what is left unsaid.
    """
    options = {COLUMNS[k]: v for k, v in cells.items() if COLUMNS[k]}
    lr = cells.get('lr', config.optim_wrapper.optimizer.lr)
    if 'warmup_lr' in cells:
        factor = max(cells['warmup_lr'] / lr, LEAST_FACTOR)
        options['param_scheduler.0.start_factor'] = factor
    if 'min_lr' in cells:
        options['param_scheduler.1.eta_min'] = cells['min_lr']
    if 'warmup_epochs' in cells or 'epochs' in cells:
        warm = cells.get('warmup_epochs', config.param_scheduler[0]['end'])
        end = cells.get('epochs', config.train_cfg.max_epochs)
        options |= {
            'param_scheduler.0.end': warm,
            'param_scheduler.1.begin': warm,
            'param_scheduler.1.end': end,
            'param_scheduler.1.T_max': end - warm,
        }
    if cells.get('label_smoothing'):
        options['model.head.loss'] = {
            '_delete_': True,
            'type': 'LabelSmoothLoss',
            'label_smooth_val': cells['label_smoothing'],
            'mode': 'original',
        }
    if 'ema_decay' in cells:
        average = {'type': 'mmpetl.TrainableEMAHook', 'decay': cells['ema_decay']}
        options['custom_hooks'] = [*config.custom_hooks, average]
    return options
