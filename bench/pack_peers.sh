#!/usr/bin/env bash
# Fill .peers with what a GPU's machine lacks and cannot fetch (Python 3.12, x86-64), in folders that
# travel one by one: a call takes 64 MiB, and the repository itself has 10 of them.
#
#   bash bench/pack_peers.sh      # .peers/1 goes with part A, .peers/2 with part B
#
# .peers/1: what the trainer, TRL, Liger and QuACK want (13 MiB), and half of the CuTe compiler that
# QuACK's and Liger's newest heads are made by (nvidia-cutlass-dsl, 62 MiB when packed anew).
# .peers/2: the other half. Left out: SmolLM2 (89 MiB); bitsandbytes (41 MiB), which a GPU can do without.
set -euo pipefail
cd "$(dirname "$0")/.."
PIP=(python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12
    --implementation cp -c constraints.txt)
for glibc in 2_34 2_28 2_27 2_24 2_17; do PIP+=(--platform "manylinux_${glibc}_x86_64"); done
PIP+=(--platform manylinux2014_x86_64)
rm -rf .peers
mkdir -p .peers/1 .peers/2
"${PIP[@]}" -d .peers/1 pydantic pydantic_core annotated-types typing-inspection \
    trl datasets dill multiprocess liger-kernel cut-cross-entropy quack-kernels apache-tvm-ffi torch-c-dlpack-ext
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PIP[@]}" -d "$work" nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-base nvidia-cutlass-dsl-libs-core \
    nvidia-cutlass-dsl-libs-cu13
for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/site"; done
rm -rf "$work"/site/nvidia_cutlass_dsl/dsl_packages/iket "$work"/site/nvidia_cutlass_dsl/cu13/lib/stubs
find "$work/site" -name '*.so' -exec strip --strip-unneeded {} +
tar -C "$work/site" -cf - . | xz -9 -T0 >"$work/cutlass.tar.xz"
split -n 2 -d "$work/cutlass.tar.xz" "$work/cutlass.tar.xz."
mv "$work/cutlass.tar.xz.00" .peers/1/
mv "$work/cutlass.tar.xz.01" .peers/2/
du -sh .peers/*
