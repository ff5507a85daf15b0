#!/usr/bin/env bash
# Usage: dist_train.sh CONFIG GPUS [train.py arguments], see dist_run.sh
set -eu
exec "$(dirname "$0")/dist_run.sh" "$2" train.py "$1" "${@:3}"
