#!/usr/bin/env python3
"""How long does an urgent task wait behind 20,000 others of 2 ms on one slot?

Measures Taskyard (a scheduler and a worker that it starts, on real RabbitMQ and Redis) and, beside it on the same broker,
RabbitMQ's own priority queue with a consumer of prefetch 1. Prints the waits in service times, and how busy the slot was.

    cargo build --release && pip install pika
    python3 tests/benchmarks/overtaking.py --taskyard target/release/taskyard
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from datetime import datetime

import pika

SERVICE_MS = 2.0

parser = argparse.ArgumentParser()
parser.add_argument("--taskyard", default="target/release/taskyard")
parser.add_argument("--amqp", default="amqp://guest:guest@127.0.0.1:5672/")
parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
parser.add_argument("--backlog", type=int, default=20000)
parser.add_argument("--urgent", type=int, default=25)
arguments = parser.parse_args()


def connect():
    connection = pika.BlockingConnection(pika.URLParameters(arguments.amqp))
    return connection, connection.channel()


def instant(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def report(name, waits_ms, busy):
    waits_ms.sort()
    median = statistics.median(waits_ms)
    tenth = waits_ms[int(len(waits_ms) * 0.9)]
    print(f"{name:<28} {median / SERVICE_MS:>8.2f} {tenth / SERVICE_MS:>8.2f} {100 * busy:>8.1f} %", flush=True)
    return median


def taskyard():
    namespace = "bench" + uuid.uuid4().hex[:8]
    folder = tempfile.mkdtemp()
    models = os.path.join(folder, "models.toml")
    with open(models, "w", encoding="utf-8") as file:
        file.write(f'[models.pause]\nhandler = "simulated"\n[models.pause.simulated]\nservice_ms = {SERVICE_MS}\n')
    environment = dict(
        os.environ,
        TASKYARD__BROKER__URL=arguments.amqp,
        TASKYARD__BROKER__NAMESPACE=namespace,
        TASKYARD__STORE__URL=arguments.redis,
        TASKYARD__ADMIN__LISTEN="127.0.0.1:0",
        TASKYARD__LOG__LEVEL="warn",
    )
    roles = [subprocess.Popen([arguments.taskyard, "--config", models, role], env=environment) for role in ("worker", "scheduler")]
    connection, channel = connect()
    try:
        replies = channel.queue_declare(queue="", exclusive=True).method.queue
        exchange = f"{namespace}.tasks"
        while True:
            try:
                channel.exchange_declare(exchange, passive=True)
                break
            except pika.exceptions.ChannelClosedByBroker:
                channel = connection.channel()
                time.sleep(0.1)
        channel.queue_declare(f"{namespace}.intake", passive=True)

        def publish(priority, reply):
            task_id = str(uuid.uuid4())
            channel.basic_publish(
                exchange, "pause",
                json.dumps({"model": "pause", "input": None, "priority": priority}),
                pika.BasicProperties(message_id=task_id, delivery_mode=2, reply_to=replies if reply else None),
            )
            return task_id

        time.sleep(1)
        for _ in range(arguments.backlog):
            publish(0, True)
        ran_ms, first, last, waits, published = [], None, None, [], {}
        seen, due = 0, time.time() + 0.5
        while seen < arguments.backlog + arguments.urgent:
            if len(published) < arguments.urgent and time.time() >= due:
                published[publish(9, True)] = time.time()
                due = time.time() + 0.3
            connection.process_data_events(time_limit=0)
            method, _, body = channel.basic_get(replies, auto_ack=True)
            if method is None:
                time.sleep(0.0005)
                continue
            seen += 1
            result = json.loads(body)
            started, finished = instant(result["timings"]["started"]), instant(result["timings"]["finished"])
            ran_ms.append(result["timings"]["ran_ms"])
            first, last = min(first or started, started), max(last or finished, finished)
            if result["id"] in published:
                waits.append((started - published[result["id"]]) * 1e3)
        return waits, sum(ran_ms) / 1e3 / (last - first)
    finally:
        for role in roles:
            role.terminate()
        for role in roles:
            role.wait()
        channel = connection.channel()
        for queue in ("intake", "retry", "completions", "dead", "ready.pause"):
            channel.queue_delete(f"{namespace}.{queue}")
        connection.close()


def priority_queue():
    queue = "bench-priority-" + uuid.uuid4().hex[:8]
    connection, channel = connect()
    channel.queue_declare(queue, durable=True, arguments={"x-max-priority": 9})
    waits, ran, ends = [], [0.0], [None, None]
    done = threading.Event()
    total = arguments.backlog + arguments.urgent

    def consume():
        own, reader = connect()
        reader.basic_qos(prefetch_count=1)
        count = 0
        for method, properties, _ in reader.consume(queue):
            started = time.time()
            if properties.priority == 9:
                waits.append((started - float(properties.headers["published"])) * 1e3)
            time.sleep(SERVICE_MS / 1e3)
            ended = time.time()
            ran[0] += ended - started
            ends[0], ends[1] = ends[0] or started, ended
            reader.basic_ack(method.delivery_tag)
            count += 1
            if count == total:
                break
        own.close()
        done.set()

    for _ in range(arguments.backlog):
        channel.basic_publish("", queue, b"null", pika.BasicProperties(priority=0, delivery_mode=2))
    threading.Thread(target=consume, daemon=True).start()
    time.sleep(0.5)
    for _ in range(arguments.urgent):
        properties = pika.BasicProperties(priority=9, delivery_mode=2, headers={"published": repr(time.time())})
        channel.basic_publish("", queue, b"null", properties)
        time.sleep(0.3)
    while not done.wait(1):
        connection.process_data_events(time_limit=0)
    channel.queue_delete(queue)
    connection.close()
    return waits, ran[0] / (ends[1] - ends[0])


print(f"{arguments.urgent} urgent tasks behind {arguments.backlog} of {SERVICE_MS} ms, one slot; waits in service times")
print(f"{'':<28} {'median':>8} {'p90':>8} {'slot busy':>10}")
ours = report("Taskyard", *taskyard())
theirs = report("RabbitMQ priority queue", *priority_queue())
print(f"{'ratio of the medians':<28} {ours / theirs:>8.2f}")
