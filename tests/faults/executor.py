"""A model that does nothing but be seen: it writes down when it began and when it ended, outside of the yard.

    executor.py FILE

FILE is opened for appending by every copy of this program; a line is one write, so none is ever torn. The input is
{"n": number, "ms": how long it takes, "fails": how many first attempts fail, "from": what other tasks gave}; the output is
{"n", "run"} and what they gave as "seen". `run` is unique to this execution: whoever shows it shows whose effect it is.
"""

import json
import os
import sys
import time


def main() -> None:
    ledger = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    born = time.time_ns()
    runs = 0

    def note(lines: list) -> None:
        now = time.time_ns() // 1_000_000
        text = "".join(json.dumps({"at": now, **line}, separators=(",", ":")) + "\n" for line in lines)
        os.write(ledger, text.encode())

    for text in sys.stdin:
        asked = json.loads(text)
        if isinstance(asked, dict):
            asked = [asked]
        tasks = [task for task in asked if "id" in task]
        begun = []
        for task in tasks:
            runs += 1
            begun.append({"id": task["id"], "attempt": task["attempt"], "run": f"{os.getpid()}-{born}-{runs}"})
        if not begun:
            continue
        note([{"what": "started", **line} for line in begun])
        time.sleep(sum(task["input"].get("ms", 0) for task in tasks) / 1000)
        fails = [task["attempt"] <= task["input"].get("fails", 0) for task in tasks]
        note([{"what": "failed" if fail else "finished", **line} for fail, line in zip(fails, begun)])
        answers = []
        for task, line, fail in zip(tasks, begun, fails):
            if fail:
                error = {"code": "meant_to_fail", "message": "as its input says", "retryable": True}
                answers.append({"id": task["id"], "error": error})
            else:
                output = {"n": task["input"]["n"], "run": line["run"]}
                if "from" in task["input"]:
                    output["seen"] = task["input"]["from"]
                answers.append({"id": task["id"], "output": output})
        sys.stdout.write("".join(json.dumps(answer) + "\n" for answer in answers))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
