#!/usr/bin/env bash
# Submits one task and waits for its result.
set -euo pipefail

api="${1:-http://127.0.0.1:8080}"

for attempt in $(seq 1 30); do
  if curl --silent --fail "$api/readyz" > /dev/null; then
    break
  fi
  if [ "$attempt" -eq 30 ]; then
    echo "the gateway at $api does not come up" >&2
    exit 3
  fi
  sleep 1
done

answer=$(curl --silent --fail --header 'Prefer: wait=10' --header 'Content-Type: application/json' \
  --data '{"model": "pause", "input": {"service_ms": 5}}' "$api/v1/tasks")
state=$(echo "$answer" | jq --raw-output .state)
echo "state: $state"
test "$state" = succeeded
