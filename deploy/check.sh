#!/usr/bin/env bash
# Checks what `docker compose up` started, one line a check: bash deploy/check.sh
#
# It works with a task of its own, which it deletes at the end, and stops and starts the service once.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/expect.sh

TASK=deploy-check
SECONDS_TO_START=120
SECONDS_TO_SCRAPE=30

main() {
  check_container
  check_limits
  check_service_links
  check_routes
  check_uploads
  check_prometheus
  check_stop
  check_kept
  echo "all well"
}

check_container() {
  expect "the service's health" healthy "$(health service)"
  expect "Prometheus' health" healthy "$(health prometheus)"
  expect "root in the container" no "$(in_service sh -c '[ "$(id -u)" = 0 ] && echo yes || echo no')"
  expect "a writable root file system" no "$(in_service sh -c 'touch /app/x 2>/dev/null && echo yes || echo no')"
  expect "sentence-transformers in the image" no \
    "$(in_service python -c 'import importlib.util as i; print("yes" if i.find_spec("sentence_transformers") else "no")')"
  service_log >"$scratch/log"
  expect "lines of the log that are no JSON object" 0 "$(grep -cvE '^\{.*\}$' "$scratch/log" || true)"
}

check_limits() {
  local name limit
  for name in service prometheus; do
    limit=$(docker inspect --format '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}' "$(docker compose ps --all --quiet $name)")
    [[ $limit =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] || fail "$name's limits of memory and processes: $limit; expected two numbers"
    pass "$name's limits: $((${limit% *} >> 20)) MiB of memory, ${limit#* } processes"
  done
}

# What Kubernetes would tell a container beside a Service called adamix, without and with a port of its own.
check_service_links() {
  local said code=0
  said=$(beside_a_service timeout 60 python -m service 2>&1) || code=$?
  expect "the exit status beside a Service called adamix" 2 "$code"
  [[ $said == *"setting ADAMIX_PORT is 'tcp://10.96.12.34:80'"*enableServiceLinks* ]] ||
    fail "beside a Service called adamix: $said; expected a sentence about ADAMIX_PORT"
  pass "it says that the Service spoilt ADAMIX_PORT"
  code=0
  said=$(beside_a_service env ADAMIX_PORT=8001 ADAMIX_LOG_FORMAT=json timeout --preserve-status 60 python -c '
import http.client, os, subprocess, sys, time
service = subprocess.Popen([sys.executable, "-m", "service"])
while service.poll() is None:
    try:
        asked = http.client.HTTPConnection("127.0.0.1", 8001, timeout=5)
        asked.request("GET", "/ready")
        status = asked.getresponse().status
    except OSError:
        time.sleep(0.2)
        continue
    service.terminate()
    sys.exit(service.wait() or status != 200)
sys.exit(1)' 2>&1) || code=$?
  [ "$code" = 0 ] || fail "with ADAMIX_PORT said beside that Service: $said"
  pass "with ADAMIX_PORT said it is ready beside that Service, and stops"
}

# In a container of its own, on a store of its own: the running one's has its writer.
beside_a_service() {
  docker compose run --rm --no-deps -T --entrypoint "" \
    -e ADAMIX_STORE=/tmp/store -e ADAMIX_SERVICE_HOST=10.96.12.34 -e ADAMIX_SERVICE_PORT=80 \
    -e ADAMIX_SERVICE_PORT_HTTP=80 -e ADAMIX_PORT=tcp://10.96.12.34:80 \
    -e ADAMIX_PORT_80_TCP=tcp://10.96.12.34:80 -e ADAMIX_PORT_80_TCP_PROTO=tcp \
    -e ADAMIX_PORT_80_TCP_PORT=80 -e ADAMIX_PORT_80_TCP_ADDR=10.96.12.34 service "$@" </dev/null
}

check_routes() {
  local path
  for path in /health /ready /metrics /storage /docs; do
    expect "GET $path" 200 "$(status "${as_admin[@]}" "$service$path")"
  done
  local task version pair
  read -r task version pair < <(ask "${as_admin[@]}" "$service/adapters" | first_task) ||
    fail "GET /adapters: no task is served"
  pass "GET /adapters: $task@$version is served"
  # What is uploaded below is made of this adapter: so it fits, whatever the backbone is.
  ask "${as_admin[@]}" "$service/adapters/$task/versions/$version/file" >"$scratch/model"
  inputs='"a man is eating"'
  if [ "$pair" = True ]; then
    inputs='{"text": "a man is eating", "text_pair": "somebody eats"}'
  fi
  expect "POST /predict?task=$task" 200 "$(predict "$task" "$inputs")"
}

check_uploads() {
  expect "the admin key in the log" no "$(grep -qF "$admin_key" "$scratch/log" && echo yes || echo no)"
  make_adapter 1 >"$scratch/first"
  make_adapter 2 >"$scratch/second"
  expect "POST /adapters without the admin key" 401 "$(status -F "file=@$scratch/first" "$service/adapters")"
  expect "POST /adapters" 201 "$(upload "$scratch/first")"
  expect "POST /predict with it" 200 "$(predict "$TASK" "$inputs")"
  first=$(version)
  expect "POST /adapters, another version" 201 "$(upload "$scratch/second")"
  expect "POST /adapters, the same again" 200 "$(upload "$scratch/second")"
  expect "POST /predict with the other version" 200 "$(predict "$TASK" "$inputs")"
  second=$(version)
  [ "$first" != "$second" ] || fail "both versions are $first; expected two"
  pass "the versions are $first and $second"
}

check_prometheus() {
  local up=0 deadline=$((SECONDS + SECONDS_TO_SCRAPE))
  until up=$(query 'up{job="adamix"}') && [ "$up" = 1 ] || [ $SECONDS -ge $deadline ]; do sleep 1; done
  expect "Prometheus' up{job=\"adamix\"}" 1 "$up"
  [[ $(query adamix_backbone_bytes) =~ ^[1-9] ]] || fail "Prometheus has no adamix_backbone_bytes"
  pass "Prometheus' adamix_backbone_bytes: $(query adamix_backbone_bytes)"
  local rules
  rules=$(ask "$prometheus/api/v1/rules")
  expect "alerts that Prometheus has loaded" "$(grep -c -- '- alert:' deploy/alerts.yml)" \
    "$(grep -o '"name":"AdaMix[A-Za-z]*"' <<<"$rules" | wc -l)"
  expect "alerts that it cannot evaluate" 0 "$(grep -o '"health":"err"' <<<"$rules" | wc -l)"
}

check_stop() {
  local started
  predict "$TASK" "[$inputs$(printf ", $inputs%.0s" {1..63})]" >"$scratch/under-way" &
  sleep 0.2
  started=$SECONDS
  docker compose --progress quiet stop service
  pass "stopped after $((SECONDS - started)) s"
  wait $!
  expect "a request under way at the stop" 200 "$(<"$scratch/under-way")"
  expect "the exit status" 0 "$(docker inspect --format '{{.State.ExitCode}}' "$(docker compose ps --all --quiet service)")"
  service_log >"$scratch/log"
  expect "the log's last event" stopped "$(tail -n 1 "$scratch/log" | sed -nE 's/.*"event": ?"([^"]*)".*/\1/p')"
  docker compose --progress quiet start service
  started=$SECONDS
  until [ "$(health service)" = healthy ]; do
    [ $((SECONDS - started)) -lt $SECONDS_TO_START ] || fail "not healthy $SECONDS_TO_START s after the start"
    sleep 0.5
  done
  pass "healthy $((SECONDS - started)) s after the start"
}

check_kept() {
  expect "the admin key is the same after the restart" yes "$([ "$(read_admin_key)" = "$admin_key" ] && echo yes || echo no)"
  expect "POST /predict after the restart" 200 "$(predict "$TASK" "$inputs")"
  expect "the version after the restart" "$second" "$(version)"
  expect "rollback with the admin key" 200 \
    "$(status "${as_admin[@]}" "${as_json[@]}" --data "{\"version\": \"${first#*@}\"}" "$service/adapters/$TASK/activate")"
  expect "POST /predict after the rollback" 200 "$(predict "$TASK" "$inputs")"
  expect "the version after the rollback" "$first" "$(version)"
  expect "DELETE /adapters/$TASK" 204 "$(delete_task)"
}

health() { docker inspect --format '{{.State.Health.Status}}' "$(docker compose ps --all --quiet "$1")"; }
in_service() { docker compose exec -T service "$@"; }
# `docker compose logs` of compose 2.26 puts escape codes among the lines.
service_log() { docker logs "$(docker compose ps --all --quiet service)" 2>&1; }

upload() { status "${as_admin[@]}" -F "file=@$1" "$service/adapters"; }
delete_task() { status "${as_admin[@]}" --request DELETE "$service/adapters/$TASK"; }
predict() { # task, inputs as JSON: the status; the headers are kept for `version`
  status --dump-header "$scratch/headers" -H "Authorization: Bearer $api_key" "${as_json[@]}" \
    --data "{\"inputs\": $2}" "$service/predict?task=$1"
}
version() { tr -d '\r' <"$scratch/headers" | sed -nE 's/^[Xx]-[Aa]dapter-[Vv]ersion: //p'; }

# The list of adapters as JSON: the first one's task, version, and whether it takes pairs.
first_task() {
  in_service python -c '
import json, sys
for first in json.load(sys.stdin)[:1]:
    print(first["task"], first["version"], first["text_pair"])'
}

query() { # PromQL: the value of the first series
  [[ $(ask --get --data-urlencode "query=$1" "$prometheus/api/v1/query") =~ \"value\":\[[^,]+,\"([^\"]+)\" ]] || return 0
  echo "${BASH_REMATCH[1]}"
}

# Without the white space that the service takes off.
read_admin_key() { in_service sh -c 'echo "${ADAMIX_ADMIN_KEY:-$(cat "$ADAMIX_STORE.admin-key")}"' | tr -d '[:space:]'; }

make_adapter() { # number: an adapter file for TASK, another for each number
  in_service python -c '
import sys
from adapters.file import parse, serialize
model = parse(sys.stdin.buffer.read())
spec = model.spec.model_copy(update={"task": sys.argv[1], "training": {"made_by": "deploy/check.sh", "number": sys.argv[2]}})
sys.stdout.buffer.write(serialize(spec, model.tensors))' "$TASK" "$1" <"$scratch/model"
}

clean_up() {
  [ -z "${admin_key:-}" ] || delete_task >/dev/null 2>&1 || true
  rm -rf "$scratch"
}

scratch=$(mktemp -d)
trap clean_up EXIT
service=http://$(docker compose port service 8000)
prometheus=http://$(docker compose port prometheus 9090)
admin_key=$(read_admin_key </dev/null)
api_key=$(in_service sh -c 'echo "${ADAMIX_API_KEY:-}"' </dev/null | tr -d '[:space:]')
as_admin=(-H "Authorization: Bearer $admin_key")
as_json=(-H 'Content-Type: application/json')
main
