#!/usr/bin/env bash
# Everything that needs a CUDA GPU, in one command of nine minutes; results go to $OUT.
#
# Peers that the GPU's machine lacks, and cannot fetch, travel in .peers (ignored by git; 33 MB). Where
# its Python is 3.12:
#   python -m pip install --no-deps --target .peers --python-version 3.12 --only-binary=:all: \
#       -c constraints.txt trl liger-kernel cut-cross-entropy quack-kernels datasets dill multiprocess xxhash
set -euo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:-bench/results}"
MINUTES="${MINUTES:-9}"
export PYTHONPATH="kernels:.:.peers${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TQDM_DISABLE=1
python3 -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"'
mkdir -p "$OUT"
status=0
if [ "${TESTS:-1}" = 1 ]; then # kernels, optimiser, attention first, at most a third of the time
    timeout $((MINUTES * 20)) python3 -m pytest tests/kernels tests/optim tests/model/test_attention.py -m "not slow" -x 2>&1 | tee "$OUT/tests.log" || status=$?
fi
left=$((MINUTES - (SECONDS + 59) / 60))
python3 -m bench all --device cuda --minutes "$((left > 1 ? left : 1))" 2>&1 | tee "$OUT/bench.log" || status=$?
if [ "$(realpath "$OUT")" != "$(realpath bench/results)" ]; then # flat: few folders come back
    tar -czf "$OUT/results.tar.gz" bench/results
fi
exit "$status"
