"""What tools, demos and notebooks call. Heavy libraries load when used."""

from __future__ import annotations

from mmpetl.lazy import lazy_names

_HOMES = {
    'add_petl': 'mmpetl.config.add_petl',
    'build_runner': 'run',
    'choose_device': 'run',
    'cli_errors': 'run',
    'load_config': 'mmpetl.config.load',
    'open_run': 'runs',
    'test': 'run',
    'train': 'run',
    'published_pairs': 'mmpetl.config.compose',
    'recipe_names': 'mmpetl.config.names',
    'search_space': 'mmpetl.config.compose',
    'DeltaFile': 'delta',
    'export_delta': 'delta',
    'load_delta': 'delta',
    'read_delta': 'delta',
    'load_peft': 'peft_files',
    'peft_types': 'peft_files',
    'save_peft': 'peft_files',
    'from_pretrained': 'hub',
    'model_card': 'hub',
    'push_to_hub': 'hub',
    'export_onnx': 'onnx_files',
    'import_peft': 'peft_runs',
    'count_config': 'counting',
    'count_pairs': 'counting',
    'fold_checkpoint': 'folding',
    'fold_state_dict': 'folding',
    'stock_config': 'folding',
    'class_names': 'building',
    'init_model': 'model',
    'inferencer': 'inferencers',
    'pick_device': 'building',
    'test_pipeline': 'mmpetl.config.nodes',
    'Box': 'predict',
    'Prediction': 'predict',
    'Segmentation': 'predict',
    'predict_detection': 'predict',
    'predict_image': 'predict',
    'predict_segmentation': 'predict',
    'predict_video': 'predict',
    'draw_detection': 'draw',
    'draw_image': 'draw',
    'draw_segmentation': 'draw',
    'draw_video': 'draw',
    'show_file': 'show',
    'show_detection': 'show',
    'show_image': 'show',
    'show_segmentation': 'show',
    'show_video': 'show',
}

__all__ = sorted(_HOMES)  # noqa: PLE0605

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
