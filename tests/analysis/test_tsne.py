"""Scores of a t-SNE picture, against loops that follow their definitions."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mmpetl.analysis.pictures import Caption, draw_tsne, save_picture
from mmpetl.analysis.tsne import (
    align,
    compare_embeddings,
    embed,
    knn_accuracy,
    silhouette,
)
from mmpetl.core import PETLError


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 3, 7], 20)
    centres = rng.normal(size=(8, 10)) * 1.2
    return centres[labels] + rng.normal(size=(60, 10)), labels


def distances(x: np.ndarray) -> np.ndarray:
    return ((x[:, None] - x[None]) ** 2).sum(-1) ** 0.5


def test_knn_accuracy_leaves_the_point_itself_out(points):
    x, labels = points
    d = distances(x)
    for k in (1, 4, 20):
        right = 0
        for i in range(len(x)):
            near = [j for j in np.argsort(d[i], kind='stable') if j != i][:k]
            votes = {c: int((labels[near] == c).sum()) for c in (0, 3, 7)}
            right += max(votes, key=lambda c: (votes[c], -c)) == labels[i]
        assert knn_accuracy(x, labels, k) == pytest.approx(100 * right / 60)
    twins = np.repeat(np.eye(4), 2, axis=0)
    assert knn_accuracy(twins, np.array([0, 1] * 4), 1) == 0


def test_silhouette_is_that_of_its_definition(points):
    x, labels = points
    d = distances(x)
    values = []
    for i, own in enumerate(labels):
        same = (labels == own) & (np.arange(60) != i)
        a = d[i, same].mean()
        b = min(d[i, labels == c].mean() for c in (0, 3, 7) if c != own)
        values.append((b - a) / max(a, b))
    assert silhouette(x, labels) == pytest.approx(np.mean(values))


def test_the_same_seed_gives_the_same_picture(points):
    x, labels = points
    made = compare_embeddings({'base': x, 'tuned': 3 * x}, labels, 10, 5, seed=4)
    again = compare_embeddings({'base': x}, labels, 10, 5, seed=4)
    assert np.array_equal(made['base'].places, again['base'].places)
    for e in made.values():
        assert e.places.shape == (60, 2)
        assert e.original.knn == knn_accuracy(x, labels, 5)
        assert e.flat.knn == knn_accuracy(e.places, labels, 5)
        assert e.flat.silhouette == pytest.approx(silhouette(e.places, labels))
        assert 0.7 < e.trustworthiness <= 1
    # Features that differ in scale alone lie alike: not closer, since t-SNE lets
    # roundings grow, and processors round differently.
    moved = made['tuned'].places - made['base'].places
    spread = np.linalg.norm(made['base'].places, axis=1).mean()
    assert np.linalg.norm(moved, axis=1).mean() < 0.5 * spread


def test_turning_a_picture_keeps_its_distances():
    rng = np.random.default_rng(5)
    a = rng.normal(size=(12, 2))
    turned = a @ np.array([[0.6, 0.8], [0.8, -0.6]])  # turned and mirrored
    got = align(turned, a)
    np.testing.assert_allclose(got, a, atol=1e-12)
    b = rng.normal(size=(12, 2))
    np.testing.assert_allclose(distances(align(b, a)), distances(b), atol=1e-12)


def test_bad_input_gets_one_line(points):
    x, labels = points
    with pytest.raises(PETLError, match='perplexity 60 needs more than 60 points'):
        embed(x, 60)
    with pytest.raises(PETLError, match='perplexity of at least 1'):
        embed(x, 0.5)
    with pytest.raises(PETLError, match='60 neighbours need more than 60 points'):
        knn_accuracy(x, labels, 60)
    with pytest.raises(PETLError, match='2 to 59 classes among 60 points, got 1'):
        silhouette(x, np.zeros(60, int))
    with pytest.raises(PETLError, match='60 points need as many labels'):
        knn_accuracy(x, labels[:-1])
    with pytest.raises(PETLError, match='must be finite'):
        embed(np.full((60, 2), np.nan))
    with pytest.raises(PETLError, match="engines sklearn, opentsne, got 'umap'"):
        embed(x, 5, engine='umap')


def test_a_missing_engine_says_how_to_get_it(points, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openTSNE', None)
    with pytest.raises(PETLError, match='pip install openTSNE'):
        embed(points[0], 5, engine='opentsne')


def test_opentsne_keeps_neighbours(points):
    pytest.importorskip('openTSNE')
    x, labels = points
    places = embed(x, 10, engine='opentsne')
    assert places.shape == (60, 2)
    assert knn_accuracy(places, labels, 5) > knn_accuracy(x, labels, 5) - 15


def test_the_picture_and_what_lies_beside_it(points, tmp_path):
    import json

    from PIL import Image

    x, labels = points
    made = compare_embeddings({'base': x}, labels, 5, 5)
    figure = draw_tsne(made, labels, ('zero',), 5)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ['zero', 'class 3', 'class 7']
    below = figure.axes[0].get_xlabel()
    assert f'{made["base"].original.knn:.1f} %' in below
    assert f'{made["base"].flat.silhouette:+.3f}' in below
    caption = Caption('t', 'c', 'a', 's')
    numbers = {'places': made['base'].places, 'nothing': float('nan')}
    written = save_picture(figure, tmp_path / 'deep' / 'p.png', caption, numbers)
    assert sorted(p.name for p in (tmp_path / 'deep').iterdir()) == sorted(
        ['p.png', 'p.json', 'p.numbers.json']
    )
    assert Image.open(written[0]).size[0] > 500
    words = json.loads(written[1].read_text())
    assert words == {'title': 't', 'caption': 'c', 'alt': 'a', 'section': 's'}
    kept = json.loads(written[2].read_text())
    assert kept['nothing'] is None
    np.testing.assert_allclose(kept['places'], made['base'].places, rtol=1e-5)
    with pytest.raises(PETLError, match=r'pictures are written as \.png'):
        save_picture(figure, tmp_path / 'p.jpg', caption, {})
