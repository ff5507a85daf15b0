#!/usr/bin/env bash
# Usage: dist_run.sh GPUS SCRIPT [its arguments]
# One process a GPU, or GPUS processes with gloo where there is none.
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -eu
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$1" \
    "$(dirname "$0")/$2" "${@:3}" --launcher pytorch
