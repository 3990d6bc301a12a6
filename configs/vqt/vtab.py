# andytu28/VQT, run_demo_exp.sh: 1, 10 or 20 queries per block, 128 images, Adam, no
# stochastic depth, cosine to 0. Rate and decay are chosen from a grid there and printed
# nowhere; the recipe's stand. Its base is a ViT-B/16 of ImageNet-1k on a shared drive;
# ours is the ImageNet-21k release, which it takes too. The head is as wide as the class
# token and all queries of twelve blocks.
recipes = 'vtab'
method = dict(type='VQT', drop_rate=0.1)
values = dict(optimizer='Adam', drop_path=0, min_lr=0)
timm = None  # VPT's loop: the warm-up meets the cosine
tables = dict(
    vqt="""
task                  batch_size  num_tokens
cifar100              128         1
caltech101            128         1
dtd                   128         1
oxford_flowers102     128         1
oxford_iiit_pet       128         1
svhn                  128         20
sun397                128         1
patch_camelyon        128         1
eurosat               128         1
resisc45              128         1
diabetic_retinopathy  128         1
clevr_count           128         1
clevr_dist            128         10
dmlab                 128         20
kitti                 128         20
dsprites_loc          128         20
dsprites_ori          128         1
smallnorb_azi         128         20
smallnorb_ele         128         10
"""
)
