#!/usr/bin/env python3
"""Publishes tasks to Taskyard over AMQP and prints their results. Needs nothing but pika.

    pip install pika
    python3 publish.py --model sentiment '{"text": "Shares fall after the warning"}'
    python3 publish.py --model pause --count 1000 '{"service_ms": 1}'

It declares its own reply queue and nothing else.
"""

import argparse
import json
import sys
import uuid

import pika

parser = argparse.ArgumentParser(description="Publish tasks and wait for their results.")
parser.add_argument("input", help="the task's input, as JSON")
parser.add_argument("--model", required=True)
parser.add_argument("--priority", type=int, default=4)
parser.add_argument("--count", type=int, default=1, help="publish it so many times; {n} in the input is the number")
parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/")
parser.add_argument("--namespace", default="taskyard")
parser.add_argument("--timeout", type=float, default=60.0, help="seconds without a result after which it gives up")
arguments = parser.parse_args()

connection = pika.BlockingConnection(pika.URLParameters(arguments.url))
channel = connection.channel()
replies = channel.queue_declare(queue="", exclusive=True).method.queue
# With confirms, basic_publish raises when the broker did not take the task.
channel.confirm_delivery()

waiting = {}
for number in range(arguments.count):
    task_id = str(uuid.uuid4())
    body = {"model": arguments.model, "input": json.loads(arguments.input.replace("{n}", str(number)))}
    waiting[task_id] = body["input"]
    channel.basic_publish(
        exchange=f"{arguments.namespace}.tasks",
        routing_key=arguments.model,
        mandatory=True,
        body=json.dumps(body),
        properties=pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            message_id=task_id,
            correlation_id=task_id,
            reply_to=replies,
            priority=arguments.priority,
        ),
    )

failed = 0
for method, properties, body in channel.consume(replies, auto_ack=True, inactivity_timeout=arguments.timeout):
    if body is None:
        break
    result = json.loads(body)
    # A result may be told twice: the id says which.
    if waiting.pop(properties.correlation_id, None) is None:
        continue
    failed += result["state"] != "succeeded"
    print(json.dumps(result))
    if not waiting:
        break
channel.cancel()
connection.close()
if waiting:
    print(f"{len(waiting)} results did not come", file=sys.stderr)
sys.exit(1 if waiting or failed else 0)
