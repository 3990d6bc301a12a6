custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmpetl.DeltaCheckpointHook', interval=1, max_keep_ckpts=2, save_last=True
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='mmpetl.CalibrationHook'),
    dict(type='mmpetl.BaseGuardHook'),
    dict(type='mmpetl.EfficiencyHook'),
    dict(type='mmpetl.NonFiniteGuardHook'),
]

model_wrapper_cfg = dict(type='mmpetl.PETLDistributedDataParallel')
# No dist_cfg: the launching tool picks nccl or gloo by the devices it finds.
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
)
randomness = dict(seed=42)
log_level = 'INFO'
log_processor = dict(by_epoch=True)
load_from = None
resume = False
