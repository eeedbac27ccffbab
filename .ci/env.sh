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

# The stamp is written last, so an environment without one was interrupted and is made anew.
want="$("$python" -VV | tr '\n' ' ') $(cat settings.ini setup.py | git hash-object --stdin)"
have=$(head -n 1 "$stamp" 2>/dev/null || true) place=$(tail -n 1 "$stamp" 2>/dev/null || true)
"$venv/bin/python" -c '' 2>/dev/null || have=
[ "$have $place" != "$want $PWD" ] || exit 0
rm -f "$stamp"
if [ "$have" = "$want" ]; then  # all there, but pointing at another checkout
    "$venv/bin/python" -m pip install -q --no-deps --no-build-isolation -e .
else
    say "Making the environment $venv: about 6 GB, some minutes the first time."
    [ -n "$have" ] && [ "${have% *}" = "${want% *}" ] || "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check setuptools wheel -e '.[dev]'
fi
printf '%s\n%s\n' "$want" "$PWD" > "$stamp"
