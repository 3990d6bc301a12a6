#!/usr/bin/env bash
# The released mini benchmark, from nothing: data, searches, verification, release folder.
#
# Usage: tools/benchmark/mini_release.sh [OUT] [RELEASE] [ARGUMENTS OF search.py ...]
#
# About two hours of two cores. The same command goes on where it was interrupted.
set -euo pipefail
OUT=${1:-work_dirs/bench/mini-release}
RELEASE=${2:-work_dirs/releases/mini-1.0}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python}

search() {
  echo "searching $1: $2 trials of each method"
  "$PYTHON" "$HERE/search.py" --plan mini-release --recipe "$1" --trials "$2" \
    --methods all --seeds 42 43 44 --out "$OUT" "${@:3}"
}

search mini/digits 4 "${@:3}"
search mini/hmdb51 2 "${@:3}"
search mini/ade20k 2 "${@:3}"
"$PYTHON" "$HERE/verify.py" "$OUT"
"$PYTHON" "$HERE/release.py" "$OUT" --to "$RELEASE"
