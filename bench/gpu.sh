#!/usr/bin/env bash
# What needs a CUDA GPU, part by part, most valuable first; results go to $OUT.
#
#   bash bench/gpu.sh                    # every part, 9 minutes in all
#   PARTS="head step" MINUTES=5 bash bench/gpu.sh
#
# Each part has a share of the time; after each all that there is lies in $OUT, so that a cut-off loses one part.
# What the GPU's machine lacks and cannot fetch travels in .peers (ignored by git), where its Python is 3.12:
#   python -m pip install --no-deps --target .peers --python-version 3.12 --only-binary=:all: -c constraints.txt \
#       pydantic pydantic_core annotated-types typing-inspection typing_extensions \
#       trl liger-kernel cut-cross-entropy quack-kernels datasets dill multiprocess xxhash bitsandbytes
# The CuTe kernels of QuACK and Liger also want nvidia-cutlass-dsl, whose folder dsl_packages goes on PYTHONPATH.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT="${OUT:-bench/results}"
MINUTES="${MINUTES:-9}"
PARTS="${PARTS:-head forward tune step check run scaling profile}"
export PYTHONPATH="kernels:.:.peers:.peers/nvidia_cutlass_dsl/dsl_packages${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 TQDM_DISABLE=1
python3 -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"' || exit 1
# without it the CuTe compiler may take another architecture for granted
CUTE_DSL_ARCH="$(python3 -c 'import torch; print("sm_%d%da" % torch.cuda.get_device_capability())')"
export CUTE_DSL_ARCH
mkdir -p "$OUT"
status=0

part() { # name, seconds at most, command…
    local name=$1 limit=$2 left=$((60 * MINUTES - SECONDS))
    shift 2
    [[ " $PARTS " == *" $name "* ]] || return 0
    ((left > 10)) || { echo "$name: no time left" && status=1 && return 0; }
    timeout $((limit < left ? limit : left)) "$@" >"$OUT/$name.log" 2>&1
    local said=$?
    echo "$name: status $said, ${SECONDS} s so far"
    ((said == 0)) || status=1
    if [ "$(realpath "$OUT")" != "$(realpath bench/results)" ]; then # flat: few folders come back
        tar -czf "$OUT/results.tar.gz" bench/results
    fi
}

bench() { # name, seconds at most, arguments of a bench with a record and a plot
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" python3 -m bench "$@" --device cuda --json --plot
}

bench head 180 head --tokens 8192 --repeat 10
bench forward 60 head --tokens 8192 --forward-only --repeat 10 --peers torch trl liger quack
bench tune 60 tune --repeat 10
bench step 180 step --repeat 3 --peers lean leanest lora trl
# named as they go, for a cut-off; the kernels' static checks need no GPU
part check 120 python3 -m pytest tests/kernels tests/generation tests/optim tests/model/test_attention.py \
    --ignore tests/kernels/test_static.py -m "not slow" -n 12 -vv -p no:cacheprovider --timeout 90
part run 180 bash -c 'python3 -m comal_fast lm-game make configs/lm-game/inpo.yaml model.device=cuda &&
    python3 -m comal_fast run configs/lm-game/inpo.yaml model.device=cuda algorithm.iterations=2'
bench scaling 120 scaling
bench profile 60 profile step --model llama3.2-1b
exit "$status"
