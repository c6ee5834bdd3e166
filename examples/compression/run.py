#!/usr/bin/env python3
"""A model made smaller, tried in the shadow of the one that serves, and rolled out when its answers are the same.

    python3 examples/compression/run.py                                # in a yard of its own
    python3 examples/compression/run.py --api http://127.0.0.1:8080    # in one that runs already

The model tells 214 kinds of files apart; its files to try are those of this repository. It exits with 0 when the smaller model
has at most half of the bytes, answers like the larger one, and serves in its place; with 1 otherwise.
"""

import base64
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))

from yard import Unmet, check, expect, main  # noqa: E402

MODEL = "file-type"
FILE = ROOT / "models/magika/model.onnx"
# What is tried: files of these folders, of at most so many bytes.
FOLDERS, MOST_BYTES, MOST_FILES = ["clients", "examples", "models", "shared", "docs", "src"], 200_000, 200
# What part of the larger model's answers the smaller one is to give as well, and of its bytes to take at most.
LEAST_ALIKE, MOST_SIZE = 0.98, 0.5


def run(yard):
    if not (HERE / "venv/bin/python").exists() and "compress" not in yard.models():
        raise Unmet("no worker has compress: README.md says what it needs")
    version = f"{MODEL}@{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-int8"
    compressed = compress(yard)
    small, large = compressed["bytes"], compressed["bytes_before"]
    deploy(yard, MODEL, action="register", name=version, files=compressed["files"], file="model.onnx")

    tasks = [{"model": MODEL, "input": {"base64": base64.b64encode(content).decode()}} for content in contents()]
    deploy(yard, version, action="shadow", share=1)
    before = [answer(result) for result in yard.results(yard.submit(tasks))]
    check({served for served, _, _ in before} == {f"{MODEL}@1"}, f"{len(tasks)} files were told by {MODEL}@1 while {version} ran in its shadow")
    shadow = tried(yard, version, len(tasks))
    print(f"  in the shadow: {shadow['same']} the same, {shadow['different']} different, {shadow['failed']} failed, "
          f"{shadow['skipped']} skipped")

    deploy(yard, version, action="roll_out")
    after = [answer(result) for result in yard.results(yard.submit(tasks))]
    check({served for served, _, _ in after} == {version}, f"the same files were told by {version}")
    alike = sum(old == new for (_, old, _), (_, new, _) in zip(before, after))
    for (_, old, _), (_, new, _), file in zip(before, after, files()):
        if old != new:
            print(f"  {file.relative_to(ROOT)}: {old} before, {new} now")
    took = [statistics.median(ms for _, _, ms in answers) for answers in (before, after)]
    print(f"A task took {took[0]:.1f} ms before, and {took[1]:.1f} ms now, at the median.")
    # By its version: the name alone is now the other.
    deploy(yard, f"{MODEL}@1", action="roll_out")
    deploy(yard, version, action="retire")
    check(small <= MOST_SIZE * large, f"{small:,} bytes instead of {large:,}: {small / large:.0%}")
    check(alike >= LEAST_ALIKE * len(tasks), f"{alike} of {len(tasks)} answers are the same")


def compress(yard):
    """Puts the model where artifacts are, and has it made smaller."""
    artifact = yard.put(FILE.read_bytes())
    task, = yard.submit([{"kind": "optimization", "model": "compress", "input": {"model.onnx": artifact}}])
    return succeeded(yard.result(task))["output"]


def deploy(yard, model, **order):
    task, = yard.submit([{"kind": "deployment", "model": model, "input": order}])
    succeeded(yard.result(task))
    print(f"{order['action']} {order.get('name', model)}")


def tried(yard, version, tasks, patience_s=120):
    """What came of the version's copies, once all have ended: they run when nothing else does."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        status, answer = yard.call("GET", "/v1/models")
        expect(status == 200, answer)
        shadow = next(model["shadow"] for model in answer["models"] if model["name"] == version)
        if sum(shadow[outcome] for outcome in ("same", "different", "failed", "skipped", "unknown")) >= tasks:
            return shadow
        time.sleep(0.2)
    raise Unmet(f"copies of {tasks} tasks have not ended after {patience_s} s")


def files():
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))
             if path.is_file() and path.suffix and 0 < path.stat().st_size <= MOST_BYTES and "venv" not in path.parts]
    # Some of every folder.
    return found[:: max(1, len(found) // MOST_FILES)][:MOST_FILES]


def contents():
    return [path.read_bytes() for path in files()]


def succeeded(result):
    if result["state"] != "succeeded":
        raise Unmet(f"{result['kind']} of {result['model']} {result['state']}: {result['error']['message']}")
    return result


def answer(result):
    """Who told it, what, and how long that took."""
    return succeeded(result)["model"], result["output"]["label"], result["timings"]["ran_ms"]


if __name__ == "__main__":
    main(run, HERE)
