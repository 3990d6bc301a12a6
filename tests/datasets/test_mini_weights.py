"""The shipped mini backbones: whole, described truly, and better than random ones."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mmpetl  # noqa: F401  the stock packages import after it
from mmpetl.datasets import mini
from mmpetl.datasets.mini import glyphs, letters, motion

WEIGHTS = Path(__file__).parents[2] / 'demo' / 'weights'
NAMES = ('mini_vit', 'mini_swin', 'mini_video_vit', 'mini_video_swin')
UPSTREAM_CLASSES = {'letters': 73, 'letters_in_clutter': 73, 'moving_letters': 24}


def facts_of(name: str) -> dict:
    return json.loads((WEIGHTS / f'{name}.json').read_text())


def build(name: str, trained: bool = True) -> torch.nn.Module:
    from safetensors.torch import load_file

    config = dict(facts_of(name)['backbone'])
    scope, kind = config.pop('type').split('.')
    models = importlib.import_module(f'{scope}.models')
    torch.manual_seed(0)
    backbone = getattr(models, kind)(**config)
    if trained:
        state = load_file(str(WEIGHTS / f'{name}.safetensors'))
        backbone.load_state_dict(state)  # strict
    backbone.eval()
    return backbone


def features(backbone: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Channels-last uint8 input to pooled features (N, C)."""
    tensor = torch.from_numpy(inputs).movedim(-1, 1).float().sub(127.5).div(127.5)
    with torch.no_grad():
        out = backbone(tensor)
    out = out[-1] if isinstance(out, tuple) else out
    return (out.flatten(2).mean(2) if out.ndim > 2 else out).numpy()


def probe(train: np.ndarray, labels, test: np.ndarray, truth) -> float:
    """Accuracy of logistic regression on standardised features, percent."""
    from sklearn import linear_model

    mean, spread = train.mean(0), train.std(0) + 1e-6
    model = linear_model.LogisticRegression(C=0.1, max_iter=1000)
    model.fit((train - mean) / spread, labels)
    return 100 * model.score((test - mean) / spread, truth)


@pytest.mark.parametrize('name', NAMES)
def test_weights_are_those_that_the_sidecar_describes(name):
    facts = facts_of(name)
    content = (WEIGHTS / f'{name}.safetensors').read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts['sha256']
    assert len(content) < 5_000_000
    backbone = build(name)
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count == facts['parameters']
    assert all(torch.isfinite(value).all() for value in backbone.state_dict().values())
    chance = 100 / UPSTREAM_CLASSES[facts['upstream']]
    assert facts['accuracy']['top1'] > 8 * chance
    last = [
        line
        for line in (WEIGHTS / f'{name}.log').read_text().splitlines()
        if 'Epoch(val)' in line and 'top1' in line
    ][-1]
    assert f'Epoch(val) [{facts["epochs"]}]' in last


def test_real_digits_are_read_better_from_the_trained_vit(tmp_path):
    import cv2

    folder = mini.make(tmp_path, ['digits'])['vtab-1k/digits']

    def load(split: str, count: int) -> tuple[np.ndarray, list[int]]:
        lines = (folder / f'{split}.txt').read_text().splitlines()[:count]
        pairs = [line.split(' ') for line in lines]
        pictures = [cv2.imread(str(folder / name))[..., ::-1] for name, _ in pairs]
        return np.stack(pictures), [int(label) for _, label in pairs]

    train, labels = load('train800', 100)
    test, truth = load('test', 400)
    scores = {
        trained: probe(
            features(build('mini_vit', trained), train),
            labels,
            features(build('mini_vit', trained), test),
            truth,
        )
        for trained in (True, False)
    }
    assert scores[True] > 78
    assert scores[True] > scores[False] + 15


def test_unseen_digits_are_read_better_from_the_trained_swin():
    rng = np.random.default_rng(5)

    def draw(count: int) -> tuple[np.ndarray, list[int]]:
        labels = [index % 10 for index in range(count)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(letters, 'LETTERS', glyphs.DIGITS)
            pictures = [letters.draw_letter(rng, label, 64) for label in labels]
        return np.stack(pictures), labels

    train, labels = draw(200)
    test, truth = draw(200)
    scores = {
        trained: probe(
            features(build('mini_swin', trained), train),
            labels,
            features(build('mini_swin', trained), test),
            truth,
        )
        for trained in (True, False)
    }
    assert scores[True] > scores[False] + 15


@pytest.mark.parametrize('name', ['mini_video_vit', 'mini_video_swin'])
def test_sequels_of_new_figures_are_told_apart_better_when_trained(name):
    rng = np.random.default_rng(6)
    ways = ('right', 'left', 'up', 'down')

    def draw(count: int) -> tuple[np.ndarray, list[int]]:
        labels = [index % 16 for index in range(count)]
        clips = []
        for label in labels:
            path = motion.then(
                motion.MOTIONS[ways[label // 4]], motion.MOTIONS[ways[label % 4]]
            )
            shape = glyphs.SHAPES[rng.integers(len(glyphs.SHAPES))]
            clips.append(motion.draw_clip(rng, [motion.Actor(shape, path)], 8, 32))
        return np.stack(clips), labels

    train, labels = draw(160)
    test, truth = draw(160)
    scores = {
        trained: probe(
            features(build(name, trained), train),
            labels,
            features(build(name, trained), test),
            truth,
        )
        for trained in (True, False)
    }
    assert scores[True] > scores[False] + 15
