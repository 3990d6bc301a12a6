"""The toolboxes' Inferencers on our configs and a delta say what our functions say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope, init_default_scope
from PIL import Image

from mmpetl import apis
from mmpetl.core import PETLError

MINI = Path(__file__).resolve().parents[2] / 'configs' / 'mini'


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """``tuned(name)``: a config of ours and a delta of it, published.

    Behind it the scope of the process is that of another toolbox.
    """
    monkeypatch.setenv('MMPETL_DATA', str(tmp_path / 'none'))

    def make(name: str):
        config = apis.load_config(
            MINI / f'{name}.py', {'model.backbone.method.type': 'LoRA'}
        )
        torch.manual_seed(3)
        model = apis.init_model(config, device='cpu')
        with torch.no_grad():
            for param in model.parameters():
                if param.requires_grad:
                    param.add_(0.05 * torch.randn_like(param))
        delta = apis.export_delta(model, config, tmp_path / name)
        other = 'mmseg' if config.default_scope == 'mmdet' else 'mmdet'
        init_default_scope(other)
        return config, delta

    with DefaultScope.overwrite_default_scope('mmengine'):
        yield make


@pytest.fixture
def large(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    path = tmp_path / 'large.png'
    Image.fromarray(pixels).save(path)
    return path


def test_a_picture_is_classified(tuned, picture, tmp_path):
    config, delta = tuned('digits')
    infer = apis.inferencer(config, delta, 'cpu')
    assert type(infer).__name__ == 'ImageClassificationInferencer'
    (said,) = infer(str(picture), show_dir=str(tmp_path / 'shown'))
    best = apis.predict_image(apis.init_model(config, delta, 'cpu'), picture, 1)[0]
    assert said['pred_label'] == best.label
    assert said['pred_score'] == pytest.approx(best.score, abs=1e-5)
    assert said['pred_class'] == best.name
    assert (tmp_path / 'shown' / 'picture.png').is_file()


def test_a_picture_is_segmented(tuned, large, tmp_path):
    config, delta = tuned('ade20k')
    infer = apis.inferencer(config, delta, 'cpu')
    assert type(infer).__name__ == 'MMSegInferencer'
    said = infer(str(large), out_dir=str(tmp_path / 'shown'))['predictions']
    ours = apis.predict_segmentation(apis.init_model(config, delta, 'cpu'), large)
    assert len(np.unique(ours.labels)) > 1
    assert np.array_equal(said, ours.labels)
    assert (tmp_path / 'shown' / 'vis' / 'large.png').is_file()
    assert infer.visualizer.dataset_meta['classes'][0] == 'wall'


def test_things_are_detected(tuned, large, tmp_path):
    config, delta = tuned('voc')
    infer = apis.inferencer(config, delta, 'cpu')
    assert type(infer).__name__ == 'DetInferencer'
    (said,) = infer(str(large), out_dir=str(tmp_path / 'shown'))['predictions']
    ours = apis.predict_detection(apis.init_model(config, delta, 'cpu'), large, 0.0)
    assert ours
    np.testing.assert_allclose(
        sorted(said['scores']), sorted(box.score for box in ours), atol=1e-5
    )
    assert (tmp_path / 'shown' / 'vis' / 'large.png').is_file()


def test_a_clip_is_recognised(tuned):
    config, delta = tuned('hmdb51')
    infer = apis.inferencer(config, delta, 'cpu', input_format='array')
    assert type(infer).__name__ == 'MMAction2Inferencer'
    clip = np.random.default_rng(0).integers(0, 255, (16, 48, 64, 3), np.uint8)
    (said,) = infer(clip)['predictions']
    # The same clip through the same steps, in the model of ours.
    packed = infer.actionrecog_inferencer.pipeline(clip)
    model = apis.init_model(config, delta, 'cpu')
    with torch.no_grad():
        sample = model.test_step(pseudo_collate([packed]))[0]
    assert sample.pred_score.shape == (12,)
    np.testing.assert_allclose(said['rec_scores'][0], sample.pred_score, atol=1e-5)


@pytest.mark.parametrize('name', ['digits', 'ade20k', 'voc'])
def test_the_scope_of_the_process_stays(tuned, name):
    config, delta = tuned(name)
    before = DefaultScope.get_current_instance().scope_name
    apis.inferencer(config, delta, 'cpu')
    assert DefaultScope.get_current_instance().scope_name == before
    assert before != config.default_scope


def test_what_no_inferencer_takes(tuned):
    config, _ = tuned('digits')
    config.default_scope = 'mmpose'
    with pytest.raises(PETLError, match='Inferencers of mmpretrain, mmaction'):
        apis.inferencer(config, device='cpu')
    config, _ = tuned('nyud_mt')
    with pytest.raises(PETLError, match='MultiTaskModel has no num_classes'):
        apis.inferencer(config, device='cpu')
