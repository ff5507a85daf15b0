#!/usr/bin/env bash
# Usage: dist_test.sh CONFIG CHECKPOINT GPUS [test.py arguments], see
# dist_run.sh
set -eu
exec "$(dirname "$0")/dist_run.sh" "$3" test.py "$1" "$2" "${@:4}"
