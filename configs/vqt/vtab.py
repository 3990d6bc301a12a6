# andytu28/VQT, run_demo_exp.sh: one query per block, 128 images, Adam, no stochastic
# depth, cosine to 0. Rate and decay are chosen from a grid there and printed nowhere;
# the recipe's stand. Its base is a ViT-B/16 of ImageNet-1k on a shared drive; ours is
# the ImageNet-21k release, which it takes too. The head is as wide as the class tokens
# of thirteen layers.
recipes = 'vtab'
method = dict(type='VQT', num_tokens=1, drop_rate=0.1)
values = dict(optimizer='Adam', drop_path=0, min_lr=0)
timm = None  # VPT's loop: the warm-up meets the cosine
tables = dict(
    vqt="""
task      batch_size
cifar100  128
"""
)
