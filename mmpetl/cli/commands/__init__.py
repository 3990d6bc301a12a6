"""Tune frozen vision backbones by training few parameters.

Examples:
  mmpetl train lora vtab/cifar100
  mmpetl train mona ade20k --gpus 8
  mmpetl predict work_dirs/lora/vtab/cifar100 picture.jpg

Every command has an example in its help. Completion, for bash (zsh and fish likewise):
  eval "$(_MMPETL_COMPLETE=bash_source mmpetl)"
"""
