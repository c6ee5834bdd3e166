#!/usr/bin/env bash
# Starts the stack of docker-compose.yml for real and tries it from outside: confinement, rights, tasks over HTTP and
# AMQP with three workers of which one is killed half way, artifacts over a restart, metrics and every query of the
# dashboard, and tasks while broker, store and scheduler are killed. Takes everything down at the end, volumes too.
# README.md beside this says what it needs.
#
#   tests/stack/run.sh                     COMPOSE='docker compose' or docker-compose; PYTHON with pika
set -euo pipefail
cd "$(dirname "$0")/../.."

compose=${COMPOSE:-docker compose}
python=${PYTHON:-python3}
tasks=${TASKS:-1000}
export COMPOSE_PROJECT_NAME=taskyard-stack-test
# Beside a yard that is up.
export AMQP_PORT=${AMQP_PORT:-35672} GATEWAY_PORT=${GATEWAY_PORT:-38080} PROMETHEUS_PORT=${PROMETHEUS_PORT:-39091}
services="rabbitmq redis gateway scheduler worker"
api=http://127.0.0.1:$GATEWAY_PORT
artifacts=/var/lib/taskyard/artifacts

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
containers() { docker ps -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$1"; }
# Waits until COMMAND succeeds: until SECONDS COMMAND…
until_ok() {
    local left=$1
    shift
    until "$@" > /dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "not in time: $*"
        sleep 1
    done
}
healthy() {
    local ids
    ids=$(containers "$1")
    [ -n "$ids" ] && [ "$(echo "$ids" | wc -l)" = "${2:-1}" ] || return 1
    for id in $ids; do
        [ "$(docker inspect -f '{{.State.Health.Status}}' "$id")" = healthy ] || return 1
    done
}
all_healthy() { for service in $services; do until_ok 180 healthy "$service"; done; }
address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }
# The scheduler that schedules; another stands by.
active() {
    for id in $(containers scheduler); do
        curl -sS -m 5 "http://$(address "$id"):9090/metrics" | grep '^taskyard_scheduler_active 1' > /dev/null && echo "$id" && return
    done
    return 1
}
finish() {
    local code=$?
    if [ $code != 0 ]; then
        $compose ps || true
        $compose logs --no-color --tail=40 gateway scheduler worker || true
    fi
    $compose --profile observability down -v --remove-orphans > /dev/null 2>&1 || true
    exit $code
}
trap finish EXIT

say "both readers of the file agree that it can be read"
$compose config > /dev/null
$compose --profile observability config > /dev/null

say "up, on new volumes"
[ -z "$(docker volume ls -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")" ] \
    || fail "volumes of an earlier run are there: COMPOSE_PROJECT_NAME=$COMPOSE_PROJECT_NAME $compose down -v"
started=$(date +%s)
$compose up -d $services
all_healthy
echo "all healthy after $(($(date +%s) - started)) s"

say "confinement"
for service in $services; do
    id=$(containers "$service")
    uid=$(docker exec "$id" sh -c 'id -u')
    [ "$uid" != 0 ] || fail "$service runs as root"
    docker exec "$id" sh -c 'echo x > /written' 2> /dev/null && fail "$service can write to its root"
    docker exec -u 0 "$id" sh -c 'echo x > /written' 2> /dev/null && fail "root in $service can write to its root"
    capabilities=$(docker exec "$id" sh -c 'grep -E "^(CapEff|CapBnd|NoNewPrivs)" /proc/1/status' | tr -s '\t\n' '  ')
    [[ $capabilities == *"CapBnd: 0000000000000000"*"NoNewPrivs: 1"* ]] || fail "$service: $capabilities"
    bound=$(docker inspect -f '{{range $port, $at := .NetworkSettings.Ports}}{{range $at}}{{.HostIp}}:{{.HostPort}} {{end}}{{end}}' "$id")
    for at in $bound; do [[ $at == 127.0.0.1:* ]] || fail "$service listens on $at"; done
    echo "$service: uid $uid, root file system read-only, no capabilities, host ports: ${bound:-none}"
done
# A role's own user writes to /tmp and, at gateway and workers, to the volume of artifacts.
for service in gateway scheduler worker; do
    id=$(containers "$service")
    # The kernel's and /tmp.
    apart="-path /proc -o -path /sys -o -path /dev -o -path /tmp"
    [ "$service" = scheduler ] || apart="$apart -o -path $artifacts"
    found=$(docker exec "$id" sh -c "find / \\( $apart \\) -prune -o -type d -writable -print 2> /dev/null || true")
    [ -z "$found" ] || fail "$service can write to $found"
    [ "$service" = scheduler ] && continue
    docker exec "$id" sh -c "[ \$(stat -c %u $artifacts) = 65532 ] && echo x > $artifacts/tried && rm $artifacts/tried" \
        || fail "$service cannot write to the volume of artifacts"
    echo "$service writes to $artifacts, and nowhere else"
done
docker history --no-trunc taskyard:local | grep -iE 'passw|secret|token' && fail "the image's history speaks of secrets"
docker run --rm --network none --read-only --entrypoint sh taskyard:local -c '[ "$(id -u)" = 65532 ]'

say "rights at the broker"
"$python" tests/stack/rights.py "$AMQP_PORT"

say "a task over HTTP"
answer=$(curl -sS -X POST "$api/v1/tasks" -H 'content-type: application/json' -H 'prefer: wait=30' \
    -d '{"model": "intents", "input": {"text": "Where can I find a virtual card?"}, "priority": 9}')
echo "$answer"
[[ $answer == *getting_virtual_card* ]] || fail "not the known answer"

say "artifacts, over a restart of everything"
"$python" tests/stack/artifacts.py "$api" --restart "$compose restart"
all_healthy

say "$tasks tasks over AMQP, three workers, one killed half way"
$compose up -d --no-recreate --scale worker=3 $services
until_ok 120 healthy worker 3
$compose --profile observability up -d --no-recreate --no-deps prometheus
until_ok 60 healthy prometheus
victim=$(containers worker | head -1)
"$python" tests/stack/publish.py "$AMQP_PORT" "$tasks" --half-way "docker kill $victim"

say "metrics"
"$python" tests/stack/metrics.py "http://127.0.0.1:$PROMETHEUS_PORT" deploy/grafana/dashboards "$(containers worker | wc -l)"
for service in gateway scheduler worker; do
    id=$(containers "$service" | head -1)
    port=9090
    [ "$service" = gateway ] && port=8080
    curl -sS "http://$(address "$id"):$port/metrics" | docker exec -i "$(containers prometheus)" promtool check metrics \
        || fail "$service: promtool finds faults"
    echo "$service: promtool check metrics finds nothing"
done

broker=$(containers rabbitmq)
store=$(containers redis)
say "$tasks tasks over HTTP, the broker killed half way"
"$python" tests/stack/killed.py "$api" "$tasks" --half-way "docker kill $broker && sleep 3 && docker start $broker"

say "$tasks tasks over HTTP, the store killed half way"
"$python" tests/stack/killed.py "$api" "$tasks" --half-way "docker kill $store && sleep 3 && docker start $store"

say "$tasks tasks over AMQP, the store killed half way"
"$python" tests/stack/publish.py "$AMQP_PORT" "$tasks" --half-way "docker kill $store && sleep 3 && docker start $store"

say "$tasks tasks over AMQP, two schedulers, the active one killed half way"
$compose up -d --no-recreate --scale worker=3 --scale scheduler=2 $services
until_ok 120 healthy worker 3
until_ok 120 healthy scheduler 2
until_ok 60 active
leader=$(active)
"$python" tests/stack/publish.py "$AMQP_PORT" "$tasks" --half-way "docker kill $leader"
until_ok 60 active
[ "$(active)" != "$leader" ] || fail "the scheduler that was killed is the active one"

say "a yard that is stopped ends in good order"
$compose stop > /dev/null 2>&1
for service in gateway scheduler worker; do
    for id in $(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter "label=com.docker.compose.service=$service"); do
        code=$(docker inspect -f '{{.State.ExitCode}}' "$id")
        echo "$service ended with $code"
        [ "$code" = 0 ] || [ "$id" = "$leader" ] || fail "$service ended with $code"
    done
done
say "passed"
