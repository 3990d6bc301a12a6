# Rate: from the least of VPT's grid for full tuning (KMnP/vpt), 1e-4, to the highest
# of the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision) on VTAB-1k, 1e-2. Decay: from
# the 1e-4 of the study to the highest of V-PETL Bench, 0.1
# (synbol/Parameter-Efficient-Transfer-Learning-Benchmark).
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-4, high=1e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1e-1, log=True),
}
