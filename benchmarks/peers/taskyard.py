"""Taskyard's turns: `taskyard bench --own` of a given binary, on the same broker and store as the peers."""

import json
import os
import subprocess
from dataclasses import dataclass

from interrupt import interruptible
from processes import start, stop
from turn import Measured, TurnFailed, tail

# A bench that has not ended this long after its tasks should have will not.
SLACK_S = 120
STOP_TIMEOUT_S = 30


@dataclass(frozen=True)
class Mode:
    """A row of the table."""

    key: str
    title: str
    arguments: tuple
    # With many tasks to a message, a steady pace of single tasks is no question.
    has_latency: bool = True
    trial_tasks: int = 20000


MODES = (
    Mode("single", "Taskyard", ("--publish", "single", "--results", "single")),
    Mode("array", "Taskyard, results as arrays", ("--publish", "single", "--results", "array")),
    Mode(
        "batch",
        "Taskyard, 100 a message, results as arrays",
        ("--publish", "batch", "--batch", "100", "--results", "array"),
        has_latency=False,
    ),
)


def bench(binary, arguments, name, want, place):
    """The only turn of a run of the bench."""
    environment = {
        **os.environ,
        "TASKYARD__BROKER__URL": place.broker.url,
        "TASKYARD__STORE__URL": place.store.url,
    }
    command = (binary, "bench", "--own", "--size", str(want["size_bytes"]), "-o", "json", *arguments)
    log_path = place.log_path(name)
    process = None
    try:
        with open(log_path, "wb") as log:
            process = start(command, environment, log, stdout=subprocess.PIPE, cwd=place.folder)
            with interruptible():
                output, _ = process.communicate(timeout=want["timeout_s"])
        if process.returncode != 0:
            raise TurnFailed(f"exit code {process.returncode}")
        turn = json.loads(output)["turns"][0]
        if turn["states"] != {"succeeded": turn["tasks"]}:
            raise TurnFailed(f"of {turn['tasks']} tasks: {turn['states']}")
    except subprocess.TimeoutExpired:
        raise TurnFailed(f"no end after {want['timeout_s']} s") from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise TurnFailed(f"not what a bench prints: {error!r}") from None
    except TurnFailed as failure:
        raise TurnFailed(place.scrub(f"{failure}\n{tail(log_path)}".rstrip())) from None
    finally:
        if process:
            stop(process, STOP_TIMEOUT_S)
    os.unlink(log_path)
    return turn


def run(binary, mode, extra, name, want, place):
    """A bulk and, where the mode has it, a steady pace after it; what was measured."""
    common = (*mode.arguments, *extra)
    sized = {**want, "timeout_s": SLACK_S}
    bulk = bench(binary, (*common, "--tasks", str(want["tasks"])), name, sized, place)
    measured = Measured(tasks=bulk["tasks"], seconds=bulk["seconds"], tasks_per_s=bulk["tasks_per_second"])
    cpu = {role["role"]: role["cpu_seconds_per_1000_tasks"] for role in bulk.get("roles", [])}
    ours = [cpu[role] for role in ("scheduler", "worker") if role in cpu]
    measured.cpu_s_per_1000 = {
        "publisher": cpu.get("bench"),
        "workers": sum(ours) if ours else None,
        "rabbitmq": cpu.get("rabbitmq"),
        "redis": cpu.get("redis"),
    }
    if mode.has_latency and want["latency_s"] > 0:
        paced = ("--rate", str(want["rate"]), "--tasks", str(max(1, int(want["rate"] * want["latency_s"]))))
        latency = bench(binary, (*common, *paced), name, sized, place)["latency_ms"]
        measured.p50_ms, measured.p99_ms = latency["p50"], latency["p99"]
    return measured
