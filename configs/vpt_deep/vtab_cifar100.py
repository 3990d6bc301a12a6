_base_ = '../recipes/vtab_cifar100.py'

# 5 tokens, dropout 0.1, lr and decay: OSU-MLB/ViT_PEFT_Vision, chosen on 800/200. Its
# inputs are not normalised; ours are, as in every recipe.
model = dict(
    backbone=dict(method=dict(type='VPTDeep', num_tokens=5, drop_rate=0.1)),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=1e-3))
