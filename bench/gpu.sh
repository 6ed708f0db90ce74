#!/usr/bin/env bash
# Everything that needs a CUDA GPU, in one call: correctness first, then the figures, as JSON in $OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:-bench/results}"
mkdir -p "$OUT"
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 -m pytest tests/kernels -m "not slow" 2>&1 | tee "$OUT/tests.log"
for pass in "" --forward-only; do
    python3 -m bench head $pass --tokens 2048 8192 --json "$OUT/head$pass.json"
    python3 -m bench head $pass --tokens 32768 --no-plain --json "$OUT/head$pass-32768.json"
done
