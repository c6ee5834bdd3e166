"""Celery's side of a no-op task: what the worker imports, and the publisher too.

Settings and the pages that recommend them are in README.md.
"""

from celery import Celery
from kombu import Exchange, Queue

from measure import RESULT_TIMEOUT_S, configuration

WANT = configuration()
NAME = WANT["name"]

app = Celery("peers", broker=WANT["amqp"], backend=WANT["redis"])
app.conf.update(
    # Safety: an ack only after the task ran, a lost child gives the task back, messages on disk, results kept.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_default_delivery_mode="persistent",
    task_ignore_result=False,
    broker_transport_options={"confirm_publish": True} if WANT["confirms"] else {},
    broker_connection_retry_on_startup=True,
    # "Based on the number of active threads using broker connections", says the same page.
    broker_pool_limit=max(10, WANT["settings"]["publishers"]),
    # Throughput: what "Optimizing" says of short tasks.
    worker_prefetch_multiplier=WANT["settings"]["prefetch_multiplier"],
    # Nothing beside the work: no events, no remote control, no log line a task.
    worker_send_task_events=False,
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
    # Names of this run's own, so that all of it can be found and removed.
    task_default_queue=NAME,
    task_queues=[Queue(NAME, Exchange(NAME, type="direct", durable=True), routing_key=NAME, durable=True)],
    event_exchange=f"{NAME}.events",
    control_exchange=f"{NAME}.control",
    result_backend_transport_options={"global_keyprefix": f"{NAME}:"},
    result_expires=3600,
)


@app.task(name="noop", ignore_result=False)
def noop(text):
    return text


def publish(text):
    return noop.delay(text)


def receive(result):
    return result.get(timeout=RESULT_TIMEOUT_S)
