"""Two named protocols, and the stage that chooses settings.

``honest``, the default: settings are chosen on validation data (stage ``tune``), then
one run trains on all training data (stage ``final``); the test set is read once, after
the last epoch, and the last epoch counts.

``published``: what public benchmark code did. The test set is scored every few epochs
while the model trains, and the best epoch is kept. The result is an upper bound, and is
called ``published`` wherever it stands.

A recipe says what a protocol or a stage changes in it under the key of that name::

    tune = dict(train_dataloader=dict(dataset=dict(split='train800')), ...)
    published = dict(preprocessing=dict(normalisation='imagenet'), ...)

A config that has nothing of a recipe is upstream's, and validates as it says itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from mmpetl.core import PETLError, suggest
from mmpetl.datasets.catalog import facts_of
from mmpetl.datasets.identity import innermost, same_reading

Protocol = Literal['honest', 'published']
Stage = Literal['final', 'tune']

VAL_EPOCHS = 10
"""Epochs between two readings of the test set under ``published``."""

HELD_OUT = 0.1
"""Share of a training set that chooses settings where there is no validation set."""

BEST_BY: Mapping[str, str] = {
    'Accuracy': 'accuracy/top1',
    'AccMetric': 'acc/top1',
    'IoUMetric': 'mIoU',
    'CocoMetric': 'coco/bbox_mAP',
    'VOCMetric': 'pascal_voc/mAP',
    'MaskedAccuracy': 'accuracy/top1',
}
"""Name of the metric that says which epoch is best, by the first evaluator."""

OF_RECIPES = ('protocol', 'published', 'tune', 'dataset', 'preprocessing')
"""Keys of which a recipe has at least one, and a config of upstream none."""

_PARTS = ('dataloader', 'evaluator', 'cfg')


def check_names(protocol: str, stage: str) -> None:
    """Raise PETLError unless both are known and go together."""
    for what, value, known in (
        ('protocol', protocol, get_args(Protocol)),
        ('stage', stage, get_args(Stage)),
    ):
        if value not in known:
            raise PETLError(
                f'there is no {what} {value!r}.{suggest(str(value), known)} '
                f'There are: {", ".join(known)}'
            )
    if protocol == 'published' and stage == 'tune':
        raise PETLError(
            'the published protocol has no stage tune: it chooses on the test set; '
            'leave out the stage, or take the honest protocol'
        )


def protocol_of(config: Any, asked: str | None, stage: str | None) -> str | None:
    """The protocol of a config, None where it takes part in none.

    Args:
        config: As it was read.
        asked: What the user asked for, if anything.
        stage: Likewise.
    """
    if asked or config.get('protocol'):
        return asked or config.protocol
    return 'honest' if stage or any(k in config for k in OF_RECIPES) else None


def without_validation(config: Any) -> str | None:
    """Why a run does not validate, in one line; None where it does or never would."""
    honest = (config.get('protocol'), config.get('stage')) == ('honest', 'final')
    if not honest or config.get('val_dataloader') or not config.get('test_dataloader'):
        return None
    return (
        'no validation while training: the protocol honest reads the test set once, '
        'after the last epoch (mmpetl test); --protocol published validates on it'
    )


def overlay(config: Any, protocol: Protocol, stage: Stage) -> None:
    """Merge what the recipe says of a protocol and a stage; drop both keys."""
    notes = {key: config.pop(key, None) for key in ('published', 'tune')}
    note = notes.get('published' if protocol == 'published' else stage)
    config.protocol, config.stage = protocol, stage
    if not (config.get('train_dataloader') and config.get('test_dataloader')):
        # A phase of a method, or a config without data, says itself what it reads.
        if (protocol, stage) != ('honest', 'final'):
            raise PETLError(
                f'the config has no test set to train towards, so protocol {protocol} '
                f'and stage {stage} mean nothing to it; take the recipe'
            )
        return
    if stage == 'tune' and not config.get('val_dataloader'):
        _score_on(config, 'val', 'test')
    if note:
        config.merge_from_dict(note.to_dict())
    if protocol == 'published':
        if not _same_data(config):  # else its loader is of the test set, and cheaper
            _score_on(config, 'val', 'test')
        _keep_best(config)
    elif stage == 'tune':
        if _same_data(config):
            _hold_out(config)
        _drop(config, 'test')
    elif _same_data(config):
        _drop(config, 'val')


def apply_schedule(config: Any) -> None:
    """Give a published image recipe timm's cosine, with what ``timm`` says of it.

    The pair LinearLR and CosineAnnealingLR becomes one ``mmpetl.TimmCosineLR`` with the
    same warm-up, peak and floor.
    """
    note = config.pop('timm', None)
    if config.get('protocol') != 'published' or note is None:
        return
    warm, cosine = config.param_scheduler
    start = warm['start_factor'] * config.optim_wrapper.optimizer.lr
    config.param_scheduler = [
        {
            'type': 'mmpetl.TimmCosineLR',
            'T_max': cosine['end'],
            'warmup': warm['end'],
            'start': start,
            'eta_min': cosine['eta_min'],
            **note,
        }
    ]


def _drop(config: Any, phase: str) -> None:
    for part in _PARTS:
        config[f'{phase}_{part}'] = None


def _score_on(config: Any, phase: str, source: str) -> None:
    for part in _PARTS:
        config[f'{phase}_{part}'] = copy.deepcopy(config.get(f'{source}_{part}'))


def _same_data(config: Any) -> bool:
    """Whether validation would read the test set, which is to be read once."""
    return _reads_test(config, 'val')


def _reads_test(config: Any, phase: str, test: Any = None) -> bool:
    """Whether a phase reads the test set, by what the config alone tells."""
    node = (config.get(f'{phase}_dataloader') or {}).get('dataset')
    test = test or (config.get('test_dataloader') or {}).get('dataset')
    return same_reading(node, test)


def check_honest(config: Any, test: Any = None) -> None:
    """Refuse a config that is called honest and is not, by what it alone tells.

    Options are laid over a config after its protocol; this looks at what came out. What
    only the data tell is found before the first step
    (:class:`mmpetl.engine.hooks.DataReadHook`).

    Args:
        config: A config that is written out.
        test: Config of the data set that is tested in the end, where the config has
            none: in stage ``tune``.

    Raises:
        PETLError: It trains or validates on the test set.
    """
    if config.get('protocol') != 'honest':
        return
    for phase, name in (('train', 'training'), ('val', 'validation')):
        if not _reads_test(config, phase, test):
            continue
        best = save_best_of(config) if phase == 'val' else None
        why = f', and {best} chooses a checkpoint by it' if best else ''
        raise PETLError(
            f'the honest protocol reads the test set once, at the end, but {name} '
            f'reads it{why}; take {phase}_dataloader off the test set, or take '
            '--protocol published'
        )
    held = config.get('stage') == 'tune' and config.get('train_dataloader')
    val = (config.get('val_dataloader') or {}).get('dataset')
    if held and same_reading(config.train_dataloader.get('dataset'), val):
        raise PETLError(
            'settings are chosen on validation data, but the config validates on what '
            'it trains on; take val_dataloader off it'
        )


def save_best_of(config: Any) -> str | None:
    """The key of a hook that chooses by validation, None where none does."""
    hooks = config.get('default_hooks') or {}
    for name, hook in hooks.items():
        if isinstance(hook, Mapping) and hook.get('save_best'):
            return f'default_hooks.{name}.save_best'
    for number, hook in enumerate(config.get('custom_hooks') or ()):
        if isinstance(hook, Mapping) and (hook.get('save_best') or hook.get('monitor')):
            return f'custom_hooks.{number}'
    return None


def _hold_out(config: Any) -> None:
    """Train on nine tenths of the training set and score on the tenth left.

    The tenth is read as the test set would be: its pipeline, no filter, no repeats.
    """
    train, val = config.train_dataloader.dataset, config.val_dataloader.dataset
    scored = copy.deepcopy(train)
    pipeline = next(iter(innermost(val))).get('pipeline')
    while scored.get('times'):
        scored = scored['dataset']
    for dataset in innermost(scored):
        dataset.pop('filter_cfg', None)
        dataset['test_mode'] = True
        if pipeline is not None:
            dataset['pipeline'] = copy.deepcopy(pipeline)
    node, key = config.train_dataloader, 'dataset'
    while node[key].get('times'):  # a set is split before it is repeated
        node = node[key]
    held = {'type': 'mmpetl.HeldOut', 'share': HELD_OUT}
    part_of = facts_of(config.dataset).part_of if config.get('dataset') else ''
    if part_of:
        held['part_of'] = part_of
    node[key] = {**held, 'part': 'train', 'dataset': node[key]}
    config.val_dataloader.dataset = {**held, 'part': 'val', 'dataset': scored}
    evaluators = config.val_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        # The official file has the whole set; figures then come from what is read.
        evaluator.pop('ann_file', None)
    for dataset in innermost(scored):
        for step in dataset.get('pipeline') or ():
            if step.get('type') == 'PackDetInputs' and 'meta_keys' in step:
                step['meta_keys'] = (*step['meta_keys'], 'instances')


def best_by(config: Any, *phases: str) -> str | None:
    """Name of the metric that says which of two models is better, as readings have it.

    Args:
        config: A config as it is written out.
        phases: Whose evaluators are looked at, the first that has any; by default those
            of the test, then of the validation.

    Returns:
        None where the first evaluator is none of :data:`BEST_BY`, or is asked for other
        metrics only.
    """
    for phase in phases or ('test', 'val'):
        evaluators = _evaluators(config, phase)
        if evaluators:
            return _best_of(evaluators[0], _name_of(evaluators[0]))
    return None


def check_ranked(config: Any) -> None:
    """Raise PETLError where no metric of a run could be ranked by, before it trains.

    The config says one in ``primary``, or some evaluator gives one of upstream's usual
    ones under any prefix. A config without evaluators scores nothing, and is let be.
    """
    if config.get('primary'):
        return
    for phase in ('test', 'val'):
        evaluators = _evaluators(config, phase)
        if not evaluators:
            continue
        if any(_ranks(evaluator) for evaluator in evaluators):
            return
        kinds = ', '.join(dict.fromkeys(map(_name_of, evaluators)))
        raise PETLError(
            f'which metric of {kinds} tables rank by is not known; say it in the '
            "config, primary = 'NAME', of one that is better the higher it is"
        )


def _best_of(evaluator: Mapping[str, Any], kind: str) -> str | None:
    """The metric by which an evaluator says what is better, as readings have it."""
    best = BEST_BY.get(kind)
    if best is None or not _GIVES[kind](evaluator):
        return None
    if kind == 'CocoMetric' and not _coco(evaluator, 'bbox'):
        best = 'coco/segm_mAP'
    prefix = evaluator.get('prefix')
    return f'{prefix}/{best.rpartition("/")[2]}' if prefix else best


def _ranks(evaluator: Mapping[str, Any]) -> bool:
    """Whether an evaluator, or one that it holds, gives a metric to rank by."""
    held = evaluator.get('metrics') or ()
    each = (evaluator.get('task_metrics') or {}).values()
    inner = [*_listed(held), *(one for some in each for one in _listed(some))]
    if any(isinstance(one, Mapping) and _ranks(one) for one in inner):
        return True
    kind = _kind_of(evaluator)
    if kind == 'ReIDMetrics':
        return 'mAP' in _listed(evaluator.get('metric', 'mAP'))
    return kind in _MEANS or _best_of(evaluator, kind) is not None


def _name_of(evaluator: Mapping[str, Any]) -> str:
    kind = evaluator.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition('.')[2]


def _kind_of(evaluator: Mapping[str, Any]) -> str:
    """Class of an evaluator; of one that extends a known one, the known one's."""
    name, kind = _name_of(evaluator), evaluator.get('type')
    if name in BEST_BY or name in _MEANS or name in _OTHERS:
        return name
    from mmengine.registry import METRICS

    try:
        found = kind if isinstance(kind, type) else METRICS.get(str(kind))
    except (ImportError, KeyError, ValueError):
        found = None  # building it says why
    bases = [base.__name__ for base in getattr(found, '__mro__', ())]
    return next((base for base in bases if base in BEST_BY or base in _MEANS), name)


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _coco(evaluator: Mapping[str, Any], kind: str) -> bool:
    items = evaluator.get('metric_items')
    asked = kind in _listed(evaluator.get('metric', 'bbox'))
    return asked and (items is None or 'mAP' in items)


def _top1(options: Mapping[str, Any], topk: tuple[int, ...]) -> bool:
    return 1 in _listed(options.get('topk', topk))


_GIVES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    # Of several thresholds each has a name of its own.
    'Accuracy': lambda e: _top1(e, (1,)) and len(_listed(e.get('thrs'))) == 1,
    'AccMetric': lambda e: (
        'top_k_accuracy' in _listed(e.get('metric_list', 'top_k_accuracy'))
        and _top1((e.get('metric_options') or {}).get('top_k_accuracy') or {}, (1, 5))
    ),
    'IoUMetric': lambda e: 'mIoU' in _listed(e.get('iou_metrics', 'mIoU')),
    'CocoMetric': lambda e: _coco(e, 'bbox') or _coco(e, 'segm'),
    'VOCMetric': lambda e: 'mAP' in _listed(e.get('metric', 'mAP')),
    'MaskedAccuracy': lambda e: _top1(e, (1,)),
}
"""Whether the arguments of an evaluator ask for its metric of :data:`BEST_BY`."""

_MEANS = (
    'AveragePrecision',
    'CityScapesMetric',
    'CrowdHumanMetric',
    'LabelMaps',
    'OpenImagesMetric',
    'VOCAveragePrecision',
)
"""Further evaluators, whose ``mAP`` or ``mIoU`` tables rank by."""

_OTHERS = ('LVISMetric',)
"""Evaluators that extend a known one and call their metrics otherwise."""


def _evaluators(config: Any, phase: str) -> list[Mapping[str, Any]]:
    """The evaluators of a phase."""
    found = _listed(config.get(f'{phase}_evaluator') or ())
    return [one for one in found if isinstance(one, Mapping)]


def _keep_best(config: Any) -> None:
    if config.train_cfg.get('max_epochs') and config.default_scope == 'mmpretrain':
        config.train_cfg.val_interval = min(VAL_EPOCHS, config.train_cfg.max_epochs)
    best = best_by(config, 'val')
    if best is None:
        first = _evaluators(config, 'val')[:1]
        kind = first[0].get('type') if first else None
        raise PETLError(
            f'the published protocol keeps the best epoch, but which metric of {kind} '
            f'is meant is not known; it is for: {", ".join(BEST_BY)}'
        )
    config.default_hooks.checkpoint.update(save_best=best, rule='greater')
