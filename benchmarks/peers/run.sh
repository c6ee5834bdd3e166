#!/usr/bin/env bash
# Measures Celery, Dramatiq and BullMQ, and Taskyard in turns with them, on one RabbitMQ and one Redis. See README.md.
#
#   benchmarks/peers/run.sh --taskyard target/release/taskyard
#
# The peers are installed at fixed versions from PyPI and npm into PEERS_SCRATCH (target/peers), once.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=${PEERS_SCRATCH:-$here/../../target/peers}

for argument in "$@"; do
  case $argument in -h | --help) exec python3 "$here/compare.py" --help ;; esac
done

for program in python3 node npm sha256sum; do
  command -v "$program" > /dev/null || { echo "run.sh needs $program" >&2; exit 2; }
done
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "run.sh needs Python 3.10 or later" >&2; exit 2; }

mkdir -p "$scratch"
scratch=$(cd "$scratch" && pwd)
want=$(cat "$here/requirements.txt" "$here/package-lock.json" | sha256sum)
if [ "$(cat "$scratch/installed" 2> /dev/null)" != "$want" ]; then
  echo "Installing the peers in $scratch" >&2
  rm -rf "$scratch/python" "$scratch/node" "$scratch/installed"
  python3 -m venv "$scratch/python"
  "$scratch/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here/requirements.txt" >&2
  mkdir "$scratch/node"
  cp "$here/package.json" "$here/package-lock.json" "$scratch/node/"
  (cd "$scratch/node" && npm ci --silent --ignore-scripts --no-audit --no-fund >&2)
  printf '%s\n' "$want" > "$scratch/installed"
fi

export PEERS_SCRATCH=$scratch PYTHONDONTWRITEBYTECODE=1
exec "$scratch/python/bin/python" "$here/compare.py" "$@"
