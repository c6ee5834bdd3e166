"""RabbitMQ and Redis: whether they are there, what they are, a Redis of our own, and what a run leaves behind in them.

Addresses carry passwords: nothing here puts one in a text that is shown.
"""

import os
import shutil
import socket
import time
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from processes import start, stop

# What BullMQ's and Taskyard's documentation ask of Redis.
REDIS_WANTED = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
CONNECT_TIMEOUT_S = 5


class Unreachable(Exception):
    """A server that is not there, or does not let us in."""


def shown(url):
    """An address without user and password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def scrub(text, *urls):
    """A text of somebody else's without the passwords of these addresses."""
    for url in urls:
        password = urlsplit(url).password if url else None
        for secret in {password, unquote(password)} if password else ():
            text = text.replace(secret, "***")
    return text


@dataclass(frozen=True)
class Place:
    """Where turns happen."""

    broker: "Broker"
    store: "Store"
    # The installed peers, and what this run alone writes.
    scratch: str
    folder: str

    def log_path(self, name):
        path = os.path.join(self.folder, "logs", f"{name}.log")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def scrub(self, text):
        return scrub(text, self.broker.url, self.store.url)


def checked_url(url, schemes, name):
    try:
        parts = urlsplit(url)
        if parts.scheme in schemes and parts.hostname and (parts.port is None or parts.port > 0):
            return url
    except ValueError:
        pass
    raise ValueError(f"{name} wants an address such as {schemes[0]}://user:password@127.0.0.1:PORT")


class Broker:
    """RabbitMQ, by AMQP alone."""

    def __init__(self, url):
        self.url = url

    def connect(self):
        import pika

        parameters = pika.URLParameters(self.url)
        parameters.connection_attempts = 1
        parameters.socket_timeout = CONNECT_TIMEOUT_S
        parameters.stack_timeout = CONNECT_TIMEOUT_S
        parameters.blocked_connection_timeout = CONNECT_TIMEOUT_S
        try:
            return pika.BlockingConnection(parameters)
        except Exception as error:
            reason = scrub(f"{type(error).__name__} {error}".strip(), self.url)
            raise Unreachable(f"RabbitMQ at {shown(self.url)}: {reason}") from None

    def version(self):
        connection = self.connect()
        try:
            properties = connection._impl.server_properties
            return f"{properties.get('product', '?')} {properties.get('version', '?')}"
        finally:
            connection.close()

    def remove(self, name, patience_s=0.0):
        """Removes every queue and exchange that a peer made under this name; none of them need exist.

        What a worker had just asked for when it was killed may come to be after that: with patience, so long is looked
        whether anything comes back.
        """
        import pika

        deadline = time.monotonic() + patience_s
        connection = self.connect()
        try:
            # Deleting what is not there is no error in AMQP 0-9-1.
            channel = connection.channel()
            while True:
                for queue in (name, f"{name}.DQ", f"{name}.XQ"):
                    channel.queue_delete(queue)
                for exchange in (name, f"{name}.events", f"{name}.control"):
                    channel.exchange_delete(exchange)
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.25)
        except pika.exceptions.AMQPError as error:
            raise Unreachable(f"RabbitMQ at {shown(self.url)}, while removing {name}: {type(error).__name__}") from None
        finally:
            if connection.is_open:
                connection.close()


class Store:
    """Redis: the given one, or one of our own that ends with the run."""

    def __init__(self, url, process=None, folder=None):
        self.url = url
        self.process = process
        self.folder = folder

    @property
    def is_own(self):
        return self.process is not None

    def client(self):
        import redis

        return redis.Redis.from_url(
            self.url, socket_timeout=CONNECT_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S
        )

    def version(self):
        import redis

        try:
            return "Redis " + self.client().info("server")["redis_version"]
        except redis.exceptions.RedisError as error:
            reason = scrub(f"{type(error).__name__} {error}", self.url)
            raise Unreachable(f"Redis at {shown(self.url)}: {reason}") from None

    def cpu_s(self):
        """Processor seconds that it has used so far, or None where this user may not ask."""
        import redis

        try:
            info = self.client().info("cpu")
            return info["used_cpu_user"] + info["used_cpu_sys"]
        except redis.exceptions.RedisError:
            return None

    def settings(self):
        """Those of REDIS_WANTED, or nothing where this user may not ask."""
        import redis

        try:
            return {name: self.client().config_get(name).get(name) for name in REDIS_WANTED}
        except redis.exceptions.ResponseError:
            return {}

    def remove(self, name):
        """Removes every key that a peer made under this name."""
        import redis

        try:
            client = self.client()
            if self.is_own:
                client.flushall()
                return
            keys = []
            for key in client.scan_iter(match=f"*{name}*", count=1000):
                keys.append(key)
                if len(keys) == 500:
                    client.unlink(*keys)
                    keys.clear()
            if keys:
                client.unlink(*keys)
        except redis.exceptions.RedisError as error:
            raise Unreachable(f"Redis at {shown(self.url)}, while removing {name}: {type(error).__name__}") from None

    def stop(self):
        if self.process:
            stop(self.process)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_store(folder):
    """Starts a Redis as the peers' documentation asks for, reachable from this machine alone."""
    program = shutil.which("redis-server")
    if not program:
        raise Unreachable("no redis-server is installed here to start one of our own")
    os.makedirs(folder)
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "", "--daemonize", "no"]
    command += [word for name, value in REDIS_WANTED.items() for word in (f"--{name}", value)]
    with open(os.path.join(folder, "redis.log"), "wb") as log:
        process = start(command, os.environ, log, stdout=log)
    store = Store(f"redis://127.0.0.1:{port}/0", process, folder)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                store.version()
                return store
            except Unreachable:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Unreachable("the Redis of our own did not start") from None
                time.sleep(0.05)
    except BaseException:
        store.stop()
        raise
