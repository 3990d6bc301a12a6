"""What a tuned model has become: arrays in, arrays out, and pictures of them.

Heavy libraries load when used.
"""

from __future__ import annotations

from mmpetl.lazy import lazy_names

_HOMES = {
    'Pair': 'sources',
    'Points': 'sources',
    'bare_copy': 'sources',
    'find_run': 'sources',
    'load_pair': 'sources',
    'load_points': 'sources',
    'without_methods': 'sources',
    'Features': 'features',
    'extract_features': 'features',
    'features_of_points': 'features',
    'Embedding': 'tsne',
    'Scores': 'tsne',
    'compare_embeddings': 'tsne',
    'embed': 'tsne',
    'knn_accuracy': 'tsne',
    'silhouette': 'tsne',
    'BlockAttention': 'attention',
    'class_map': 'attention',
    'entropy': 'attention',
    'mean_map': 'attention',
    'own_share': 'attention',
    'query_map': 'attention',
    'rollout': 'attention',
    'watch_attention': 'attention',
    'Effects': 'effect',
    'method_effects': 'effect',
    'LinearCKA': 'cka',
    'linear_cka': 'cka',
    'Caption': 'pictures',
    'draw_attention': 'pictures',
    'draw_cka': 'pictures',
    'draw_effects': 'pictures',
    'draw_filmstrip': 'pictures',
    'draw_tsne': 'pictures',
    'save_picture': 'pictures',
}

__all__ = sorted(_HOMES)  # noqa: PLE0605

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
