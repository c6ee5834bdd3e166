"""What this file costs a task: microseconds from a line in to a line out, beside a loop that does nothing else.

One task at a time, as the worker sends them: `python3 overhead.py`. Median and 99th percentile of 20,000 each, in turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS, TURNS = 4000, 5

BARE = """
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    print(json.dumps({"id": task["id"], "output": task["input"]}), flush=True)
"""
HELPED = "from taskyard_model import model\n@model\ndef echo(input): return input\necho.serve()"
ASYNC = "from taskyard_model import model\n@model\nasync def echo(input): return input\necho.serve()"


def start(script):
    environment = {**os.environ, "PYTHONPATH": HERE}
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def main():
    children = {"a bare loop": start(BARE), "a function": start(HELPED), "an async function": start(ASYNC)}
    request = {"id": "00000000-0000-7000-8000-000000000000", "attempt": 1, "input": {"text": "x" * 200}}
    line = json.dumps(request).encode() + b"\n"
    took = {name: [] for name in children}
    for _ in range(TURNS):
        for name, child in children.items():
            for _ in range(TASKS):
                begin = time.perf_counter()
                child.stdin.write(line)
                child.stdin.flush()
                child.stdout.readline()
                took[name].append((time.perf_counter() - begin) * 1e6)
    for name, child in children.items():
        child.stdin.close()
        child.wait()
        times = sorted(took[name])
        print(f"{name:18} median {statistics.median(times):6.0f} us   p99 {times[len(times) * 99 // 100]:6.0f} us")


main()
