"""A program that knows nothing but AMQP: publishes tasks to a running stack, awaits the results, checks every answer.

    python3 tests/stack/publish.py PORT COUNT [--password P] [--half-way 'COMMAND']        (needs pika)

The tasks and what is right for each: known.py. COMMAND is run once half of the results are in.

Exits 1 unless every task came to one result, and the right one. A worker that dies between telling a result and
acking its task leaves the task to another, which tells the recorded result once more: the same message twice is counted
and is no fault, two results of one task that differ in anything are.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import time
import uuid

import pika

import known

SILENCE_S = 60
BATCH_TASKS = 50
# Of the urgent ones; far enough for a machine that does other things too.
DEADLINE_MS = 120_000

arguments = argparse.ArgumentParser()
arguments.add_argument("port", type=int)
arguments.add_argument("count", type=int)
arguments.add_argument("--password", default="development")
arguments.add_argument("--half-way")
arguments = arguments.parse_args()


where = pika.ConnectionParameters(
    "127.0.0.1", arguments.port, credentials=pika.PlainCredentials("publisher", arguments.password)
)
connection = pika.BlockingConnection(where)
channel = connection.channel()
channel.confirm_delivery()
replies = channel.queue_declare("", exclusive=True).method.queue

expected = {}
started = time.monotonic()
# In arrays, so that all of them wait before many are done: a message, its confirm and the next takes longer than a task.
for first in range(0, arguments.count, BATCH_TASKS):
    batch = []
    for number in range(first, min(first + BATCH_TASKS, arguments.count)):
        task, answer = known.task(number)
        task["id"] = str(uuid.uuid4())
        if task["priority"] == 9:
            task["deadline_ms"] = DEADLINE_MS
        expected[task["id"]] = (answer, task["priority"])
        batch.append(task)
    channel.basic_publish(
        "taskyard.tasks",
        "batch",
        json.dumps(batch).encode(),
        pika.BasicProperties(
            content_type="application/json", delivery_mode=2, reply_to=replies, correlation_id="of this program"
        ),
        mandatory=True,
    )
published_s = time.monotonic() - started
print(f"published {arguments.count} tasks, each array of them confirmed, in {published_s:.1f} s")

answers, again, wrong, differing = {}, 0, [], []
waits, workers, attempts = collections.defaultdict(list), collections.Counter(), collections.Counter()
command = arguments.half_way
took_s = 0.001


def take(properties, body):
    """Whether it is the first result of its task."""
    global again
    # A number that was read and written again may differ in its last digit.
    result = json.loads(body, parse_float=lambda digits: round(float(digits), 6))
    if result["id"] in answers:
        again += 1
        if answers[result["id"]] != result:
            differing.append(result)
        return None
    answers[result["id"]] = result
    answer, _ = expected[result["id"]]
    as_asked = properties.correlation_id == "of this program"
    if not as_asked or result["state"] != "succeeded" or result["output"]["label"] != answer:
        wrong.append(result)
    return result


for method, properties, body in channel.consume(replies, auto_ack=True, inactivity_timeout=SILENCE_S):
    if method is None:
        print(f"no result for {SILENCE_S} s")
        break
    result = take(properties, body)
    if result is None:
        continue
    workers[result["worker"]] += 1
    attempts[result["attempt"]] += 1
    waits[expected[result["id"]][1]].append(result["timings"]["waited_ms"] or 0)
    if command and len(answers) * 2 >= arguments.count:
        print(f"{len(answers)} results are in: {command}")
        subprocess.run(command, shell=True, check=True)
        command = None
    took_s = time.monotonic() - started
    if len(answers) == arguments.count:
        # Whatever comes now is a repetition.
        for method, properties, body in channel.consume(replies, auto_ack=True, inactivity_timeout=2):
            if method is None:
                break
            take(properties, body)
        break

lost = len(expected) - len(answers)
print(f"answered {len(answers)} in {took_s:.1f} s: {len(answers) / took_s:.0f} a second; by attempt {dict(attempts)}")
for priority in sorted(waits, reverse=True):
    print(f"priority {priority}: {len(waits[priority])} tasks, median wait {statistics.median(waits[priority]):.0f} ms")
for worker, tasks in sorted(workers.items(), key=lambda item: str(item[0])):
    print(f"worker {worker}: {tasks}")
for result in wrong[:5]:
    print(f"not as expected: {json.dumps(result)[:400]}")
for result in differing[:5]:
    first = answers[result["id"]]
    fields = {name: (first[name], result[name]) for name in result if first[name] != result[name]}
    print(f"two results of {result['id']}: {json.dumps(fields)}")
print(f"lost {lost}, wrong {len(wrong)}, told again {again}, of which another result {len(differing)}")
sys.exit(1 if lost or wrong or differing else 0)
