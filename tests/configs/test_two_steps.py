"""Every recipe and every leaf trains two steps on mini data in the official layout."""

from __future__ import annotations

import copy
import functools
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_models import CONFIGS, DEEP, small, two_steps

from mmpetl.apis.run import build_runner
from mmpetl.config.compose import published_pairs
from mmpetl.config.heads import fit_head as unpatched_fit_head
from mmpetl.config.leaves import COLUMNS, read_table
from mmpetl.config.load import load_config
from mmpetl.config.names import recipe_names
from mmpetl.datasets.catalog import CATALOG

RECIPES = [n for n in recipe_names() if not n.startswith('mini/') and n != 'nyud_mt']
PAIRS = list(published_pairs())
# The search of a method with phases needs what the phase before it made.
ROWS = [
    (s, n) for s, n in PAIRS if '/' in n and not n.endswith(('_search', '_retrain'))
]
PLAIN = [(s, n) for s, n in PAIRS if '/' not in n and n != 'nyud_mt']
METRICS = ('bbox_mAP', 'mAP', 'mIoU', 'top1')
TABLES = sorted({(folder, name.partition('/')[0]) for folder, name in ROWS})


@pytest.fixture(scope='session')
def data_root(tiny_data):
    return tiny_data(*sorted({CATALOG[i].path for i in needed()}))


def needed():
    """Ids of the data of all recipes; what two share is made once."""
    return {load_config(CONFIGS / f'recipes/{n}.py').dataset for n in RECIPES}


read_once = functools.cache(Config.fromfile)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, data_root):
    monkeypatch.setenv('MMPETL_DATA', str(data_root))
    # Bases are read hundreds of times otherwise.
    monkeypatch.setattr(
        Config, 'fromfile', lambda path, **_: copy.deepcopy(read_once(str(path)))
    )
    torch.manual_seed(0)


# One of each skeleton that no other test of the suite runs whole.
WHOLE = ('vtab/cifar100', 'fgvc/oxford_flowers', 'many_shot/cifar100_500')
WHOLE = [n if n in WHOLE else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES]


@pytest.mark.parametrize('name', WHOLE)
def test_recipe_trains_and_tests(name, tmp_path):
    config = small(CONFIGS / 'recipes' / f'{name}.py', work_dir=tmp_path)
    config.experiment_name = f'{name}-{time.time_ns()}'
    config.log_level = 'WARNING'
    if config.default_scope == 'mmpretrain':
        config.train_dataloader.dataset.indices = 4
        config.test_dataloader.dataset.indices = 2
        for loader in filter(None, [config.val_dataloader]):
            loader.dataset.indices = 2
    limit = 'max_iters' if 'max_iters' in config.train_cfg else 'max_epochs'
    config.train_cfg[limit] = 2 if limit == 'max_iters' else 1
    config.train_cfg.val_interval = config.train_cfg[limit]
    if name == 'coco':  # upstream's metric is empty where no box passes the threshold
        config.model.test_cfg.rcnn.score_thr = 0.0
    runner = build_runner(config, check_data=())
    runner.train()
    assert runner.iter >= 2
    assert runner.test()
    assert list(Path(tmp_path).glob('*.pth'))


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_trains_two_steps(name, data_root):
    config = small(CONFIGS / 'recipes' / f'{name}.py')
    two_steps(config, batch_of(name, str(data_root)))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ('coco', 'voc')]


@pytest.mark.parametrize('name', ['ade20k', 'hmdb51', *SLOW])
def test_settings_are_chosen_on_what_is_held_out(name, tmp_path):
    config = small(CONFIGS / 'recipes' / f'{name}.py', stage='tune', work_dir=tmp_path)
    config.experiment_name = f'{name}-tune-{time.time_ns()}'
    config.log_level = 'WARNING'
    train, val = config.train_dataloader.dataset, config.val_dataloader.dataset
    for part in (train.dataset if 'times' in train else train, val):
        part.share = 0.5  # of the few there are
    if name == 'coco':
        config.model.test_cfg.rcnn.score_thr = 0.0
    limit = 'max_iters' if 'max_iters' in config.train_cfg else 'max_epochs'
    config.train_cfg[limit] = config.train_cfg.val_interval = 1
    runner = build_runner(config, check_data=())
    runner.train()
    scores = [k for k in runner.message_hub.log_scalars if k.startswith('val/')]
    assert any(key.rpartition('/')[2] in METRICS for key in scores), scores


@functools.cache
def batch_of(name: str, root: str) -> dict:
    """The first two training samples of a recipe, as its loader hands them on."""
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, DefaultScope

    config = small(CONFIGS / 'recipes' / f'{name}.py')
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(config.train_dataloader.dataset)
    return pseudo_collate([dataset[0], dataset[1]])


def fitted(method: dict) -> dict:
    """Sizes that the first stage of the mini Swin, 24 channels, has room for."""
    method = dict(method)
    if 'rank' in method or method['type'] == 'LoRand':
        method['rank'] = min(method.get('rank', 4), 4)
    return method


def distinct(names: list[str], folder: str, table: str) -> list[str]:
    """Rows that run other code than those before: rates, scales and widths do not."""
    rows = read_table(CONFIGS / folder / f'{table}.py').rows
    chosen = {}
    for name in names:
        cells = rows.get(name.rpartition('/')[2], {'phase': name})
        kinds = {k: v for k, v in cells.items() if k not in COLUMNS}
        kinds = {k: v for k, v in kinds.items() if not isinstance(v, float | list)}
        smoothed = bool(cells.get('label_smoothing'))
        chosen.setdefault(repr((sorted(kinds.items()), smoothed)), name)
    return list(chosen.values())


def train_rows(folder, table, monkeypatch, every):
    # Full-size trunks would be built for heads.
    monkeypatch.setattr('mmpetl.config.load.fit_head', lambda config: None)
    size = {'preprocessing.size': 32, 'preprocessing.cache': 0}
    data = None
    names = [n for s, n in ROWS if s == folder and n.partition('/')[0] == table]
    for name in names if every else distinct(names, folder, table):
        config = load_config(CONFIGS / folder / f'{name}.py', size)
        model = config.model
        model.backbone.checkpoint = None
        drop_path = model.backbone.backbone.drop_path_rate
        model.backbone.backbone = {**DEEP, 'drop_path_rate': drop_path}
        model.head.in_channels = DEEP['arch']['embed_dims']
        if model.backbone.method.type == 'Consolidator':
            model.backbone.method.groups = (32,)  # 384 do not divide these widths
        unpatched_fit_head(config)
        data = data or images_of(config)
        fit_labels(data, model.head.num_classes)
        two_steps(config, data)


@pytest.mark.parametrize(('folder', 'table'), TABLES)
def test_rows_train_two_steps(folder, table, monkeypatch):
    train_rows(folder, table, monkeypatch, every=False)


@pytest.mark.slow
@pytest.mark.parametrize(('folder', 'table'), TABLES)
def test_all_rows_train_two_steps(folder, table, monkeypatch):
    train_rows(folder, table, monkeypatch, every=True)


def images_of(config: Config) -> dict:
    """Two pictures of a task in the official layout."""
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, DefaultScope

    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build({**config.train_dataloader.dataset, 'indices': 2})
    return pseudo_collate([dataset[0], dataset[1]])


def fit_labels(data: dict, count: int) -> None:
    """Labels that a task with fewer classes has too."""
    for index, sample in enumerate(data['data_samples']):
        sample.set_gt_label(index % count)


def chosen_leaves():
    """Every leaf, slow where another leaf of the method runs the same code faster."""
    for folder, name in PLAIN:
        dense = name in ('coco', 'voc')
        other = dense and (folder, 'ade20k') in PLAIN
        marks = [pytest.mark.slow] if other else []
        yield pytest.param(folder, name, marks=marks, id=f'{folder}-{name}')


@pytest.mark.parametrize(('folder', 'name'), chosen_leaves())
def test_leaf_trains_two_steps(folder, name, data_root):
    config = small(CONFIGS / folder / f'{name}.py')
    if 'Swin' in config.model.backbone.backbone.type:
        config.model.backbone.method = fitted(config.model.backbone.method)
    two_steps(config, batch_of(name, str(data_root)))


def shortened(path, folder, **kwargs):
    config = small(path, work_dir=folder, **kwargs)
    config.experiment_name = f'{path.stem}-{time.time_ns()}'
    config.log_level = 'WARNING'
    for phase, count in (('train', 4), ('val', 2), ('test', 2)):
        if config.get(f'{phase}_dataloader'):
            config[f'{phase}_dataloader'].dataset.indices = count
    config.train_cfg.max_epochs = config.train_cfg.val_interval = 2
    return config


def test_published_keeps_the_best_epoch_on_the_test_set(tmp_path):
    path = CONFIGS / 'lora/vtab/cifar100.py'
    config = shortened(path, tmp_path, protocol='published')
    assert config.param_scheduler[0].type == 'mmpetl.TimmCosineLR'
    runner = build_runner(config, check_data=())
    runner.train()
    assert len(list(tmp_path.glob('best_accuracy_top1_epoch_*.pth'))) == 1
    (dumped,) = tmp_path.glob('*.py')
    again = load_config(dumped)
    assert (again.protocol, again.stage) == ('published', 'final')
    assert again.preprocessing.normalisation == 'imagenet'


def test_an_average_is_trained_saved_and_resumed(tmp_path):
    path = CONFIGS / 'ssf/fgvc/oxford_flowers.py'
    whole = build_runner(shortened(path, tmp_path / 'whole'), check_data=())
    whole.train()
    checkpoint = torch.load(tmp_path / 'whole/epoch_1.pth', weights_only=True)
    own, state = checkpoint['own_values'], checkpoint['state_dict']
    assert set(own) <= set(state)
    assert any(not torch.equal(own[name], state[name]) for name in own)
    config = shortened(path, tmp_path / 'resumed')
    config.resume, config.load_from = True, str(tmp_path / 'whole/epoch_1.pth')
    resumed = build_runner(config, check_data=())
    resumed.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
