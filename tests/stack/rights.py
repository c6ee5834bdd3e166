"""What each broker user of deploy/rabbitmq/taskyard.conf may do, and what it may not, tried against the running stack.

    python3 tests/stack/rights.py PORT [PASSWORD]      (needs pika; passwords default to `development`)

Every line is one attempt on a connection of its own; exits 1 when one went the other way than it should.
"""

import sys
import uuid

import pika

PORT = int(sys.argv[1])
PASSWORD = sys.argv[2] if len(sys.argv) > 2 else "development"


def open_channel(user):
    where = pika.ConnectionParameters("127.0.0.1", PORT, credentials=pika.PlainCredentials(user, PASSWORD))
    channel = pika.BlockingConnection(where).channel()
    channel.confirm_delivery()
    return channel


def consume(channel, queue):
    channel.basic_consume(queue, lambda *_: None)


def publish(exchange, key, **properties):
    return lambda channel: channel.basic_publish(exchange, key, b"{}", pika.BasicProperties(**properties))


def own_reply_queue(channel):
    queue = channel.queue_declare("", exclusive=True).method.queue
    consume(channel, queue)


def declare_and_delete(queue):
    def attempt(channel):
        channel.queue_declare(queue, durable=True)
        channel.queue_delete(queue)

    return attempt


def listen(exchange):
    """Binds a reply queue of one's own to it."""

    def attempt(channel):
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, exchange, "#")

    return attempt


NEW = f"taskyard.new-{uuid.uuid4()}"
READY = "taskyard.ready.intents"
COPIES = {"CC": ["taskyard.dead"], "BCC": ["taskyard.dead"]}
YES, NO = True, False
ATTEMPTS = [
    ("publisher", "publishes a task", YES, publish("taskyard.tasks", "any")),
    ("publisher", "declares and reads a reply queue of its own", YES, own_reply_queue),
    ("publisher", "publishes into a queue by the default exchange", NO, publish("", "taskyard.dead")),
    # It names further keys of the same exchange, all of which lead to the intake.
    ("publisher", "publishes a task with CC and BCC", YES, publish("taskyard.tasks", "any", headers=COPIES)),
    ("publisher", "publishes into a queue by its CC alone", NO, publish("", "", headers=COPIES)),
    # RabbitMQ knows no right for it: who knows a queue's name may ask how many messages wait there.
    ("publisher", "asks how much waits in the intake", YES, lambda channel: channel.queue_declare("taskyard.intake", passive=True)),
    ("publisher", "listens to the yard's events", NO, listen("taskyard.events")),
    ("publisher", "listens to other publishers", NO, listen("taskyard.tasks")),
    ("publisher", "publishes an event", NO, publish("taskyard.events", "task.succeeded.x")),
    ("publisher", "reads the intake", NO, lambda channel: consume(channel, "taskyard.intake")),
    ("publisher", "takes one dead letter", NO, lambda channel: channel.basic_get("taskyard.dead")),
    ("publisher", "declares a queue of the yard", NO, lambda channel: channel.queue_declare(NEW, durable=True)),
    ("publisher", "deletes the intake", NO, lambda channel: channel.queue_delete("taskyard.intake")),
    ("publisher", "purges the dead letters", NO, lambda channel: channel.queue_purge("taskyard.dead")),
    ("publisher", "deletes the tasks exchange", NO, lambda channel: channel.exchange_delete("taskyard.tasks")),
    ("gateway", "publishes a task", YES, publish("taskyard.tasks", "any")),
    ("gateway", "reads the intake", NO, lambda channel: consume(channel, "taskyard.intake")),
    ("gateway", "looks at one dead letter", YES, lambda channel: channel.basic_get("taskyard.dead")),
    ("gateway", "asks a scheduler", YES, publish("", "taskyard.control.0")),
    ("gateway", "reads the webhooks", YES, lambda channel: consume(channel, "taskyard.webhooks")),
    ("gateway", "reads what is to be tried again", NO, lambda channel: consume(channel, "taskyard.retry")),
    ("gateway", "reads what is ready", NO, lambda channel: consume(channel, READY)),
    ("gateway", "deletes the dead letters", NO, lambda channel: channel.queue_delete("taskyard.dead")),
    ("scheduler", "reads the intake", YES, lambda channel: consume(channel, "taskyard.intake")),
    ("scheduler", "declares and deletes a queue of the yard", YES, declare_and_delete(NEW)),
    ("scheduler", "declares a queue of somebody else", NO, declare_and_delete("other")),
    ("scheduler", "reads a queue of somebody else", NO, lambda channel: consume(channel, "other")),
    ("scheduler", "publishes to an exchange of somebody else", NO, publish("amq.topic", "any")),
    ("scheduler", "declares an exchange of somebody else", NO, lambda channel: channel.exchange_declare("other")),
    ("worker", "publishes an event", YES, publish("taskyard.events", "task.succeeded.x")),
    ("gateway", "declares another queue of the yard", NO, lambda channel: channel.queue_declare(NEW, durable=True)),
    ("worker", "reads what is ready", YES, lambda channel: consume(channel, READY)),
    ("worker", "takes one dead letter", NO, lambda channel: channel.basic_get("taskyard.dead")),
    ("worker", "reads the webhooks", NO, lambda channel: consume(channel, "taskyard.webhooks")),
    ("worker", "reads what is to be tried again", NO, lambda channel: consume(channel, "taskyard.retry")),
    ("worker", "reads the intake", NO, lambda channel: consume(channel, "taskyard.intake")),
    ("worker", "publishes a task", NO, publish("taskyard.tasks", "any")),
    ("worker", "deletes the intake", NO, lambda channel: channel.queue_delete("taskyard.intake")),
    ("worker", "purges the dead letters", NO, lambda channel: channel.queue_purge("taskyard.dead")),
]


def attempt(user, what):
    channel = open_channel(user)
    try:
        what(channel)
        return True
    except pika.exceptions.ChannelClosedByBroker as closed:
        if closed.reply_code != 403:
            raise
        return False
    finally:
        channel.connection.close()


def guest_is_refused():
    try:
        open_channel_as_guest = pika.PlainCredentials("guest", "guest")
        pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", PORT, credentials=open_channel_as_guest)).close()
        return False
    except pika.exceptions.ProbableAuthenticationError:
        return True


wrong = 0
for user, words, expected, what in ATTEMPTS:
    allowed = attempt(user, what)
    wrong += allowed != expected
    print(f"{user:10} {words:50} {'allowed' if allowed else 'refused':8} {'' if allowed == expected else 'WRONG'}")
refused = guest_is_refused()
wrong += not refused
print(f"{'guest':10} {'connects':50} {'refused' if refused else 'allowed':8} {'' if refused else 'WRONG'}")
print(f"{len(ATTEMPTS) + 1 - wrong} passed, {wrong} failed")
sys.exit(1 if wrong else 0)
