#!/bin/sh
# Submits one task to Taskyard over HTTP, waits up to 30 seconds, and prints its result.
#
#   ./publish.sh sentiment '{"text": "Shares fall after the warning"}'
set -eu
model=$1
input=$2
curl --silent --show-error --fail-with-body \
  --header 'Content-Type: application/json' \
  --header 'Prefer: wait=30' \
  --data "{\"model\": \"$model\", \"input\": $input}" \
  "${TASKYARD_API:-http://127.0.0.1:8080}/v1/tasks"
echo
