#!/usr/bin/env python3
"""Writes search.json, the workflow of a hyper-parameter search, with the questions of demo/card-questions.csv in it.

    python3 examples/search/make_search.py
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# What is trained, and what the best of it is served as.
MODEL = "card-search"
# Where the candidates lie, how many there are, and by which chance. The same seed makes the same candidates.
SPACE = {"l2": {"log": [0.001, 1000]}}
CANDIDATES, SEED = 9, 1
# One in three goes on to the next rung, where it may come to three times as many iterations.
KEEP_ONE_OF, RUNGS, BUDGET = 3, 3, 10
# The number that candidates are compared by, on a fifth of the rows that they do not learn from. The smallest is the best.
SCORE = "/metrics/loss"


def rung(number):
    """Trains what is left of the candidates, and keeps the best of them."""
    last = number == RUNGS - 1
    candidates = {"$from": "plan", "path": "/output/candidates"} if number == 0 else {"$from": f"cut-{number}", "path": "/output/kept"}
    train = {"name": MODEL, "l2": {"$item": "/parameters/l2"},
             "max_iterations": {"$from": "plan", "path": f"/output/rungs/{number}/more"},
             "rows": {"$from": "tables", "path": "/output/tables/train"}}
    if number > 0:
        train["warm_start"] = {"$item": "/result/weights"}
    return [
        {"name": f"rung-{number + 1}", "kind": "training", "model": "learn-text", "for_each": candidates, "input": train},
        # A candidate that cannot be trained is out; the others go on.
        {"name": f"cut-{number + 1}", "kind": "optimization", "model": "search", "after": "all_done",
         "input": {"do": "halve", "candidates": candidates, "results": {"$from": f"rung-{number + 1}"},
                   "by": SCORE, "least": True, "work": "/iterations",
                   "keep": 1 if last else {"$from": "plan", "path": f"/output/rungs/{number + 1}/candidates"}}},
    ]


def workflow(csv):
    best = {"$from": f"cut-{RUNGS}", "path": "/output/best"}
    part = lambda path: {**best, "path": best["path"] + path}  # noqa: E731
    steps = [
        {"name": "plan", "kind": "optimization", "model": "search",
         "input": {"do": "sample", "space": SPACE, "candidates": CANDIDATES, "seed": SEED,
                   "keep_one_of": KEEP_ONE_OF, "rungs": RUNGS, "budget": BUDGET}},
        *(step for number in range(RUNGS) for step in rung(number)),
        # Nothing depends on it: it is in the workflow's outputs.
        {"name": "report", "kind": "optimization", "model": "search",
         "input": {"do": "report", "plan": {"$from": "plan"},
                   "rungs": [{"$from": f"cut-{number + 1}", "path": "/output/scores"} for number in range(RUNGS)]}},
        # The best, learnt from all rows and measured on those that had no part in the search.
        {"name": "final", "kind": "training", "model": "learn-text",
         "input": {"name": MODEL, "l2": part("/parameters/l2"), "warm_start": part("/result/weights"),
                   "rows": {"$from": "tables", "path": "/output/tables/train"},
                   "test_rows": {"$from": "tables", "path": "/output/tables/test"}}},
        {"name": "register", "kind": "deployment", "model": "intents",
         "input": {"action": "register", "name": f"{MODEL}@1", "head": f"{MODEL}.head.json", "capabilities": [MODEL],
                   "files": {"$from": "final", "path": "/output/files"}}},
        {"name": "roll-out", "kind": "deployment", "model": f"{MODEL}@1", "depends_on": ["register"],
         "input": {"action": "roll_out"}},
        {"name": "tables", "kind": "data_processing", "model": "tables",
         "input": {"do": "join", "parts": [{"$from": "questions"}], "by": "split", "unique": "text", "apart": "test"}},
        {"name": "questions", "kind": "data_processing", "model": "tables",
         "input": {"do": "clean", "rename": {"intent": "label"}, "required": ["text", "label"], "unique": "text",
                   "from": {"csv": csv}}},
    ]
    lines = ",\n  ".join(json.dumps(step, ensure_ascii=False) for step in steps)
    return f'{{"priority": 3, "tasks": [\n  {lines}\n]}}\n'


if __name__ == "__main__":
    csv = (ROOT / "demo/card-questions.csv").read_text(encoding="utf-8")
    (HERE / "search.json").write_text(workflow(csv), encoding="utf-8")
