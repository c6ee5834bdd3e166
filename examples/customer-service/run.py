#!/usr/bin/env python3
"""Questions of bank customers: a cheap model tells which are urgent, and those are understood first.

    python3 examples/customer-service/run.py                                # in a yard of its own
    python3 examples/customer-service/run.py --api http://127.0.0.1:8080    # in one that runs already

462 questions come at once, as on a Monday morning. `triage` looks at the words of each; `intents` then tells what the customer wants,
and works on what is urgent first. It exits with 0 when at least 88 % of the intents are right and urgent questions waited less.
"""

import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))

from yard import Unmet, check, main, quantile, read_rows  # noqa: E402
from triage import triage  # noqa: E402

# What is urgent in truth. The order of work goes by what `triage` says, which does not know the labels; the check goes by this.
URGENT = {
    "lost_or_stolen_card", "lost_or_stolen_phone", "compromised_card", "card_swallowed",
    "card_payment_not_recognised", "cash_withdrawal_not_recognised", "direct_debit_payment_not_recognised",
}
PRIORITY = {True: 9, False: 3}
LEAST_ACCURACY = 0.88
# Of the others' mean wait, how much the urgent ones' may be at most.
MOST_WAIT = 0.75


def run(yard):
    rows = read_rows(HERE / "questions.csv.gz")
    models = yard.models()
    if "intents" not in models:
        raise Unmet("this yard has no worker with the model intents")
    urgent = triage_all(yard, models, [row["text"] for row in rows])

    tasks = yard.submit([
        {"model": "intents", "priority": PRIORITY[is_urgent], "input": {"text": row["text"]},
         "metadata": {"application": "customer-service"}}
        for row, is_urgent in zip(rows, urgent)
    ])
    results = yard.results(tasks)
    lost = [result for result in results if result["state"] != "succeeded"]
    if lost:
        raise Unmet(f"{len(lost)} questions were not answered, the first for {lost[0]['error']}")
    report(rows, urgent, results)


def triage_all(yard, models, texts):
    """Whether each is urgent. The image of the stack has no Python: where no worker serves `triage`, it is asked here."""
    if "triage" not in models:
        print("No worker serves triage here: this program asks the same function.")
        return [triage(text)["urgent"] for text in texts]
    # At the highest priority, as everything else waits for it.
    tasks = yard.submit([{"model": "triage", "priority": 9, "input": {"text": text}} for text in texts])
    results = yard.results(tasks)
    # A question that triage fails on is better taken for urgent than left to wait.
    return [result["state"] != "succeeded" or result["output"]["urgent"] for result in results]


def report(rows, urgent, results):
    truth = [row["intent"] in URGENT for row in rows]
    found = sum(is_urgent and said for is_urgent, said in zip(truth, urgent))
    print(f"triage called {sum(urgent)} of {len(rows)} questions urgent, {found} of the {sum(truth)} that are.")

    right = sum(result["output"]["label"] == row["intent"] for row, result in zip(rows, results))
    waits = {kind: [result["timings"]["waited_ms"] for is_urgent, result in zip(truth, results) if is_urgent == kind]
             for kind in (True, False)}
    for kind, name in ((True, "urgent"), (False, "other")):
        print(f"  {name:<7}{len(waits[kind]):>4} waited {statistics.mean(waits[kind]):6.0f} ms in the mean, "
              f"median {statistics.median(waits[kind]):.0f}, 95 of 100 at most {quantile(waits[kind], 0.95):.0f}")

    sooner = statistics.mean(waits[True]) / statistics.mean(waits[False])
    accuracy = right / len(rows)
    check(accuracy >= LEAST_ACCURACY, f"{right} of {len(rows)} intents are right: {accuracy:.3f}, at least {LEAST_ACCURACY}")
    check(sooner <= MOST_WAIT, f"urgent ones waited {sooner:.2f} of what others did, at most {MOST_WAIT}")


if __name__ == "__main__":
    main(run, HERE)
