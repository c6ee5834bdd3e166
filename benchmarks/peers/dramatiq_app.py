"""Dramatiq's side of a no-op task: what the worker imports, and the publisher too.

Settings and the pages that recommend them are in README.md.
"""

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from measure import RESULT_TIMEOUT_S, configuration

WANT = configuration()
NAME = WANT["name"]

# Messages are persistent and acked after the actor ran without being asked to.
broker = RabbitmqBroker(url=WANT["amqp"], confirm_delivery=WANT["confirms"])
results = RedisBackend(url=WANT["redis"], namespace=NAME, use_namespace_prefix_keys=True)
broker.add_middleware(Results(backend=results, store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=NAME, store_results=True)
def noop(text):
    return text


def publish(text):
    return noop.send(text)


def receive(message):
    return message.get_result(block=True, timeout=int(RESULT_TIMEOUT_S * 1000))
