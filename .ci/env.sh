#!/usr/bin/env bash
# Make the Python environment $1 for this checkout, or renew it; quick when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 python=${PYTHON:-python3} stamp=$1/.cxr_influence

say() { printf '%s\n' "$*" >&2; }
command -v "$python" >/dev/null || { say "There is no $python here. Name a Python of 3.10 or newer: make PYTHON=..."; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    say "Python 3.10 or newer is needed and $python is $("$python" --version 2>&1). Name another: make PYTHON=python3.12"; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    say "$python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

# PyTorch's usual build brings gigabytes of CUDA, of no use to a machine without an NVIDIA GPU. Another one is
# in an index of its own. Where that is not reached, or has no build for this machine, the usual one follows.
cpu_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
reached() { "$python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=5)' "$1" 2>/dev/null; }
has_gpu() { [ "${TORCH:-}" = gpu ] || [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; }
small_torch() {
    [ "$(uname -s)" = Linux ] && ! has_gpu && reached "$cpu_index" || return 1
    "$venv/bin/python" -c 'import torch' 2>/dev/null && return # what is there stays
    say "There is no NVIDIA GPU here: PyTorch for the processor alone is taken, 4 GB less. make env TORCH=gpu takes the usual one."
    "$venv/bin/python" -m pip install --disable-pip-version-check --index-url "$cpu_index" torch torchvision
}

# The stamp is written last, so an environment without one was interrupted and is made anew.
want="$("$python" -VV | tr '\n' ' ') $(cat settings.ini setup.py | git hash-object --stdin)"
have=$(head -n 1 "$stamp" 2>/dev/null || true) place=$(tail -n 1 "$stamp" 2>/dev/null || true)
"$venv/bin/python" -c '' 2>/dev/null || have=
[ "$have $place" != "$want $PWD" ] || exit 0
rm -f "$stamp"
if [ "$have" = "$want" ]; then  # all there, but pointing at another checkout
    "$venv/bin/python" -m pip install -q --no-deps --no-build-isolation -e .
else
    [ -n "$have" ] && [ "${have% *}" = "${want% *}" ] || "$python" -m venv --clear "$venv"
    say "Making the environment $venv: 2 to 6 GB, some minutes the first time."
    small_torch || say "PyTorch's usual build is taken; on Linux 4 of its 6 GB are for NVIDIA's GPUs."
    "$venv/bin/python" -m pip install --disable-pip-version-check setuptools wheel -e '.[dev]'
fi
printf '%s\n%s\n' "$want" "$PWD" > "$stamp"
