#!/usr/bin/env python3
"""Books that readers may like, from a model that is trained anew every night: one workflow from the catalogue to the list.

    python3 examples/recommendation/run.py                                # in a yard of its own
    python3 examples/recommendation/run.py --api http://127.0.0.1:8080    # in one that runs already

Features are extracted, three candidates trained, the best registered as a new version and rolled out, and 500 books scored that the model
has not seen; where an earlier night's version is there, it is retired. It exits with 0 when all of that was done, by the
new version, and its answers on the 500 books are right clearly more often than the majority class.
"""

import statistics
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))

from yard import Unmet, check, expect, main, read_rows  # noqa: E402
from features import features, label_of  # noqa: E402

MODEL = "book-taste"
# How many books of the catalogue, which is in random order, choose the best candidate and are to be scored. The rest is learnt from.
TEST, LIST = 800, 500
# How much large weights cost each candidate.
CANDIDATES = [30.0, 10.0, 3.0]
# By how much the answers must be right more often than the majority class.
LEAST_GAIN = 0.05
PATIENCE_S = 600
ENDS = {"succeeded", "skipped", "failed", "cancelled", "expired", "rejected"}


def run(yard):
    books = read_rows(HERE / "books.csv.gz")
    for number, book in enumerate(books):
        book["split"] = "list" if number < LIST else "test" if number < LIST + TEST else "train"
    models = yard.models()
    missing = {"tables", "learn-text", "intents"} - models
    if missing:
        raise Unmet(f"this yard has no worker with {', '.join(sorted(missing))}")

    version = f"{MODEL}@{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    began = time.monotonic()
    status, workflow = yard.call("POST", "/v1/workflows", nightly(books, models, version, earlier(yard)))
    expect(status in (200, 202), workflow)
    record = wait(yard, workflow["id"])
    print(f"The workflow is {record['state']} after {time.monotonic() - began:.1f} s.")
    report(yard, record, books, version)


def nightly(books, models, version, retired):
    """The workflow. Nothing depends on `score`, so that its outputs are in the workflow's result."""
    if "book-features" in models:
        columns = ["split", "title", "authors", "average_rating"]
        extract = [{"name": "features", "kind": "data_processing", "model": "book-features",
                    "input": {"books": [{column: book[column] for column in columns} for book in books]}}]
        rows = {"$from": "features", "path": "/output/rows"}
        unrated = {"$from": "features", "path": "/output/list"}
    else:
        print("No worker serves book-features here: this program calls the same function.")
        extracted = features(books)
        extract, rows, unrated = [], extracted["rows"], extracted["list"]
    return {
        "idempotency_key": version,
        "priority": 2,
        "on_failure": "fail_fast",
        "tasks": extract + [
            {"name": "split", "kind": "data_processing", "model": "tables",
             "input": {"do": "split", "from": {"rows": rows}, "part_rows": 1000}},
            {"name": "clean", "kind": "data_processing", "model": "tables",
             "for_each": {"$from": "split", "path": "/output/parts"},
             "input": {"do": "clean", "from": {"$item": ""}, "required": ["text", "label"], "unique": "text"}},
            {"name": "join", "kind": "data_processing", "model": "tables",
             "input": {"do": "join", "parts": {"$from": "clean"}, "by": "split", "unique": "text", "apart": "test"}},
            {"name": "train", "kind": "training", "model": "learn-text", "for_each": CANDIDATES,
             "input": {"name": MODEL, "l2": {"$item": ""},
                       "rows": {"$from": "join", "path": "/output/tables/train"},
                       "test_rows": {"$from": "join", "path": "/output/tables/test"}}},
            {"name": "evaluate", "kind": "data_processing", "model": "tables",
             "input": {"do": "top", "of": {"$from": "train"}, "by": "/metrics/accuracy", "keep": len(CANDIDATES)}},
            {"name": "register", "kind": "deployment", "model": "intents",
             # With capabilities of its own: else it would have those of `intents`, and get tasks that ask for them.
             "input": {"action": "register", "name": version, "head": f"{MODEL}.head.json", "capabilities": [MODEL],
                       "files": {"$from": "evaluate", "path": "/output/best/files"}}},
            {"name": "roll-out", "kind": "deployment", "model": version, "depends_on": ["register"],
             "input": {"action": "roll_out"}},
            {"name": "score", "model": MODEL, "depends_on": ["roll-out"], "for_each": unrated,
             "input": {"text": {"$item": "/text"}, "top": 2}},
        ] + [
            {"name": f"retire-{old.partition('@')[2]}", "kind": "deployment", "model": old, "depends_on": ["roll-out"],
             "input": {"action": "retire"}}
            for old in retired
        ],
    }


def earlier(yard):
    """The versions of other nights that a worker still serves."""
    status, answer = yard.call("GET", "/v1/models")
    expect(status == 200, answer)
    return [model["name"] for model in answer["models"]
            if model["name"].startswith(f"{MODEL}@") and model["now"]["slots"]]


def wait(yard, workflow):
    """Until it has ended, telling of each step that has."""
    until = time.monotonic() + PATIENCE_S
    told = set()
    while time.monotonic() < until:
        status, record = yard.call("GET", f"/v1/workflows/{workflow}?wait=1s")
        expect(status in (200, 202), record)
        for step in record["steps"]:
            if step["name"] not in told and step["state"] in ENDS:
                told.add(step["name"])
                items = step.get("items")
                print(f"  {step['name']:<24} {step['state']}" + (f", {items['succeeded']} of {items['total']}" if items else ""))
        if "finished" in record:
            return record
    raise Unmet(f"the workflow {workflow} has not ended after {PATIENCE_S} s")


def report(yard, record, books, version):
    if record["state"] != "succeeded":
        raise Unmet(f"the workflow is {record['state']}: {record['error']}")
    step = next(step for step in record["steps"] if step["name"] == "evaluate")
    for candidate in yard.result(step["task"])["output"]["kept"]:
        print(f"  candidate l2 = {candidate['l2']:<5} accuracy {candidate['metrics']['accuracy']:.3f} on {TEST} books, "
              f"{candidate['iterations']} iterations, {candidate['seconds']:.1f} s")

    unrated = [book for book in books if book["split"] == "list"]
    threshold = features(books)["threshold"]
    answers = record["outputs"]["score"]
    truth = [label_of(book, threshold) for book in unrated]
    right = sum(answer["label"] == label for answer, label in zip(answers, truth))
    accuracy = right / len(unrated)
    majority = max(Counter(truth).values()) / len(unrated)
    chances = [next(each["score"] for each in answer["top"] if each["label"] == "high") for answer in answers]
    ten = sorted(zip(chances, range(len(unrated))), reverse=True)[:10]
    print(f"The ten of {len(unrated)} books most likely to be rated above {threshold}, and what they are rated in truth:")
    for chance, number in ten:
        print(f"  {chance:.2f}  {unrated[number]['average_rating']:>4}  {unrated[number]['title']}, {unrated[number]['authors']}"[:110])
    ratings = [float(book["average_rating"]) for book in unrated]
    print(f"Rated {statistics.mean(ratings[number] for _, number in ten):.2f} in the mean; all of the list: "
          f"{statistics.mean(ratings):.2f}.")

    check(served(yard, record["id"], version) == len(unrated), f"all {len(unrated)} books were scored by {version}")
    check(accuracy >= majority + LEAST_GAIN,
          f"{right} of {len(unrated)} right: {accuracy:.3f}; the majority class has {majority:.3f}, at least {LEAST_GAIN} more")


def served(yard, workflow, version):
    """How many of the workflow's tasks a version answered."""
    count, cursor = 0, ""
    while cursor is not None:
        status, page = yard.call("GET", f"/v1/tasks?model={version}&state=succeeded&limit=500" + (cursor and f"&cursor={cursor}"))
        expect(status == 200, page)
        count += sum((task.get("workflow") or {}).get("id") == workflow and task["workflow"]["step"] == "score"
                     for task in page["tasks"])
        cursor = page["cursor"]
    return count


if __name__ == "__main__":
    main(run, HERE)
