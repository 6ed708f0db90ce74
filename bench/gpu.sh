#!/usr/bin/env bash
# What needs a CUDA GPU, in three calls of 9, 9 and 6 minutes; docs/gpu-day.md says what each figure decides.
#
#   PART=A OUT=out bash bench/gpu.sh     # ceilings, levers, profile, 8B sampling, the kernels' tests
#   PART=B OUT=out bash bench/gpu.sh     # the head beside its peers, the step beside TRL and in less memory
#   PART=C OUT=out bash bench/gpu.sh     # a whole run, killed and resumed; counters; scaling
#
# Records go to $OUT row by row, so that whatever is cut off leaves its rows; `python -m bench adopt
# $OUT/*.json` puts them where documents find them. What the GPU's machine lacks lies in .peers, which
# bench/pack_peers.sh fills. SIZE=small takes seconds and measures nothing: for rehearsals.
set -uo pipefail
cd "$(dirname "$0")/.."
PART="${PART:-A}"
OUT="${OUT:-out}"
SIZE="${SIZE:-full}"
declare -A MINUTES_OF=([A]=9 [B]=9 [C]=6)
[ -n "${MINUTES_OF[$PART]:-}" ] || { echo "PART=$PART: expected A, B or C" >&2; exit 2; }
MINUTES="${MINUTES:-${MINUTES_OF[$PART]}}"
PYTHON="${PYTHON:-python3}"
mkdir -p "$OUT"
OUT="$(realpath "$OUT")"
SITE="${SITE:-$PWD/.peers-site}"
bash bench/unpack_peers.sh "$SITE"
export PYTHONPATH="kernels:.:$SITE:$SITE/nvidia_cutlass_dsl/dsl_packages${PYTHONPATH:+:$PYTHONPATH}"
# the workspace of deterministic products, which cuBLAS reads once in a process
export PYTHONUNBUFFERED=1 TQDM_DISABLE=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"' || exit 1
# without it the CuTe compiler may take another architecture for granted
CUTE_DSL_ARCH="$("$PYTHON" -c 'import torch; print("sm_%d%da" % torch.cuda.get_device_capability())')"
export CUTE_DSL_ARCH
LOG="$OUT/$PART.log"
: >"$LOG"
status=0

timed() { # name, seconds at most, command…
    local name=$1 limit=$2 left=$((60 * MINUTES - SECONDS))
    shift 2
    [ "$SIZE" = small ] && limit=$((4 * limit)) # an interpreter runs the kernels
    if ((left < 10)); then
        echo "$name: no time left"
        status=1
        return
    fi
    echo "== $name" >>"$LOG"
    timeout --kill-after 10 $((limit < left ? limit : left)) "$@" >>"$LOG" 2>&1
    local said=$?
    echo "$name: status $said, ${SECONDS} s so far"
    ((said == 0)) || status=1
}

bench() { # name of the record, seconds at most, arguments of a bench
    local name=$1 limit=$2
    shift 2
    timed "$name" "$limit" "$PYTHON" -m bench "$@" --device cuda --json "$OUT/$name.json"
}

if [ "$SIZE" = small ]; then
    step=(--model tiny --pairs 2 --response 8 --repeat 1)
    head=(--tokens 128 --hidden 64 --vocab 512 --repeat 1)
    shapes=(--model tiny --step-tokens 32 --repeat 1 --sustain 0.1)
    sample=(--model tiny --tokens 2 --responses 2 --repeat 1)
    profile=(--model tiny --pairs 2 --response 8)
    grow=(--tokens 128 256 --hidden 64 --vocab 512 --repeat 1)
    tests=(tests/kernels/test_chunks.py)
    few=1 many=2
else
    step=(--repeat 5)
    head=(--tokens 8192 --repeat 10)
    shapes=()
    sample=(--model llama3-8b --tokens 128 --repeat 2)
    profile=()
    grow=()
    tests=(tests/device tests/kernels tests/optim tests/generation/test_decode.py
        tests/model/test_activations.py --ignore tests/kernels/test_static.py -m "not slow" -n 12)
    few=32 many=64
fi

part_A() {
    bench ceilings 60 ceilings "${shapes[@]}"
    bench levers 180 levers "${step[@]}"
    bench profile-step 70 profile step "${profile[@]}"
    bench generate 60 generate "${sample[@]}" --count "$few"
    bench generate-many 60 generate "${sample[@]}" --count "$many"
    # verbose, so that a cut-off shows how far it came; the kernels' static checks need no GPU
    timed tests 150 "$PYTHON" -m pytest "${tests[@]}" -v -p no:cacheprovider --timeout 90
}

part_B() {
    bench head 100 head "${head[@]}" --peers torch trl liger quack
    bench head-forward 50 head "${head[@]}" --forward-only --peers torch trl liger quack
    bench step 400 step "${step[@]}" --peers authors stock recomputed lean leanest lora trl
}

part_C() {
    timed run 150 bash bench/gpu_run.sh "$OUT" "$SIZE"
    bench tune 40 tune "${head[@]}"
    timed counters 60 ncu --clock-control none --kernel-name regex:soften_kernel --launch-skip 2 \
        --launch-count 2 --set full "$PYTHON" -m bench head "${head[@]}" --device cuda --peers none
    bench scaling 90 scaling "${grow[@]}"
}

"part_$PART"
exit "$status"
