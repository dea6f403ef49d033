#!/usr/bin/env bash
# Checks what `docker compose --profile scale up envoy` started, one line a check:
#
#     bash deploy/check-scale.sh
#
# It works with a task of its own, which it deletes at the end, and kills one replica under load.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/expect.sh
export COMPOSE_PROFILES=scale

TASK=deploy-check
CALLERS=4
SECONDS_TO_START=120

main() {
  check_containers
  check_upload
  check_kill
  echo "all well"
}

check_containers() {
  local name each
  for name in bucket envoy; do
    expect "$name's health" healthy "$(health "$(docker compose ps --quiet $name)")"
  done
  for each in $(replicas); do
    until_healthy "$each"
    expect "root in $(name_of "$each")" no "$(docker exec "$each" sh -c '[ "$(id -u)" = 0 ] && echo yes || echo no')"
    expect "a writable root file system there" no "$(docker exec "$each" sh -c 'touch /app/x 2>/dev/null && echo yes || echo no')"
    expect "GET /fresh there" 200 "$(in_replica "$each" fresh)"
  done
  expect "GET /envoy/ready" 200 "$(status "$envoy/envoy/ready")"
  expect "GET /metrics through Envoy" 403 "$(status "${as_admin[@]}" "$envoy/metrics")"
}

# What one replica was given, all have.
check_upload() {
  local version each
  in_replica "$first" adapter "$TASK" >"$scratch/adapter"
  expect "POST /adapters through Envoy without the admin key" 401 "$(status -F "file=@$scratch/adapter" "$envoy/adapters")"
  expect "POST /adapters through Envoy" 201 "$(status "${as_admin[@]}" -F "file=@$scratch/adapter" "$envoy/adapters")"
  version=$TASK@$(sha256sum "$scratch/adapter" | head -c 12)
  for each in $(replicas); do
    expect "the version that $(name_of "$each") answers by" "$version" "$(in_replica "$each" version "$TASK")"
  done
}

check_kill() {
  local each said=0
  coproc LOAD { docker compose run --rm --no-deps -T --name $TASK --entrypoint python replica -c "$callers" "$CALLERS"; }
  # bash forgets the variables of a coprocess when it ends
  exec {answers}<&"${LOAD[0]}" {over}>&"${LOAD[1]}"
  exec {LOAD[1]}>&-
  until_answered 500
  for each in $(replicas); do
    [ "$(in_replica "$each" answered)" -gt 0 ] || fail "$(name_of "$each") has answered no prediction of Envoy's"
    pass "predictions of Envoy's that $(name_of "$each") has answered: $(in_replica "$each" answered)"
  done
  docker kill "$first" >/dev/null
  pass "killed $(name_of "$first") after $said predictions"
  until_answered $((said + 500))
  docker start "$first" >/dev/null # Docker takes a kill for a stop, after which it starts nothing by itself
  until_healthy "$first"
  pass "$(name_of "$first") is healthy again"
  until [ "$(in_replica "$first" answered)" -gt 0 ]; do until_answered $((said + 100)); done
  pass "predictions of Envoy's that it has answered since: $(in_replica "$first" answered)"
  exec {over}>&-
  while read -r said <&"$answers"; do each=$said; done
  [[ $each == "0 of "* ]] || fail "predictions under load that were not answered with 200: $each"
  pass "predictions under load that were not answered with 200: $each"
}

# The callers tell how many predictions were answered.
until_answered() { # how many
  while [ "$said" -lt "$1" ]; do
    read -r said <&"$answers" || fail "the load ended"
    [[ $said =~ ^[0-9]+$ ]] || fail "the load: $said"
  done
}

until_healthy() { # container
  local begun=$SECONDS
  until [ "$(health "$1")" = healthy ]; do
    [ $((SECONDS - begun)) -lt $SECONDS_TO_START ] || fail "$(name_of "$1") is not healthy after $SECONDS_TO_START s"
    sleep 0.5
  done
}

health() { docker inspect --format '{{.State.Health.Status}}' "$1"; }
name_of() { docker inspect --format '{{slice .Name 1}}' "$1"; }
replicas() { docker compose ps --quiet replica; }

# Asks the replica itself: its port is published nowhere.
in_replica() { # container, what, task
  docker exec -i "$1" python -c "$asking"'
import re

what, task = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
replica = HTTPConnection("127.0.0.1", 8000, timeout=90)
if what == "fresh":
    print(ask(replica, "GET", "/fresh")[0].status)
elif what == "version":
    answer, body = ask(replica, "POST", f"/predict?task={task}", json.dumps({"inputs": "a man is eating"}))
    print(answer.headers.get("X-Adapter-Version", body.decode()))
elif what == "answered":
    metrics = ask(replica, "GET", "/metrics")[1].decode()
    counts = re.findall(r"^adamix_requests_total\{outcome=.ok.,.*\} (.*)$", metrics, re.M)
    print(round(sum(map(float, counts))))
else:  # an adapter file for the task: a served one under another name
    from adapters.file import parse, serialize  # torch takes seconds to import
    first = next(each for each in json.loads(ask(replica, "GET", "/adapters")[1]) if not each["text_pair"])
    model = parse(ask(replica, "GET", "/adapters/{task}/versions/{version}/file".format(**first))[1])
    spec = model.spec.model_copy(update={"task": task, "training": {"made_by": "deploy/check-scale.sh"}})
    sys.stdout.buffer.write(serialize(spec, model.tensors))
' "${@:2}"
}

asking='
import json, os, sys
from http.client import HTTPConnection, HTTPException

def ask(server, method, path, body=None):
    key = os.environ.get("ADAMIX_ADMIN_KEY" if method == "GET" else "ADAMIX_API_KEY") or ""
    server.request(method, path, body, {"authorization": f"Bearer {key.strip()}"})
    answer = server.getresponse()
    return answer, answer.read()
'

# Runs beside the replicas, until its input ends: predictions for all tasks. It says how many were
# answered, and at the end how many were not answered with 200.
callers=$asking'
import itertools, threading
from collections import Counter

over, counting, statuses = threading.Event(), threading.Lock(), Counter()

def call(number):
    server = HTTPConnection("envoy", 8000, timeout=90)
    for i in itertools.count(number):
        if over.is_set():
            return
        try:
            status = ask(server, "POST", *calls[i % len(calls)])[0].status
        except (OSError, HTTPException) as error:
            status = type(error).__name__
            server.close()
        with counting:
            statuses[status] += 1
            if not statuses.total() % 50:
                print(statuses.total(), flush=True)

text, pair = {"text": "a man is eating"}, {"text": "a man is eating", "text_pair": "somebody eats"}
calls = [
    ("/predict?task=" + each["task"], json.dumps({"inputs": pair if each["text_pair"] else text}))
    for each in json.loads(ask(HTTPConnection("envoy", 8000, timeout=90), "GET", "/adapters")[1])
]
threads = [threading.Thread(target=call, args=(number,)) for number in range(int(sys.argv[1]))]
for each in threads:
    each.start()
sys.stdin.read()
over.set()
for each in threads:
    each.join()
total = statuses.total()
print(total - statuses.pop(200, 0), "of", total, *statuses.items())
'

clean_up() {
  docker rm --force $TASK >/dev/null 2>&1 || true
  status "${as_admin[@]}" --request DELETE "$envoy/adapters/$TASK" >/dev/null 2>&1 || true
  rm -rf "$scratch"
}

scratch=$(mktemp -d)
trap clean_up EXIT
envoy=http://$(docker compose port envoy 8000)
read -r first < <(replicas)
as_admin=(-H "Authorization: Bearer $(docker exec "$first" sh -c 'echo "$ADAMIX_ADMIN_KEY"' | tr -d '[:space:]')")
main
