#!/usr/bin/env bash
# Usage: dist_run.sh GPUS SCRIPT [its arguments]
# One process a GPU, or GPUS processes with gloo where there is none.
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT.
# MAX_RESTARTS: how often all processes are started again after one has died;
# on several machines, JOB_ID then names the job, with the same words on each.
set -eu
NNODES=${NNODES:-1}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
PORT=${PORT:-29500}
if [ "${MAX_RESTARTS:-0}" = 0 ]; then
    meeting=(
        --node_rank="${NODE_RANK:-0}"
        --master_addr="$MASTER_ADDR"
        --master_port="$PORT"
    )
else
    if [ "$NNODES" = 1 ]; then
        JOB_ID=${JOB_ID:-$(date +%s)-$$}
    fi
    # The only one of torchrun's that can meet again, and not through a store
    # that remembers the addresses of the dead (pytorch/pytorch#135712).
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meeting=(
        --max_restarts="$MAX_RESTARTS"
        --rdzv_backend=c10d
        --rdzv_endpoint="$MASTER_ADDR:$PORT"
        --rdzv_id="${JOB_ID:?name the job for MAX_RESTARTS}"
    )
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$NNODES" \
    "${meeting[@]}" \
    --nproc_per_node="$1" \
    "$(dirname "$0")/$2" "${@:3}" --launcher pytorch
