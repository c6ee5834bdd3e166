"""One turn of one peer: its workers are started, its publisher runs the tasks, and all of it is ended and removed."""

import json
import os
import selectors
import subprocess
import time
from dataclasses import asdict, dataclass, field

from contestants import HERE
from interrupt import interruptible
from processes import cpu_of_named_s, cpu_s, machine_busy_s, start, stop

# A turn that has said nothing for this long is given up. That is longer than the longest bulk; a publisher that waits in
# vain for a result gives up much sooner by itself.
SILENCE_TIMEOUT_S = 600


# How long something may still come to be in the broker that a killed worker had asked for.
KILLED_PATIENCE_S = 3.0


class TurnFailed(Exception):
    """A peer did not deliver. The text says what it said."""


@dataclass
class Measured:
    """What a turn came to. Absent figures are None."""

    tasks: int = 0
    seconds: float = 0.0
    tasks_per_s: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    # Processor seconds by role; None where it cannot be seen.
    cpu_s_per_1000: dict = field(default_factory=dict)
    # Cores of this machine that were at work during the bulk, whoever's work it was.
    busy_cores: float | None = None

    def as_json(self):
        return asdict(self)


def lines(process, workers):
    """The lines that a program writes, each within a time after the one before, while all workers run."""
    stream = process.stdout
    os.set_blocking(stream.fileno(), False)
    buffer = b""
    heard = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(1.0):
                for worker in workers:
                    if worker.poll() is not None:
                        raise TurnFailed(f"a worker ended early, exit code {worker.returncode}")
                if time.monotonic() - heard > SILENCE_TIMEOUT_S:
                    raise TurnFailed(f"nothing was heard for {SILENCE_TIMEOUT_S} s")
                continue
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                return
            heard = time.monotonic()
            *whole, buffer = (buffer + chunk).split(b"\n")
            yield from whole


def tail(path, count=12):
    with open(path, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-count:])


def run(contestant, variant, name, want, place):
    """Runs one turn under a name that nothing else has; returns what was measured."""
    turn = {
        "name": name,
        "amqp": place.broker.url,
        "redis": place.store.url,
        "confirms": contestant.confirms,
        "size_bytes": want["size_bytes"],
        "tasks": want["tasks"],
        "warm_up_tasks": contestant.warm_up_tasks,
        "rate": want["rate"],
        "latency_s": want["latency_s"],
        "settings": {**variant.settings, **contestant.overlay},
    }
    environment = {
        **os.environ,
        **variant.environment,
        "PEERS_TURN": json.dumps(turn),
        "PEERS_NODE": os.path.join(place.scratch, "node", "package.json"),
        "PYTHONPATH": HERE,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    log_path = place.log_path(name)
    started = []
    measured = None
    try:
        with open(log_path, "wb") as log:
            for command in variant.workers:
                started.append(start(command, environment, log, stdout=log, cwd=place.folder))
            publisher = start(contestant.publisher, environment, log, stdout=subprocess.PIPE, cwd=place.folder)
            started.append(publisher)
            with interruptible():
                measured = follow(publisher, started[:-1], place.store)
    except TurnFailed as failure:
        text = f"{failure}\n{tail(log_path)}".rstrip()
        raise TurnFailed(place.scrub(text)) from None
    finally:
        for process in reversed(started):
            stop(process)
        place.broker.remove(name, 0.0 if measured else KILLED_PATIENCE_S)
        place.store.remove(name)
    os.unlink(log_path)
    return measured


def usage(publisher, workers, store):
    """What each has used so far. RabbitMQ is found by its name, so it is seen only where it runs on this machine."""
    return {
        "publisher": cpu_s([publisher.pid]),
        "workers": cpu_s([worker.pid for worker in workers]),
        "rabbitmq": cpu_of_named_s("beam.smp"),
        "redis": store.cpu_s(),
        "machine": machine_busy_s(),
        "clock": time.perf_counter(),
    }


def follow(publisher, workers, store):
    """Reads the publisher's events to the end."""
    measured = Measured()
    before = None
    ended = False
    for line in lines(publisher, workers):
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, TypeError, KeyError):
            raise TurnFailed(f"not an event: {line[:200]!r}") from None
        if kind == "failed":
            raise TurnFailed(event["reason"])
        if kind == "begin":
            before = usage(publisher, workers, store)
        elif kind == "bulk" and before:
            after = usage(publisher, workers, store)
            used = {name: None if value is None else after[name] - value for name, value in before.items()}
            measured.busy_cores = used.pop("machine") / used.pop("clock")
            measured.tasks, measured.seconds = event["tasks"], event["seconds"]
            measured.tasks_per_s = measured.tasks / measured.seconds
            per_1000 = 1000 / measured.tasks
            measured.cpu_s_per_1000 = {name: value and value * per_1000 for name, value in used.items()}
        elif kind == "latency":
            measured.p50_ms, measured.p99_ms = event["p50_ms"], event["p99_ms"]
        elif kind == "end":
            ended = True
    if not ended or not measured.tasks:
        raise TurnFailed(f"the publisher ended early, exit code {publisher.wait()}")
    return measured
