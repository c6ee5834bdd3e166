"""Who is measured, and with which settings.

Each peer has several variants that its documentation or its maintainers would call reasonable for short tasks. All are tried
at the start of a run and the fastest one runs in the turns, so that no peer is judged by a setting that does not suit this
machine. The pages are named in README.md.
"""

import os
import sys
from dataclasses import dataclass, field

HERE = os.path.dirname(os.path.abspath(__file__))
BINARIES = os.path.dirname(sys.executable)


@dataclass(frozen=True)
class Variant:
    """One way to set a peer up."""

    label: str
    # The command of each worker process tree.
    workers: tuple
    settings: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A row of the table."""

    key: str
    title: str
    publisher: tuple
    variants: tuple
    # Tasks of one try of a variant, and how many tasks warm a turn up.
    trial_tasks: int
    warm_up_tasks: int
    # Whether each publish waits for the broker's confirm.
    confirms: bool = True
    # Takes the variant that was found best for this other contestant.
    same_as: str = ""
    # Settings that are laid over those of the variant in the turns.
    overlay: dict = field(default_factory=dict)


def program(name):
    return os.path.join(BINARIES, name)


def module(name):
    return (sys.executable, os.path.join(HERE, name))


def celery(label, pool, prefetch_multiplier, workers=1):
    def command(index):
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING")
        return (program("celery"), "-A", "celery_app", "worker", *quiet, "-n", f"worker{index}@peers", *pool)

    settings = {"prefetch_multiplier": prefetch_multiplier, "overlap": True, "publishers": 1}
    return Variant(label, tuple(command(index) for index in range(workers)), settings)


def dramatiq(label, processes, threads, prefetch=None, overlap=True):
    sizes = ("--processes", str(processes), "--threads", str(threads))
    command = (program("dramatiq"), "dramatiq_app", "--path", HERE, *sizes)
    environment = {"dramatiq_queue_prefetch": str(prefetch)} if prefetch else {}
    return Variant(label, (command,), {"overlap": overlap, "publishers": 1}, environment)


def bullmq(label, concurrency, workers=1):
    command = ("node", os.path.join(HERE, "bullmq_worker.mjs"))
    return Variant(label, (command,) * workers, {"concurrency": concurrency, "batch": 1})


# What waits for a confirm of each task shares the waiting among threads, as a web server's handlers do.
CONFIRMED = {"publishers": 8}
PREFORK = ("-P", "prefork", "-c", "2")

CONTESTANTS = (
    Contestant(
        key="celery",
        title="Celery",
        publisher=module("celery_publisher.py"),
        variants=(
            celery("prefork 2, prefetch × 4", PREFORK, 4),
            celery("prefork 2, prefetch × 64", PREFORK, 64),
            celery("prefork 2, prefetch × 128", PREFORK, 128),
            celery("prefork 2, prefetch × 64, -O default", (*PREFORK, "-O", "default"), 64),
            celery("threads 2, prefetch × 64", ("-P", "threads", "-c", "2"), 64),
            celery("2 × solo, prefetch × 64", ("-P", "solo"), 64, workers=2),
        ),
        trial_tasks=1500,
        warm_up_tasks=200,
        overlay=CONFIRMED,
    ),
    Contestant(
        key="celery-unconfirmed",
        title="Celery, publishes not confirmed",
        publisher=module("celery_publisher.py"),
        variants=(),
        trial_tasks=1500,
        warm_up_tasks=200,
        confirms=False,
        same_as="celery",
    ),
    Contestant(
        key="dramatiq",
        title="Dramatiq",
        publisher=module("dramatiq_publisher.py"),
        variants=(
            dramatiq("2 processes × 8 threads", 2, 8),
            dramatiq("2 processes × 8 threads, results after all publishes", 2, 8, overlap=False),
            dramatiq("2 processes × 8 threads, prefetch 128", 2, 8, prefetch=128),
            dramatiq("2 processes × 2 threads, prefetch 128", 2, 2, prefetch=128),
            dramatiq("2 processes × 4 threads", 2, 4),
            dramatiq("1 process × 8 threads", 1, 8),
        ),
        trial_tasks=3000,
        warm_up_tasks=400,
        overlay=CONFIRMED,
    ),
    Contestant(
        key="dramatiq-unconfirmed",
        title="Dramatiq, publishes not confirmed",
        publisher=module("dramatiq_publisher.py"),
        variants=(),
        trial_tasks=3000,
        warm_up_tasks=400,
        confirms=False,
        same_as="dramatiq",
    ),
    Contestant(
        key="bullmq",
        title="BullMQ",
        publisher=("node", os.path.join(HERE, "bullmq_publisher.mjs")),
        variants=(
            bullmq("concurrency 10", 10),
            bullmq("concurrency 50", 50),
            bullmq("concurrency 100", 100),
            bullmq("concurrency 300", 300),
            bullmq("2 workers × concurrency 50", 50, workers=2),
        ),
        trial_tasks=10000,
        warm_up_tasks=1000,
    ),
    Contestant(
        key="bullmq-bulk",
        title="BullMQ, addBulk of 100",
        publisher=("node", os.path.join(HERE, "bullmq_publisher.mjs")),
        variants=(),
        trial_tasks=10000,
        warm_up_tasks=1000,
        same_as="bullmq",
        overlay={"batch": 100},
    ),
)
