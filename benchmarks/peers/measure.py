"""What every peer in Python is put through: a warm-up, a bulk of tasks, then a few at a steady pace.

A publisher module gives `publish(text)`, which returns a handle, and `receive(handle)`, which blocks until that task's result
is there and returns it: the text. Publishing has threads of its own, so that a slow answer never delays the next task: a
latency counts from the instant at which the task was due, not from when it was sent.

Events go to standard output, one JSON object a line; `turn.py` reads them. `bullmq_publisher.mjs` speaks the same.
"""

import json
import math
import os
import queue
import sys
import threading
import time

# A result that is not there after this long will not come.
RESULT_TIMEOUT_S = 60.0
# After the last handle.
DONE = object()


class Failure(Exception):
    """A peer that lost a task, or answered it with something else."""


def configuration():
    """What `turn.py` wants of this process. It comes by the environment: addresses carry passwords."""
    return json.loads(os.environ["PEERS_TURN"])


def emit(event, **values):
    print(json.dumps({"event": event, **values}), flush=True)


class Texts:
    """The tasks' inputs, each another text of the same size as JSON."""

    def __init__(self, size_bytes):
        self.length = size_bytes - 2

    def __getitem__(self, number):
        return str(number).rjust(self.length, "x")

    def check(self, number, value):
        if value != self[number]:
            raise Failure(f"task {number} was answered with {str(value)[:80]!r}")


def percentile(ordered, share):
    """The smallest value that at least this share of all are not above."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def published(publish, texts, due_times, publishers):
    """Publishes one task at each instant, in threads of its own; yields (number, instant, handle) as they are published.

    One thread that waits for the broker's confirm of each task is idle most of the time: several share the tasks then, as
    the threads of a web server would.
    """
    handles = queue.Queue()
    turns = enumerate(due_times)
    turn = threading.Lock()

    def run():
        try:
            while True:
                with turn:
                    number, due = next(turns, (None, None))
                if number is None:
                    break
                ahead = due - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)
                handles.put((number, due, publish(texts[number])))
            handles.put(DONE)
        except BaseException as error:  # Whatever it was, the thread that waits for handles has to hear of it.
            handles.put(error)

    threads = [threading.Thread(target=run, name=f"publisher-{index}", daemon=True) for index in range(publishers)]
    for thread in threads:
        thread.start()
    running = publishers
    while running:
        item = handles.get()
        if item is DONE:
            running -= 1
        elif isinstance(item, BaseException):
            raise item
        else:
            yield item


def bulk(publish, receive, texts, tasks, publishers, overlap):
    """Seconds from the first publish to the last result."""
    begin = time.perf_counter()
    handles = published(publish, texts, [begin] * tasks, publishers)
    if not overlap:
        handles = list(handles)
    count = 0
    for number, _, handle in handles:
        texts.check(number, receive(handle))
        count += 1
    seconds = time.perf_counter() - begin
    if count != tasks:
        raise Failure(f"{tasks} tasks, {count} results")
    return seconds


def paced(publish, receive, texts, per_second, seconds, publishers):
    """Milliseconds from when each task was due to when its result was in the publisher's hands, in order of size."""
    first = time.perf_counter() + 0.05
    due_times = [first + index / per_second for index in range(max(1, int(per_second * seconds)))]
    waits_ms = []
    for number, due, handle in published(publish, texts, due_times, publishers):
        texts.check(number, receive(handle))
        waits_ms.append((time.perf_counter() - due) * 1000.0)
    return sorted(waits_ms)


def run(publish, receive):
    """All of one turn, as `PEERS_TURN` wants it."""
    want = configuration()
    texts = Texts(want["size_bytes"])
    publishers, overlap = want["settings"]["publishers"], want["settings"]["overlap"]
    try:
        bulk(publish, receive, texts, want["warm_up_tasks"], publishers, overlap)
        emit("begin")
        seconds = bulk(publish, receive, texts, want["tasks"], publishers, overlap)
        emit("bulk", tasks=want["tasks"], seconds=seconds)
        if want["latency_s"] > 0:
            waits_ms = paced(publish, receive, texts, want["rate"], want["latency_s"], publishers)
            p50_ms, p99_ms = percentile(waits_ms, 0.50), percentile(waits_ms, 0.99)
            emit("latency", tasks=len(waits_ms), p50_ms=p50_ms, p99_ms=p99_ms, max_ms=waits_ms[-1])
        emit("end")
    except Exception as error:
        emit("failed", reason=f"{type(error).__name__}: {error}")
        sys.exit(1)
