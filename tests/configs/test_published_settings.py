"""Every published pair has a config, and what is in force in it is what was published.

``hyperparameters.csv`` is the yardstick: values as printed by V-PETL Bench's scripts
and configs and by the methods' own repositories, one row per number. What no table
prints (base weights, training sets, loaders, schedules, heads) stands below as the
sources' code has it.
"""

from __future__ import annotations

import copy
import csv
import functools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_models import small

from mmpetl.config.compose import published_pairs
from mmpetl.config.load import load_config
from mmpetl.registry import PARAM_SCHEDULERS

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / 'configs'

# Method of the file to the configs that hold its settings, by task.
HOMES = {
    'Adapter': 'adapter',
    'AdaptFormer': 'adaptformer',
    'BitFit': 'bitfit',
    'Linear probing': 'linear_probe',
    'Full fine-tuning': 'full',
    'LN-Tune': 'ln_tune',
    'LoRA': 'lora',
    'SCT': 'sct',
    'VPT-Shallow': 'vpt_shallow',
    'SSF': 'ssf',
    'GPS': 'gps',
    'HST': 'hst',
    'DTL': 'dtl',
    'DTL+': 'dtl',
    'FacT-TK': 'fact_tk',
    'FacT-TT': 'fact_tt',
    'RepAdapter': 'rep_adapter',
    'RepAdapter (attention only)': 'rep_adapter',
    'Hydra': 'hydra',
    'NOAH': 'noah',
    'VPT-Deep': 'vpt_deep',
    'DiffFit': 'diff_fit',
}
FOLDERS = {'DTL+': 'vtab_plus', 'RepAdapter (attention only)': 'vtab_attn'}
# The file has the batch of one process; these ran on several.
PROCESSES = {('SSF', 'vtab'): 2, ('SSF', 'fgvc'): 2, ('HST', 'vtab'): 2}
PROCESSES |= {('HST', 'fgvc'): 4}

METHOD = 'model.backbone.method'
TRUNK_DROP = 'model.backbone.backbone.drop_path_rate'
SMOOTH = 'model.head.loss.label_smooth_val'
# What the size of a script is for each method; for the others it does nothing.
SIZES = {
    'Adapter': ('hidden_dims', lambda reduction: 768 // reduction),
    'AdaptFormer': ('hidden_dims', int),
    'LoRA': ('rank', int),
    'VPT-Shallow': ('num_tokens', int),
    'SCT': ('num_channels', int),
}
ARGUMENTS = {
    'scale': 'scale',
    'scaleonx': 'scale_on_x',
    'rank': 'rank',
    'beta': 'beta',
    'dropout': 'drop_rate',
    'times_para': 'num_weights',
    'fusion_size': 'kernel_size',
    'vpt_num': 'num_tokens',
    'visual_prompt_dim_per_layer': 'num_tokens',
    'lora_dim_per_layer': 'rank',
    'adapter_dim_per_layer': 'hidden_dims',
}


# The benchmark's training scripts whose own configs are read; all others ask for
# `get_config('model_lora', ...)`, whatever the method.
OWN_CONFIGS = ('SCT', 'Full fine-tuning', 'LoRA')


def read_published():
    """``{(method, task, dataset): {param: text}}`` of the pairs that have a config."""
    with open(HERE / 'hyperparameters.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row['task'] = row['task'].removesuffix('1k')
    of_lora = {
        (r['task'], r['dataset'], r['param']): r['value']
        for r in rows
        if r['method'] == 'LoRA' and r['source'].endswith(' configs')
    }
    pairs = defaultdict(dict)
    for row in rows:
        method, task, dataset = row['method'], row['task'], row['dataset']
        own = row['collection'] in ('vpetl_bench', 'official')
        studied = method in ('VPT-Deep', 'DiffFit') and task == 'vtab'
        if dataset.endswith('_aug_norm') or not (own or studied):
            continue
        text = row['value']
        if row['source'].endswith(' configs') and method not in OWN_CONFIGS:
            text = of_lora[task, dataset, row['param']]
        pairs[method, task, dataset][row['param']] = text
    return dict(pairs)


PUBLISHED = read_published()


@functools.cache
def read_once(path: str) -> Config:
    return plain_fromfile(path)


plain_fromfile = Config.fromfile


@pytest.fixture(autouse=True)
def _read_each_file_once(monkeypatch):
    """Bases are read hundreds of times otherwise."""
    monkeypatch.setattr(
        Config, 'fromfile', lambda path, **_: copy.deepcopy(read_once(str(path)))
    )


def value(config, path):
    for key in path.split('.'):
        config = config[int(key)] if key.isdigit() else config.get(key)
        if config is None:
            return None
    return config


def number(text: str):
    return text == 'True' if text in ('True', 'False') else float(text)


def expected_at(method, task, param, text, config):
    """Config key and value that a published number stands for; None for no effect."""
    if param == 'lr':
        return 'optim_wrapper.optimizer.lr', float(text)
    if param in ('wd', 'weight_decay'):
        return 'optim_wrapper.optimizer.weight_decay', float(text)
    if param == 'drop_path':
        own = method == 'HST'  # its pyramid's; the trunk is not meant
        return f'{METHOD}.drop_path_rate' if own else TRUNK_DROP, float(text)
    if param == 'batch_size':
        total = int(text) * PROCESSES.get((method, task), 1)
        return 'train_dataloader.batch_size', total
    if param == 'epochs':
        return 'train_cfg.max_epochs', int(text)
    if param == 'warmup_epochs':
        return 'param_scheduler.0.end', int(text)
    if param == 'warmup_lr':
        lr = config.optim_wrapper.optimizer.lr
        # MMEngine's schedules begin above 0; 1e-8 of the rate is as good.
        return 'param_scheduler.0.start_factor', max(float(text) / lr, 1e-8)
    if param == 'min_lr':
        return 'param_scheduler.1.eta_min', float(text)
    if param in ('labelsmoothing', 'label_smoothing'):
        return SMOOTH, float(text) or None
    if param == 'train_aug':
        plain = 'fgvc' if task == 'fgvc' else 'plain'
        wanted = 'sct' if text == 'True' else plain
        return 'preprocessing.augmentation', wanted
    if param == 'optimizer':
        return 'optim_wrapper.optimizer.type', {'adam': 'Adam', 'adamw': 'AdamW'}[text]
    if param == 'ema_decay':
        return 'custom_hooks.4.decay', float(text)
    if param == 'size':
        if method not in SIZES:
            return None
        key, convert = SIZES[method]
        return f'{METHOD}.{key}', convert(int(text))
    if param == 'fusion_size' and text == '0':
        return f'{METHOD}.kernel_size', None
    if param == 'lora_before_blocks':
        assert text == '0-11'  # every block, which is what DTL does
        return None
    if param == 'add_after_blocks':
        first, last = map(int, text.split('-'))
        return f'{METHOD}.add_after', list(range(first, last + 1))
    if param.endswith('_per_layer'):
        return f'{METHOD}.{ARGUMENTS[param]}', [int(n) for n in text.split()]
    return f'{METHOD}.{ARGUMENTS[param]}', number(text)


@pytest.mark.parametrize('method', HOMES)
def test_values_in_force_are_the_published_ones(method):
    checked = 0
    for (name, task, dataset), params in PUBLISHED.items():
        if name != method:
            continue
        folder = FOLDERS.get(method, task)
        path = CONFIGS / HOMES[method] / folder / f'{dataset}.py'
        assert not path.exists(), 'a row of a table needs no file'
        config = load_config(path)
        for param, text in params.items():
            wanted = expected_at(method, task, param, text, config)
            if wanted is None:
                continue
            key, right = wanted
            found = value(config, key)
            if isinstance(right, float):
                right = pytest.approx(right, rel=1e-12)
            assert found == right, f'{dataset}: {param}={text}, but {key} is {found}'
            checked += 1
    assert checked >= 2


def test_the_yardstick_is_whole():
    assert {method for method, *_ in PUBLISHED} == set(HOMES)
    numbers = sum(len(params) for params in PUBLISHED.values())
    # 1,616 of the benchmark, 1,385 of the methods, 19 tasks of two from the study
    assert numbers == 1616 + 1385 + 19 * 3 + 19 * 2


def test_every_published_pair_is_listed_once():
    listed = [f'{stem}/{name}' for stem, name in published_pairs()]
    assert len(set(listed)) == len(listed)
    for method, task, dataset in PUBLISHED:
        folder = FOLDERS.get(method, task)
        assert f'{HOMES[method]}/{folder}/{dataset}' in listed


# What follows is read in the sources' code. Stems by the code they share:
VPETL = {'adapter', 'adaptformer', 'bitfit', 'full', 'linear_probe', 'ln_tune', 'lora'}
VPETL |= {'prefix', 'sct', 'vpt_shallow'}
NOAH_FAMILY = {'noah', 'fact_tk', 'fact_tt', 'convpass', 'rep_adapter', 'hydra'}
TIMM = {'ssf', 'hst', 'gps'}
STUDY = {'vpt_deep', 'diff_fit'}
FGVC = ('cub_200_2011', 'nabirds', 'oxford_flowers', 'stanford_dogs', 'stanford_cars')

ORIGINAL = 'ViT-B_16.npz'
# `vit_base_patch16_224_in21k` of timm 0.6.5 and of HST's and GPS's copies of its file.
AUGREG = 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz'
BASES = {
    **dict.fromkeys(VPETL | NOAH_FAMILY | STUDY | {'dtl', 'vqt'}, ORIGINAL),
    **dict.fromkeys(TIMM, AUGREG),
}
BASES |= {'rlrr': ORIGINAL}
BASES |= dict.fromkeys({'arc', 'adapter_plus'}, ORIGINAL)
BASES |= dict.fromkeys({'arc', 'adapter_plus', 'consolidator'}, ORIGINAL)
BASES['binary'] = ORIGINAL
BASES['binary'] = ORIGINAL
BASES |= {'rlrr': ORIGINAL}
BASES['dyt'] = ORIGINAL
BASES_ELSEWHERE = {
    'ssv2': 'videomae_pretrain_vit_b_1600.pth',
    'hmdb51': 'videomae_pretrain_vit_b_1600.pth',
    'kinetics400_clip': 'ViT-B-16.pt',
    'ssv2_swin': 'swin_base_patch244_window877_kinetics400_22k.pth',
    'hmdb51_swin': 'swin_base_patch244_window877_kinetics400_22k.pth',
    'coco': 'swin_base_patch4_window7_224_22k.pth',
    'voc': 'swin_large_patch4_window7_224_22k.pth',
    'ade20k': 'swin_large_patch4_window7_224_22k.pth',
    'nyud_mt': 'swin_tiny_patch4_window7_224.pth',
}


def one_row_per_table():
    """``(folder, name)`` of every published pair, the first row for a table."""
    first = {}
    for folder, name in published_pairs():
        first.setdefault((folder, name.rpartition('/')[0] or name), (folder, name))
    return list(first.values())


PAIRS = one_row_per_table()
IMAGES = [(folder, name) for folder, name in PAIRS if '/' in name]


PHASES = ('_supernet', '_search', '_retrain')


def leaf(folder, name, protocol='published'):
    path = CONFIGS / folder / f'{name}.py'
    return load_config(path, protocol=protocol)


@pytest.mark.parametrize(('folder', 'name'), PAIRS)
def test_base_weights_are_those_of_the_source(folder, name):
    wanted = BASES[folder] if '/' in name else BASES_ELSEWHERE[name]
    config = leaf(folder, name, 'honest')
    assert Path(config.model.backbone.checkpoint).name == wanted


# Mean and spread, and interpolation of the test pictures.
INPUTS = {
    **dict.fromkeys(VPETL | {'vqt'}, ('imagenet', 'bilinear')),
    **dict.fromkeys(NOAH_FAMILY, ('imagenet', 'bicubic')),
    **dict.fromkeys(TIMM | {'dtl'}, ('half', 'bicubic')),
    **dict.fromkeys(STUDY, ('none', 'bicubic')),
}
INPUTS |= {'rlrr': ('half', 'bicubic')}
INPUTS |= {'arc': ('imagenet', 'bicubic')}
INPUTS |= dict.fromkeys({'arc', 'consolidator'}, ('imagenet', 'bicubic'))
INPUTS |= {
    'adapter_plus/vtab': ('half', 'bilinear'),
    'adapter_plus/fgvc': ('half', 'bicubic'),
}
INPUTS['dyt'] = 'half', 'bicubic'
INPUTS['binary'] = 'none', 'bicubic'  # get_data(..., normalize=False)
INPUTS['binary'] = 'none', 'bicubic'  # get_data(..., normalize=False)
INPUTS |= {'rlrr': ('half', 'bicubic')}
# Rate at the start and the end, epochs of the cosine and of the run, and whether the
# rate lags an epoch behind (`scheduler.step(epoch)` after it).
RATES = {
    **dict.fromkeys(VPETL | NOAH_FAMILY | STUDY, (1e-6, 1e-5, 100, 100, True)),
    **dict.fromkeys(TIMM | {'dtl'}, (1e-7, 1e-8, 100, 110, False)),
    'full': (1e-4, 1e-6, 100, 100, True),
    'hydra': (1e-6, 1e-5, 500, 100, True),
    'consolidator': (1e-6, 1e-5, 100, 100, True),
}
RATES |= {'rlrr': (1e-7, 1e-8, 100, 110, True)}
RATES['binary'] = RATES['noah']
RATES['binary'] = RATES['noah']
RATES |= {'rlrr': (1e-7, 1e-8, 100, 110, True)}
# Loaders with drop_last=True, and those with False; DTL's and the study's are not to be
# seen.
WHOLE_BATCHES = dict.fromkeys(NOAH_FAMILY | TIMM, True)
WHOLE_BATCHES |= dict.fromkeys(VPETL, False)
WHOLE_BATCHES |= {'rlrr': False}
WHOLE_BATCHES |= {'arc': False}
WHOLE_BATCHES |= {'arc': False, 'consolidator': True}
# Linear warm-up and half a cosine, and no rate of timm's: start, floor, epochs of both.
PAIRS_OF_RATES = {'arc': (1e-8, 1e-8, 10, 90), 'adapter_plus': (1e-5, 1e-6, 10, 90)}
WHOLE_BATCHES['binary'] = True
WHOLE_BATCHES['binary'] = True
WHOLE_BATCHES |= {'rlrr': False}
WHOLE_BATCHES['dyt'] = False
PAIRS_OF_RATES['dyt'] = 0.0, 1e-5, 10, 90


@pytest.mark.parametrize('protocol', ['honest', 'published'])
@pytest.mark.parametrize('folder', sorted({folder for folder, _ in PAIRS}))
def test_rates_follow_their_schedules(folder, protocol):
    """As a run steps them, by epochs or by iterations; only numbers are told above."""
    name = next(name for found, name in PAIRS if found == folder)
    config = leaf(folder, name, protocol)
    params = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(params, lr=config.optim_wrapper.optimizer.lr)
    schedules = []
    for node in config.param_scheduler:
        node = dict(node)
        kind = PARAM_SCHEDULERS.get(node.pop('type'))
        if node.pop('convert_to_iter_based', False):
            build = kind.build_iter_from_epoch
            schedules.append(build(optimizer, **node, epoch_length=3))
        else:
            schedules.append(kind(optimizer, **node))
    rates = []
    for _ in range(12):
        optimizer.step()
        rates.append(optimizer.param_groups[0]['lr'])
        for schedule in schedules:
            schedule.step()
    assert all(0 <= rate < float('inf') for rate in rates)
    assert any(rates)


@pytest.mark.parametrize(
    ('folder', 'name'),
    [(folder, name) for folder, name in IMAGES if not name.endswith(PHASES)],
)
def test_inputs_rates_and_loaders_are_those_of_the_source(folder, name):
    config = leaf(folder, name)
    inputs = config.preprocessing.normalisation, config.preprocessing.interpolation
    assert inputs == (INPUTS.get(folder) or INPUTS[f'{folder}/{name.split("/")[0]}'])
    if folder in PAIRS_OF_RATES:
        warm, cosine = config.param_scheduler
        start = warm.start_factor * config.optim_wrapper.optimizer.lr
        found = start, cosine.eta_min, warm.end, cosine.T_max
        assert found == pytest.approx(PAIRS_OF_RATES[folder], rel=1e-12, abs=1e-10)
    if folder in RATES:
        (rate,) = config.param_scheduler
        found = rate.start, rate.eta_min, rate.T_max
        start, floor, cosine, epochs, late = RATES[folder]
        assert found == pytest.approx((start, floor, cosine), rel=1e-12)
        assert config.train_cfg.max_epochs == epochs
        assert rate.late is late
    if folder in WHOLE_BATCHES:
        drops = bool(config.train_dataloader.get('drop_last'))
        assert drops is WHOLE_BATCHES[folder]
    # Every one of these loops calls model.train(), and trunks have a rate.
    assert config.model.backbone.frozen_drop_path is True


def test_noah_drops_partial_batches_in_every_phase_that_trains():
    for phase in ('supernet', 'retrain'):
        config = leaf('noah', f'vtab/cifar100_{phase}', 'honest')
        assert config.train_dataloader.drop_last


# VPT's lists divide the official training sets of four into train and val; Flowers
# publishes 1,020 and 1,020. GPS's data/fgvc.py joins train.json and val.json; SSF and
# HST read the official sets by classes and folders of their own.
OFFICIAL = dict.fromkeys(FGVC, 'trainval') | {'oxford_flowers': 'train'}
TRAINED_ON = {
    'ssf': OFFICIAL,
    'hst': OFFICIAL,
    'gps': dict.fromkeys(FGVC, 'trainval'),
    'adapter_plus': dict.fromkeys(FGVC, 'trainval'),
    **dict.fromkeys(VPETL - {'full', 'sct'}, dict.fromkeys(FGVC, 'train')),
}


@pytest.mark.parametrize('folder', sorted(TRAINED_ON))
def test_training_sets_of_fgvc_are_those_of_the_source(folder):
    assert {s for s, n in IMAGES if n.startswith('fgvc')} == set(TRAINED_ON)
    for dataset, split in TRAINED_ON[folder].items():
        config = leaf(folder, f'fgvc/{dataset}')
        assert config.train_dataloader.dataset.split == split, dataset
        assert config.val_dataloader.dataset.split == 'test'
        # Settings are chosen on val, so the honest protocol keeps it out of training.
        honest = leaf(folder, f'fgvc/{dataset}', 'honest')
        assert honest.train_dataloader.dataset.split == 'train'


@pytest.mark.parametrize('folder', sorted(TIMM))
@pytest.mark.parametrize('protocol', ['honest', 'published'])
def test_timms_trainer_mixes_pictures_unless_told_not_to(folder, protocol):
    # Defaults --mixup 0.8 --cutmix 1.0 --mixup-switch-prob 0.5, which the scripts of
    # VTAB-1k set to 0 and those of FGVC leave.
    config = leaf(folder, 'fgvc/nabirds', protocol)
    assert config.model.train_cfg.to_dict() == {
        'augments': [{'type': 'Mixup', 'alpha': 0.8}, {'type': 'CutMix', 'alpha': 1.0}]
    }
    assert config.model.data_preprocessor.num_classes == 555
    assert config.model.head.loss.label_smooth_val == 0.1
    plain = leaf(folder, 'vtab/svhn', protocol)
    assert 'train_cfg' not in plain.model
    assert 'num_classes' not in plain.model.data_preprocessor


@pytest.mark.parametrize('folder', sorted(TIMM))
def test_simple_aug_draws_its_interpolation_and_erases_where_it_prefetches(folder):
    # PrefetchLoader erases (--reprob 0.25, 'pixel') where no_aug is off; GPS has
    # --no-prefetcher, whose transforms do not.
    load, crop, flip, *more, pack = leaf(
        folder, 'fgvc/nabirds'
    ).train_dataloader.dataset.pipeline
    assert crop.type == 'RandomChoice'
    drawn = [branch[0].interpolation for branch in crop.transforms]
    assert sorted(drawn) == ['bicubic', 'bilinear']
    assert all(branch[0].type == 'RandomResizedCrop' for branch in crop.transforms)
    assert (flip.type, flip.prob, pack.type) == ('RandomFlip', 0.5, 'PackInputs')
    if folder == 'gps':
        assert not more
        return
    (erase,) = more
    assert erase.type == 'RandomErasing'
    assert (erase.erase_prob, erase.max_area_ratio) == (0.25, pytest.approx(1 / 3))
    # Standard normal noise behind the normalisation by 0.5 and 0.5.
    assert erase.fill_color == erase.fill_std == [127.5] * 3


def test_erasing_touches_a_quarter_of_the_pictures():
    from mmengine.registry import TRANSFORMS, DefaultScope

    np.random.seed(0)
    pipeline = leaf('ssf', 'fgvc/nabirds').train_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        erase = TRANSFORMS.build(pipeline[3])
    erased = []
    for _ in range(400):
        picture = erase({'img': np.full((32, 32, 3), 7, np.uint8)})['img']
        erased.append(np.mean(np.any(picture != 7, axis=2)))
    assert np.mean(np.array(erased) > 0) == pytest.approx(0.25, abs=0.05)
    assert 0.25 < max(erased) < 0.37


@pytest.mark.parametrize('name', ['vtab/svhn', 'fgvc/nabirds'])
def test_gps_chooses_by_two_views_that_differ(name):
    # transforms_contrastaug_train: crop, flip, ColorJitter(0.4, 0.4, 0.4, 0.1) at 0.8,
    # grey at 0.2. The pictures of VTAB-1k are not augmented otherwise.
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    calibration = leaf('gps', name).custom_hooks[0]
    assert calibration.type == 'mmpetl.CalibrationHook'
    crop, flip, jitter, grey = calibration.pipeline[1:-1]
    assert (crop.type, crop.scale) == ('RandomResizedCrop', 224)
    assert (flip.prob, jitter.prob, grey.prob) == (0.5, 0.8, 0.2)
    spread = {k: v for k, v in jitter.transforms[1].items() if k != 'type'}
    assert spread == dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        views = Compose(calibration.pipeline[1:-1])
    np.random.seed(0)
    picture = np.random.randint(0, 256, (64, 48, 3), np.uint8)
    one, two = (views({'img': picture.copy()})['img'] for _ in range(2))
    assert one.shape == two.shape == (224, 224, 3)
    assert not np.array_equal(one, two)
    for _ in range(20):  # jittered and grey ones among them
        assert views({'img': picture.copy()})['img'].dtype == np.uint8


def test_hst_drops_paths_in_the_trunk_as_in_the_pyramid():
    for (method, task, dataset), params in PUBLISHED.items():
        if method == 'HST':
            config = leaf('hst', f'{task}/{dataset}')
            assert value(config, TRUNK_DROP) == float(params['drop_path']), dataset


def test_hst_keeps_the_epsilon_of_its_last_norm():
    from mmpetl.methods.hst import SideNetwork

    assert SideNetwork(16, (4, 4)).exit.eps == 1e-6  # fc_norm of its vit_hsn.py


@pytest.mark.parametrize('task', ['vtab/svhn', 'fgvc/nabirds'])
def test_adaptformer_has_the_scale_of_the_benchmarks_code(task):
    method = leaf('adaptformer', task).model.backbone.method
    assert (method.hidden_dims, method.scale) == (8, 1.0)


# PETL-ViT, convpass/vtab/configs/convpass: scale and whether xavier_init is set.
CONVPASS = {
    'cifar100': (0.1, False),
    'caltech101': (1, False),
    'dtd': (0.01, True),
    'oxford_flowers102': (0.1, True),
    'oxford_iiit_pet': (1, True),
    'svhn': (100, True),
    'sun397': (0.1, False),
    'patch_camelyon': (10, False),
    'eurosat': (10, False),
    'resisc45': (10, False),
    'diabetic_retinopathy': (1, False),
    'clevr_count': (1, False),
    'clevr_dist': (0.1, True),
    'dmlab': (10, False),
    'kitti': (10, True),
    'dsprites_loc': (100, True),
    'dsprites_ori': (0.1, True),
    'smallnorb_azi': (100, True),
    'smallnorb_ele': (1, True),
}


def test_convpass_has_a_scale_and_a_start_per_task():
    for task, (scale, xavier) in CONVPASS.items():
        config = leaf('convpass', f'vtab/{task}')
        method = config.model.backbone.method
        assert (method.scale, method.conv_init == 'xavier') == (scale, xavier), task
        assert value(config, 'optim_wrapper.optimizer.lr') == 1e-3


# run_demo_exp.sh: one query elsewhere.
VQT_QUERIES = {
    'svhn': 20,
    'dmlab': 20,
    'kitti': 20,
    'dsprites_loc': 20,
    'smallnorb_azi': 20,
    'clevr_dist': 10,
    'smallnorb_ele': 10,
}


def test_vqt_has_queries_per_task_adam_and_no_stochastic_depth():
    for task in CONVPASS:
        config = leaf('vqt', f'vtab/{task}')
        method, queries = config.model.backbone.method, VQT_QUERIES.get(task, 1)
        assert (method.num_tokens, method.drop_rate) == (queries, 0.1), task
        assert config.model.head.in_channels == 768 * (1 + 12 * queries), task
        assert config.optim_wrapper.optimizer.type == 'Adam'
        assert value(config, TRUNK_DROP) == 0
        assert config.param_scheduler[-1].eta_min == 0
        assert config.train_dataloader.batch_size == 128


# binary_adapter/configs/{lora,adaptformer}/*-bit1-dim32.yaml
BINARY = {
    'cifar100': (0.1, 0.1),
    'caltech101': (10, 10),
    'dtd': (0.01, 0.01),
    'oxford_flowers102': (1, 1),
    'oxford_iiit_pet': (0.1, 0.01),
    'svhn': (10, 10),
    'sun397': (0.1, 0.1),
    'patch_camelyon': (10, 1),
    'eurosat': (10, 1),
    'resisc45': (10, 10),
    'diabetic_retinopathy': (10, 1),
    'clevr_count': (1, 1),
    'clevr_dist': (0.1, 0.1),
    'dmlab': (10, 1),
    'kitti': (10, 1),
    'dsprites_loc': (1, 1),
    'dsprites_ori': (0.1, 0.1),
    'smallnorb_azi': (10, 1),
    'smallnorb_ele': (1, 1),
}


def test_matrices_of_few_bits_have_a_scale_per_task():
    for task, scales in BINARY.items():
        for name, scale in zip(('vtab', 'vtab_adaptformer'), scales, strict=True):
            method = leaf('binary', f'{name}/{task}').model.backbone.method
            assert method.scale == scale, (name, task)


VIDEO = [pair for pair in PAIRS if pair[1].startswith(('ssv2', 'hmdb51'))]


@pytest.mark.parametrize(('folder', 'name'), VIDEO)
def test_video_heads_and_loaders_are_those_of_the_source(folder, name):
    config = leaf(folder, name)
    assert config.train_dataloader.drop_last
    head, trunk = config.model.cls_head, config.model.backbone
    if name.endswith('swin'):
        # A plain linear layer; drop_path_rate=0.4 under model.train().
        assert head.type == 'I3DHead'
        assert (value(config, TRUNK_DROP), trunk.frozen_drop_path) == (0.4, True)
    else:
        # nn.Sequential(BatchNorm1d(affine=False, eps=1e-6), Linear), which starts from
        # a truncated normal of 0.01.
        assert head.type == 'mmpetl.BatchNormHead'
        assert (head.get('eps', 1e-6), head.init_std) == (1e-6, 0.01)
        assert value(config, TRUNK_DROP) == 0


def test_bapat_takes_every_second_frame_of_the_recipes_pipelines():
    bapat, recipe = leaf('bapat', 'hmdb51_swin'), leaf('adaptformer', 'hmdb51_swin')
    for phase in ('train', 'val', 'test'):
        pipeline = bapat[f'{phase}_dataloader'].dataset.pipeline
        assert pipeline[1].frame_interval == 2
        pipeline[1].frame_interval = 4
        assert pipeline == recipe[f'{phase}_dataloader'].dataset.pipeline


@pytest.mark.parametrize(
    'name', ['mona/ade20k', 'bitfit/ade20k', 'mona/voc', 'mona/coco']
)
def test_dense_recipes_spare_norms_and_tables_from_decay(name):
    # custom_keys of Mona's configs: decay_mult=0 for names that hold one of these.
    keys = ('absolute_pos_embed', 'relative_position_bias_table', 'norm')
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope

    config = small(CONFIGS / f'{name}.py')
    config.model.backbone.checkpoint = None
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model)
        groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    names = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    spared = {
        names[id(p)] for g in groups if g['weight_decay'] == 0 for p in g['params']
    }
    assert spared == {n for n in names.values() if any(key in n for key in keys)}
    assert any(n.endswith('bias') for n in set(names.values()) - spared)


def test_voc_trains_on_small_boxes_by_two_pictures_a_step():
    # Mona's logs: MMDetection 2.11, whose VOC reader ignores boxes only by min_size,
    # which is None there; gpu_ids = range(0, 2), one picture each.
    config = leaf('mona', 'voc')
    for part in config.train_dataloader.dataset.dataset.datasets:
        assert part.filter_cfg == {'filter_empty_gt': True, 'min_size': 32}
    assert config.auto_scale_lr == {'enable': False, 'base_batch_size': 2}
