#!/usr/bin/env bash
# The released mini benchmark, from nothing: data, search, runs, verification, release.
#
# Usage: tools/benchmark/mini_release.sh [OUT] [RELEASE] [ARGUMENTS OF run.py ...]
#
# The last lines say how long its runs took. The same command goes on where it was
# interrupted.
set -euo pipefail
OUT=${1:-work_dirs/bench/mini-release}
RELEASE=${2:-work_dirs/releases/mini-1.0}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python}

"$PYTHON" "$HERE/search.py" --plan mini-release --recipe mini/digits --trials 3 \
  --methods all --seeds 42 43 44 --out "$OUT" "${@:3}"
"$PYTHON" "$HERE/run.py" mini-release --out "$OUT" "${@:3}" \
  --recipes mini/ade20k mini/hmdb51 mini/hmdb51_frames mini/nyud_mt
"$PYTHON" "$HERE/verify.py" "$OUT"
"$PYTHON" "$HERE/release.py" "$OUT" --to "$RELEASE"
