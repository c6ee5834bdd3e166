"""Publishes tasks over HTTP while something of the stack is killed, and looks up what came of each.

    python3 tests/stack/killed.py API COUNT --half-way 'COMMAND'

COMMAND, which kills and starts again, runs beside the publishing once half of the tasks are accepted and the first of them
have ended. What is not accepted is sent again under the same id, as a program would that goes by the reference. The tasks
and what is right for each: known.py.
Exits 1 unless every task succeeded with the right answer.
"""

import argparse
import collections
import http.client
import json
import subprocess
import sys
import time
import urllib.parse
import uuid

import known

BATCH_TASKS = 20
# How long nothing may get on, which includes starting again what was killed.
SILENCE_S = 120
ENDS = ("succeeded", "failed", "expired", "cancelled", "rejected")
UNREACHED = (OSError, http.client.HTTPException)

arguments = argparse.ArgumentParser()
arguments.add_argument("api")
arguments.add_argument("count", type=int)
arguments.add_argument("--half-way", required=True)
arguments = arguments.parse_args()
where = urllib.parse.urlsplit(arguments.api).netloc


def call(method, path, body=None):
    connection = http.client.HTTPConnection(where, timeout=60)
    try:
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def has_ended(task_id):
    status, task = call("GET", f"/v1/tasks/{task_id}?wait=30s")
    return status == 200 and task["state"] in ENDS


expected, unsent = {}, collections.deque()
for number in range(arguments.count):
    task, answer = known.task(number)
    task["id"] = str(uuid.uuid4())
    expected[task["id"]] = answer
    unsent.append(task)

command, refused, last = None, collections.Counter(), time.monotonic()
started = last
while unsent:
    batch = [unsent.popleft() for _ in range(min(BATCH_TASKS, len(unsent)))]
    try:
        status, answers = call("POST", "/v1/batches", json.dumps(batch))
        statuses = [answer["status"] for answer in answers] if isinstance(answers, list) else [status] * len(batch)
    except UNREACHED as failure:
        statuses = [type(failure).__name__] * len(batch)
    again = [task for task, status in zip(batch, statuses, strict=True) if status not in (200, 202)]
    if again:
        refused.update(status for status in statuses if status not in (200, 202))
        time.sleep(0.2)
    if len(again) < len(batch):
        last = time.monotonic()
    elif time.monotonic() - last > SILENCE_S:
        sys.exit(f"nothing was accepted for {SILENCE_S} s: {dict(refused)}")
    unsent.extendleft(reversed(again))
    if command is None and (arguments.count - len(unsent)) * 2 >= arguments.count:
        if not all([has_ended(task_id) for task_id in list(expected)[:BATCH_TASKS]]):
            sys.exit("the first tasks do not end")
        print(f"{arguments.count - len(unsent)} are accepted: {arguments.half_way}", flush=True)
        command = subprocess.Popen(arguments.half_way, shell=True)
print(f"all accepted after {time.monotonic() - started:.1f} s; refused, and sent again: {dict(refused) or 'none'}", flush=True)
if command.wait() != 0:
    sys.exit(f"the command ended with {command.returncode}")

ended, last = {}, time.monotonic()
while len(ended) < len(expected) and time.monotonic() - last < SILENCE_S:
    for task_id in [task_id for task_id in expected if task_id not in ended]:
        try:
            status, task = call("GET", f"/v1/tasks/{task_id}?wait=1s")
        except UNREACHED:
            time.sleep(0.2)
            continue
        if status == 200 and task["state"] in ENDS:
            ended[task_id], last = task, time.monotonic()
        elif time.monotonic() - last > SILENCE_S:
            break

wrong = [task for task in ended.values() if (task.get("output") or {}).get("label") != expected[task["id"]]]
states = collections.Counter(task["state"] for task in ended.values())
attempts = collections.Counter(task["attempt"] for task in ended.values())
print(f"ended {dict(states)} after {time.monotonic() - started:.1f} s; by attempt {dict(attempts)}")
for task in wrong[:5]:
    print(f"not as expected: {json.dumps(task)[:400]}")
lost = [task_id for task_id in expected if task_id not in ended]
for task_id in lost[:5]:
    print(f"lost: {call('GET', f'/v1/tasks/{task_id}')}")
print(f"lost {len(lost)}, wrong {len(wrong)}")
sys.exit(1 if lost or wrong else 0)
