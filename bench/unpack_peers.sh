#!/usr/bin/env bash
# Install what bench/pack_peers.sh packed into a folder: the wheels at hand, and the CuTe compiler where
# both of its halves are.
#
#   bash bench/unpack_peers.sh FOLDER
set -uo pipefail
cd "$(dirname "$0")/.."
folder=$1
if compgen -G ".peers/*/*.whl" >/dev/null && [ ! -e "$folder/.wheels" ]; then
    "${PYTHON:-python3}" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$folder" .peers/*/*.whl && touch "$folder/.wheels"
fi
halves=(.peers/*/cutlass.tar.xz.*)
if [ "${#halves[@]}" -eq 2 ] && [ ! -e "$folder/.cutlass" ]; then
    mkdir -p "$folder"
    cat "${halves[@]}" | tar -C "$folder" -xJf - && touch "$folder/.cutlass"
fi
exit 0
