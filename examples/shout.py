#!/usr/bin/env python3
"""A model in a process of its own: answers {"text": "…"} with the text in capital letters.

It reads one JSON value a line from stdin: a task {"id", "attempt", "input"}, an array of tasks when the model's
max_batch is over 1, or {"cancel": "id"}. It answers each task with one line, {"id", "output"} or {"id", "error"}. What
it writes to stderr goes to the worker's log. It ends when stdin does: that is how the worker closes it.
"""

import json
import sys


def answer(task):
    text = task["input"].get("text") if isinstance(task["input"], dict) else None
    if not isinstance(text, str):
        error = {"code": "bad_input", "message": 'the input must be {"text": "..."}', "retryable": False}
        return {"id": task["id"], "error": error}
    return {"id": task["id"], "output": {"text": text.upper()}}


def main():
    print("ready", file=sys.stderr, flush=True)
    for line in sys.stdin:
        value = json.loads(line)
        for task in value if isinstance(value, list) else [value]:
            # A task is done before the next line is read, so there is never one left to cancel.
            if "cancel" not in task:
                print(json.dumps(answer(task)), flush=True)


main()
