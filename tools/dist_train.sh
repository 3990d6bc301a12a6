#!/usr/bin/env bash
# Usage: tools/dist_train.sh CONFIG PROCESSES [flags of tools/train.py]
# Several nodes: NNODES=2 NODE_RANK=0 MASTER_ADDR=... PORT=... on each node.
# Without a GPU the processes talk through gloo.
set -euo pipefail
CONFIG=$1
PROCESSES=$2
shift 2
PYTHON=${PYTHON:-python}

# Each process gets its share of the cores, where the user has not decided.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(getconf _NPROCESSORS_ONLN) + PROCESSES - 1) / PROCESSES ))}

exec "$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"
