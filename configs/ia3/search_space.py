# Rates from the 3e-3 of the paper, which tunes language models, down to the 5e-4 and up
# to the 5e-2 that SSF, scales and shifts too, uses on VTAB-1k (dongzelian/SSF: 1e-3 to
# 5e-2). Decay is not searched: scales are vectors, which get none.
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=5e-2, log=True),
}
