"""Artifacts of a running stack, from outside: gateway and workers keep them in one place, and it outlives them, as what is
known of tasks does.

    python3 tests/stack/artifacts.py API --restart 'COMMAND'

COMMAND restarts the stack; what was kept before must be there after it, and of use. Exits 1 at the first thing that is
not as it should be.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request

arguments = argparse.ArgumentParser()
arguments.add_argument("api")
arguments.add_argument("--restart")
arguments = arguments.parse_args()

# gateway.inline_bytes and worker.max_output_bytes, which the stack leaves at their defaults.
INLINE_BYTES, OUTPUT_BYTES = 256 << 10, 1 << 20
RESTART_S = 180
QUESTION = b'{"text": "Where can I find a virtual card?"}'
ANSWER = "getting_virtual_card"


def call(method, path, body=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(arguments.api + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


def check(words, right, seen):
    print(f"{words}: {'as it should be' if right else f'WRONG: {seen}'}", flush=True)
    if not right:
        sys.exit(1)


def name_of(content):
    return f"artifact:{hashlib.sha256(content).hexdigest()}"


def put(words, content):
    status, answer = call("POST", "/v1/artifacts", content, content_type="application/octet-stream")
    check(f"{words} is put", status == 201 and json.loads(answer)["$ref"] == name_of(content), (status, answer[:300]))


def read(words, name):
    status, content = call("GET", f"/v1/artifacts/{name}")
    check(f"{words} is read by its name", status == 200 and name_of(content) == name, (status, len(content), content[:300]))
    return content


def run(model, given):
    """A task and its result; `given` is its input's JSON as it is to travel."""
    body = b'{"model": "%s", "input": %s}' % (model.encode(), given)
    status, answer = call("POST", "/v1/tasks", body, content_type="application/json", prefer="wait=60")
    if status != 200:
        sys.exit(f"{model}: {status} {answer[:500]}")
    return json.loads(answer)


def reference(name):
    return json.dumps({"$ref": name}).encode()


def listed():
    status, answer = call("GET", "/v1/tasks?limit=500")
    return json.loads(answer)["tasks"] if status == 200 else status


def answered(words, task):
    label = (task.get("output") or {}).get("label")
    check(words, task["state"] == "succeeded" and label == ANSWER, json.dumps(task)[:500])


kept = {}
chance = random.Random()

put("a question", QUESTION)
kept["the question"] = name_of(QUESTION)
read("the question", name_of(QUESTION))
answered("a worker reads its input by that name", run("intents", reference(name_of(QUESTION))))

noise = chance.randbytes(8 << 20)
put("a file of 8 MiB that is no JSON", noise)
kept["the file"] = name_of(noise)
read("the file", name_of(noise))

# The gateway makes an artifact of it by itself, of which nobody was told the name.
large = b'{"service_ms": 1, "digits": "%s"}' % chance.randbytes(INLINE_BYTES // 2 + 1).hex().encode()
status, _ = call("GET", f"/v1/artifacts/{name_of(large)}")
check("a large input is no artifact before it is sent", status == 404, status)
task = run("pause", large)
check("a large input reaches its model", task.get("output") == json.loads(large), json.dumps(task)[:500])
kept["the large input"] = name_of(large)
read("the large input", name_of(large))

# A small input whose output is large: only a worker can have written that.
space = {f"parameter-{number}": {"uniform": [0, 1]} for number in range(60)}
task = run("search", json.dumps({"do": "sample", "space": space, "candidates": 1000}).encode())
output = task.get("output") or {}
check("a large output is an artifact", task["state"] == "succeeded" and list(output) == ["$ref"], json.dumps(task)[:500])
kept["the large output"] = plan = output["$ref"]
content = read("the large output", plan)
check(
    f"the large output has {len(content)} bytes, 1,000 candidates and all of their parameters",
    len(content) > OUTPUT_BYTES and [len(one["parameters"]) for one in json.loads(content)["candidates"]] == [60] * 1000,
    content[:300],
)
task = run("pause", reference(plan))
check("what a worker wrote is another's input", task.get("output") == {"$ref": plan}, json.dumps(task)[:500])

table = b"text,label\n" + b"".join(b"%d,%s\n" % (row % 900, b"even" if row % 2 == 0 else b"odd") for row in range(1000))
put("a table", table)
kept["the table"] = name_of(table)
given = json.dumps({"do": "clean", "from": {"$ref": name_of(table)}, "unique": "text"}).encode()
task = run("tables", given)
output = task.get("output") or {}
check("a model that works on tables makes one of it", output.get("rows") == 900, json.dumps(task)[:500])
kept["the new table"] = output["part"]["$ref"]
rows = read("the new table", kept["the new table"]).splitlines()
check("the new table has its rows", len(rows) == 900 and json.loads(rows[0])["label"] == "even", rows[:3])

nowhere = name_of(b"never put")
status, answer = call("GET", f"/v1/artifacts/{nowhere}")
check("what was never put is not found", (status, json.loads(answer)["code"]) == (404, "artifact_not_found"), answer)
task = run("intents", reference(nowhere))
check("a task that names it fails", (task["error"] or {}).get("code") == "bad_input", json.dumps(task)[:500])

if arguments.restart:
    before = listed()
    print(f"restarting: {arguments.restart}", flush=True)
    subprocess.run(arguments.restart, shell=True, check=True)
    for _ in range(RESTART_S):
        try:
            # A gateway is ready without its store, too.
            if call("GET", "/readyz")[0] == 200 and listed() != 503:
                break
        except OSError:
            pass
        time.sleep(1)
    for words, name in kept.items():
        read(f"after the restart, {words}", name)
    check("after the restart, the tasks of before are listed", listed() == before, (before, listed()))
    answered("after the restart, a worker reads its input by name", run("intents", reference(kept["the question"])))
    put("after the restart, another file", chance.randbytes(1000))
