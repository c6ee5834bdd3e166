"""A program that knows nothing but AMQP: publishes tasks to a running stack, awaits the results, checks every answer.

    python3 tests/stack/publish.py PORT COUNT [--password P] [--half-way 'COMMAND']        (needs pika)

The tasks are the texts and files of demo/, over and over, with mixed priorities; right is the label that the reference
implementation gave for each. COMMAND is run once half of the results are in. Exits 1 unless every task was answered
exactly once, and rightly.
"""

import argparse
import base64
import collections
import json
import pathlib
import statistics
import subprocess
import sys
import time
import uuid

import pika

DEMO = pathlib.Path(__file__).resolve().parents[2] / "demo"
SILENCE_S = 60

arguments = argparse.ArgumentParser()
arguments.add_argument("port", type=int)
arguments.add_argument("count", type=int)
arguments.add_argument("--password", default="development")
arguments.add_argument("--half-way")
arguments = arguments.parse_args()


def items():
    for name, model in [("intents", "intents"), ("sentiment", "sentiment"), ("files", "file-type")]:
        for line in (DEMO / f"{name}.jsonl").read_text().splitlines():
            line = json.loads(line)
            if "file" in line:
                given = {"base64": base64.b64encode((DEMO / line["file"]).read_bytes()).decode()}
            else:
                given = {"text": line["text"]}
            yield model, given, line["label"]


known = list(items())
where = pika.ConnectionParameters(
    "127.0.0.1", arguments.port, credentials=pika.PlainCredentials("publisher", arguments.password)
)
connection = pika.BlockingConnection(where)
channel = connection.channel()
channel.confirm_delivery()
replies = channel.queue_declare("", exclusive=True).method.queue

expected = {}
started = time.monotonic()
for number in range(arguments.count):
    # A stride that is prime to the number of items mixes the models.
    model, given, label = known[number * 37 % len(known)]
    task = str(uuid.uuid4())
    priority = (1, 1, 1, 4, 4, 9)[number % 6]
    expected[task] = (label, priority)
    channel.basic_publish(
        "taskyard.tasks",
        model,
        json.dumps({"model": model, "input": given, "priority": priority}).encode(),
        pika.BasicProperties(
            content_type="application/json", delivery_mode=2, message_id=task, reply_to=replies, correlation_id=task
        ),
        mandatory=True,
    )
published_s = time.monotonic() - started
print(f"published {arguments.count} tasks, each confirmed, in {published_s:.1f} s")

answers = collections.Counter()
waits, workers, attempts = collections.defaultdict(list), collections.Counter(), collections.Counter()
wrong = []
command = arguments.half_way
for method, properties, body in channel.consume(replies, auto_ack=True, inactivity_timeout=SILENCE_S):
    if method is None:
        print(f"no result for {SILENCE_S} s")
        break
    result = json.loads(body)
    task = result["id"]
    answers[task] += 1
    label, priority = expected[task]
    if properties.correlation_id != task or result["state"] != "succeeded" or result["output"]["label"] != label:
        wrong.append(result)
    workers[result["worker"]] += 1
    attempts[result["attempt"]] += 1
    waits[priority].append(result["timings"]["waited_ms"] or 0)
    if command and len(answers) * 2 >= arguments.count:
        print(f"{len(answers)} results are in: {command}")
        subprocess.run(command, shell=True, check=True)
        command = None
    if len(answers) == arguments.count:
        # Whatever comes now is a repetition.
        for method, _, body in channel.consume(replies, auto_ack=True, inactivity_timeout=2):
            if method is None:
                break
            answers[json.loads(body)["id"]] += 1
        break
took_s = time.monotonic() - started

lost = len(expected) - len(answers)
repeated = sum(answers.values()) - len(answers)
print(f"answered {len(answers)} in {took_s:.1f} s: {len(answers) / took_s:.0f} a second; by attempt {dict(attempts)}")
for priority in sorted(waits, reverse=True):
    print(f"priority {priority}: {len(waits[priority])} tasks, median wait {statistics.median(waits[priority]):.0f} ms")
for worker, tasks in sorted(workers.items(), key=lambda item: str(item[0])):
    print(f"worker {worker}: {tasks}")
for result in wrong[:5]:
    print(f"not as expected: {json.dumps(result)[:400]}")
print(f"lost {lost}, repeated {repeated}, wrong {len(wrong)}")
sys.exit(1 if lost or repeated or wrong else 0)
