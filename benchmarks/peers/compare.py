"""Runs Celery, Dramatiq, BullMQ and Taskyard in turns on one RabbitMQ and one Redis, and says how they compare.

Called by run.sh, which installs what this needs. README.md says what is measured and why it is fair.
"""

import argparse
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata

import interrupt
import report
import servers
import taskyard
import turn
from contestants import CONTESTANTS
from processes import machine_busy_s

FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
SIZE_BYTES = 256
# A bulk is sized to take about this long, within bounds, unless --tasks says how many.
BULK_S = 8.0
LEAST_TASKS, MOST_TASKS = 1000, 200_000
# Above this share of its cores in use before the first turn, the machine's figures are of little worth by themselves.
QUIET_SHARE = 0.15
REDIS_HELP = """Redis for everybody. One that is not appendonly, everysec and noeviction, as BullMQ wants it, is left alone,
and a Redis of the run's own is started instead, which is also what happens without this"""


def say(text=""):
    print(text, file=sys.stderr, flush=True)


def positive(kind):
    def read(text):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError("must be above 0")
        return value

    return read


def arguments():
    keys = [contestant.key for contestant in CONTESTANTS]
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--amqp", default="amqp://guest:guest@127.0.0.1:5672/", metavar="URL", help="RabbitMQ (default: %(default)s)")
    add("--redis", metavar="URL", help=REDIS_HELP)
    add("--tasks", type=positive(int), metavar="N", help=f"tasks of each turn (default: what takes {BULK_S:.0f} s)")
    add("--turns", type=positive(int), default=5, metavar="N", help="turns of everybody (default: %(default)s)")
    add("--trials", type=positive(int), default=2, metavar="N", help="tries of each variant (default: %(default)s)")
    add("--rate", type=positive(float), default=100.0, metavar="TASKS", help="a second, for the latency (default: 100)")
    add("--latency-s", type=float, default=5.0, metavar="S", help="how long that takes; 0: not at all (default: 5)")
    add("--only", metavar="KEYS", help=f"comma-separated, of {', '.join(keys)}; empty: none")
    add("--taskyard", metavar="PATH", help="a taskyard binary that takes turns with the peers")
    add("--taskyard-arguments", default="", metavar="TEXT", help="more for taskyard bench, such as '--slots 128'")
    add("--markdown", action="store_true", help="print tables in Markdown")
    add("--json", metavar="FILE", help="also write everything that was measured to a file")
    given = parser.parse_args()
    given.chosen = [contestant for contestant in CONTESTANTS]
    if given.only is not None:
        wanted = [key.strip() for key in given.only.split(",") if key.strip()]
        if unknown := [key for key in wanted if key not in keys]:
            parser.error(f"--only does not know {', '.join(unknown)}; it knows {', '.join(keys)}")
        given.chosen = [contestant for contestant in CONTESTANTS if contestant.key in wanted]
    try:
        servers.checked_url(given.amqp, ("amqp", "amqps"), "--amqp")
        if given.redis:
            servers.checked_url(given.redis, ("redis", "rediss"), "--redis")
    except ValueError as error:
        parser.error(str(error))
    if given.latency_s < 0:
        parser.error("--latency-s must be 0 or above")
    if given.taskyard:
        given.taskyard = os.path.abspath(given.taskyard)
        if not os.access(given.taskyard, os.X_OK) or os.path.isdir(given.taskyard):
            parser.error(f"--taskyard: no program at {given.taskyard}")
    if not given.chosen and not given.taskyard:
        parser.error("--only leaves nobody to measure")
    if given.json:
        given.json = os.path.abspath(given.json)
        if not os.path.isdir(os.path.dirname(given.json)):
            parser.error(f"--json: no folder {os.path.dirname(given.json)}")
    return given


def store_for(given, folder):
    """The Redis of this run, and a sentence on it."""
    if given.redis:
        store = servers.Store(given.redis)
        version = store.version()
        settings = store.settings()
        if not settings:
            return store, f"{version} as given; its settings may not be read"
        if settings == servers.REDIS_WANTED:
            return store, f"{version} as given, appendonly everysec"
        differing = ", ".join(
            f"{name} {value}" for name, value in settings.items() if servers.REDIS_WANTED[name] != value
        )
        say(f"The given Redis has {differing}: starting one of our own for this run.")
    store = servers.own_store(os.path.join(folder, "redis"))
    return store, f"{store.version()}, the run's own, appendonly everysec"


def versions():
    node = (
        subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
        .stdout.strip()
        .removeprefix("v")
    )
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "package.json"), encoding="utf-8") as file:
        packages = json.load(file)["dependencies"]
    peers = {name: metadata.version(name) for name in ("celery", "dramatiq", "kombu", "pika", "redis", "hiredis")}
    return {"python": platform.python_version(), "node": node, **peers, **packages}


def busy_share(seconds=2.0):
    begin, clock = machine_busy_s(), time.perf_counter()
    with interrupt.interruptible():
        time.sleep(seconds)
    return (machine_busy_s() - begin) / (time.perf_counter() - clock) / os.cpu_count()


class Run:
    """The whole of it: trials, then turns."""

    def __init__(self, given, place):
        self.given, self.place = given, place
        self.name = f"peers-{secrets.token_hex(4)}"
        self.count = 0
        self.rows = []
        self.trials = []

    def want(self, tasks, latency):
        return {
            "size_bytes": SIZE_BYTES,
            "tasks": tasks,
            "rate": self.given.rate,
            "latency_s": self.given.latency_s if latency else 0,
        }

    def next_name(self):
        self.count += 1
        return f"{self.name}-{self.count}"

    def trial(self, contestant, variant):
        """A try of a variant. Workers are the question here, so that no publish waits for its confirm."""
        unconfirmed = replace(contestant, confirms=False, overlay={})
        return self.peer(unconfirmed, variant, contestant.trial_tasks, False)

    def peer(self, contestant, variant, tasks, latency):
        return turn.run(contestant, variant, self.next_name(), self.want(tasks, latency), self.place)

    def own(self, mode, tasks, latency):
        extra = self.given.taskyard_arguments.split()
        return taskyard.run(self.given.taskyard, mode, extra, self.next_name(), self.want(tasks, latency), self.place)

    def tasks(self, rate):
        """How many a turn has at this rate."""
        if self.given.tasks:
            return self.given.tasks
        return int(min(MOST_TASKS, max(LEAST_TASKS, round(rate * BULK_S, -3))))

    def attempt(self, title, measure):
        """A figure, or None and what went wrong, which is said at once."""
        try:
            return measure(), None
        except turn.TurnFailed as failure:
            say(f"  {title}: FAILED: {failure}")
            return None, str(failure)

    def best_variants(self):
        """Tries every variant of everybody, in turns; returns who takes part: (row, measure) pairs."""
        tried = {}
        entrants = [contestant for contestant in CONTESTANTS if contestant.variants and self.is_needed(contestant)]
        for round_number in range(1, self.given.trials + 1):
            for contestant in entrants:
                for variant in contestant.variants:
                    measured, failure = self.attempt(
                        f"{contestant.title}, {variant.label}",
                        lambda c=contestant, v=variant: self.trial(c, v),
                    )
                    rate = measured.tasks_per_s if measured else 0.0
                    self.trials.append(
                        {"key": contestant.key, "variant": variant.label, "tasks_per_s": rate, "failure": failure}
                    )
                    tried.setdefault(contestant.key, {}).setdefault(variant.label, []).append(rate)
                    say(f"  trial {round_number}  {contestant.title}, {variant.label}: {rate:,.0f}/s")
        return {key: max(by_label, key=lambda label: max(by_label[label])) for key, by_label in tried.items()}, tried

    def is_needed(self, contestant):
        return any(chosen.key == contestant.key or chosen.same_as == contestant.key for chosen in self.given.chosen)

    def entrants(self):
        best, tried = self.best_variants()
        by_key = {contestant.key: contestant for contestant in CONTESTANTS}
        entrants = []
        for contestant in self.given.chosen:
            source = by_key[contestant.same_as or contestant.key]
            label = best[source.key]
            variant = next(variant for variant in source.variants if variant.label == label)
            rate = max(tried[source.key][label])
            row = report.Row(contestant.key, contestant.title, label)
            if not rate:
                row.failures.append("no variant ran")
            else:
                tasks = self.tasks(rate)
                entrants.append((row, lambda c=contestant, v=variant, n=tasks: self.peer(c, v, n, True)))
            self.rows.append(row)
        for mode in taskyard.MODES if self.given.taskyard else ():
            row = report.Row(mode.key, mode.title, "", is_taskyard=True)
            measured, failure = self.attempt(mode.title, lambda m=mode: self.own(m, m.trial_tasks, False))
            self.rows.append(row)
            if not measured:
                row.failures.append(failure)
                continue
            say(f"  trial 1  {mode.title}: {measured.tasks_per_s:,.0f}/s")
            tasks = self.tasks(measured.tasks_per_s)
            entrants.append((row, lambda m=mode, n=tasks: self.own(m, n, True)))
        return entrants

    def turns(self):
        entrants = self.entrants()
        for number in range(self.given.turns):
            # Nobody is always the first after a pause, or always behind the same one.
            shift = number % len(entrants) if entrants else 0
            for row, measure in entrants[shift:] + entrants[:shift]:
                measured, failure = self.attempt(row.title, measure)
                if failure:
                    row.failures.append(failure)
                    continue
                row.turns.append(measured)
                latency = (
                    "" if measured.p50_ms is None else f", p50 {measured.p50_ms:.1f} ms, p99 {measured.p99_ms:.1f} ms"
                )
                say(f"  turn {number + 1}  {row.title}: {measured.tasks_per_s:,.0f}/s{latency}")


def measure(given, scratch, folder):
    broker = servers.Broker(given.amqp)
    broker_version = broker.version()
    store, store_version = store_for(given, folder)
    try:
        share = busy_share()
        if share > QUIET_SHARE:
            say(f"{share:.0%} of this machine is in use by others: only the ratios are worth something.")
        run = Run(given, servers.Place(broker, store, scratch, folder))
        run.turns()
        found = versions()
        today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        conditions = [
            f"{today}, {os.cpu_count()} cores, {share:.0%} of them in use before the first turn; {given.turns} turns.",
            f"Input and output of {SIZE_BYTES} bytes; {given.rate:g} tasks/s for the latency.",
            f"{broker_version}, durable classic queues for the peers; {store_version}.",
            "Celery {celery}, Dramatiq {dramatiq}, BullMQ {bullmq}, Python {python}, Node {node}.".format(**found),
        ]
        print(report.printed(run.rows, conditions, given.markdown), flush=True)
        if given.json:
            document = {
                "conditions": conditions,
                "versions": {**found, "rabbitmq": broker_version, "redis_server": store_version},
                "cores": os.cpu_count(),
                "busy_share_before": share,
                "trials": run.trials,
                "rows": [row.as_json() for row in run.rows],
                "ratios": report.ratios(run.rows),
            }
            with open(given.json, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=2)
        return FAILED if any(row.failures for row in run.rows) else 0
    finally:
        store.stop()


def main():
    given = arguments()
    scratch = os.path.abspath(os.environ["PEERS_SCRATCH"])
    interrupt.install()
    # Logs of turns that failed are all that is left of it.
    folder = tempfile.mkdtemp(prefix="run-", dir=scratch)
    code = FAILED
    try:
        code = measure(given, scratch, folder)
    except servers.Unreachable as error:
        say(f"not reachable: {error}")
        code = UNREACHABLE
    except interrupt.Interrupted:
        say("interrupted: everything that was started has been ended and removed")
        code = INTERRUPTED
    finally:
        logs = os.path.join(folder, "logs")
        if code == FAILED and os.path.isdir(logs) and os.listdir(logs):
            say(f"What the failed ones logged is in {logs}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
