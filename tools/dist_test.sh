#!/usr/bin/env bash
# Usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [flags of tools/test.py]
# Several nodes: NNODES=2 NODE_RANK=0 MASTER_ADDR=... PORT=... on each node.
# Without a GPU the processes talk through gloo.
set -euo pipefail
CONFIG=$1
CHECKPOINT=$2
PROCESSES=$3
shift 3
PYTHON=${PYTHON:-python}

# Each process gets its share of the cores, where the user has not decided.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(getconf _NPROCESSORS_ONLN) + PROCESSES - 1) / PROCESSES ))}

exec "$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
