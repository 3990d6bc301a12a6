# FGVC by V-PETL Bench, commit c188fad of
# synbol/Parameter-Efficient-Transfer-Learning-Benchmark: scripts (rate, decay)
# and configs (batch, epochs), the same for all its methods: each reads `model_lora`'s.
recipes = 'fgvc'
values = dict(
    batch_size=128,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path=0.1,
    weight_decay=0.05,
    label_smoothing=0,
    decay_all=True,  # one group there, decay on everything
)
tables = dict(
    vpetl="""
task            lr
cub_200_2011    0.001
nabirds         0.0002
oxford_flowers  0.001
stanford_dogs   0.00025
stanford_cars   0.002
"""
)
