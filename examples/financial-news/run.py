#!/usr/bin/env python3
"""Sentiment of financial headlines: live ones with a deadline, beside a back-fill of old ones on the same model.

    python3 examples/financial-news/run.py                                # in a yard of its own
    python3 examples/financial-news/run.py --api http://127.0.0.1:8080    # in one that runs already

984 old headlines are sent at once at low priority. While they wait, 200 live ones come at random moments, 50 a second, each of no
more use after a second. It exits with 0 when at least 95 % of the live ones were answered in time and the back-fill is complete.
"""

import random
import statistics
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))

from yard import Unmet, check, main, quantile, read_rows  # noqa: E402

LIVE = 200
LIVE_PER_S = 50
DEADLINE_MS = 1000
LIVE_PRIORITY, OLD_PRIORITY = 8, 1
LEAST_IN_TIME = 0.95
# Of the three recalls' mean. Guessing has a third, whatever the shares of the classes.
LEAST_MACRO = 0.6


def run(yard):
    if "sentiment" not in yard.models():
        raise Unmet("this yard has no worker with the model sentiment")
    rows = read_rows(HERE / "headlines.csv.gz")
    live, old = rows[:LIVE], rows[LIVE:]

    began = time.monotonic()
    back_fill = yard.submit([task(row, OLD_PRIORITY) for row in old])
    sent = stream(yard, live)
    streamed_s = time.monotonic() - began
    lives = [yard.result(answer["id"]) if status in (200, 202) else None for status, answer in sent]
    olds = yard.results(back_fill)
    print(f"{len(live)} live headlines in {streamed_s:.1f} s beside {len(old)} old ones; all done after "
          f"{time.monotonic() - began:.1f} s.")
    report(live, lives, old, olds, [answer for status, answer in sent if status not in (200, 202)])


def task(row, priority, **more):
    return {"model": "sentiment", "priority": priority, "input": {"text": row["text"]},
            "metadata": {"application": "financial-news"}, **more}


def stream(yard, rows):
    """Sends each at its moment, whether or not those before it were answered: news does not wait for the reader."""
    generator = random.Random(50)
    due = time.monotonic()
    sent = []
    for row in rows:
        due += generator.expovariate(LIVE_PER_S)
        time.sleep(max(0.0, due - time.monotonic()))
        sent.append(yard.call("POST", "/v1/tasks", task(row, LIVE_PRIORITY, deadline_ms=DEADLINE_MS)))
    return sent


def report(live, lives, old, olds, refused):
    taken = [result for result in lives if result and result["state"] == "succeeded"]
    times = [took_ms(result) for result in taken]
    in_time = sum(took <= DEADLINE_MS for took in times)
    others = Counter(result["error"]["code"] for result in lives if result and result["state"] != "succeeded")
    others.update(problem["code"] for problem in refused)
    old_end = max(moment(result["timings"]["finished"]) for result in olds)
    beside = sum(moment(result["timings"]["accepted"]) < old_end for result in lives if result)
    for name, group in (("live", times), ("old", [took_ms(result) for result in olds if result["state"] == "succeeded"])):
        if group:
            print(f"  {name:<5} from acceptance to result {statistics.median(group):6.0f} ms (median), 95 of 100 in "
                  f"{quantile(group, 0.95):.0f}, all in {max(group):.0f}")
    print(f"  {beside} of the live ones came while old ones were still waiting or running.")
    print(f"  macro accuracy {macro(live + old, lives + olds):.3f}: the mean of the recalls of bearish, bullish and neutral.")

    missed = "".join(f", {count} {code}" for code, count in others.items())
    check(in_time >= LEAST_IN_TIME * len(live),
          f"{in_time} of {len(live)} live ones within {DEADLINE_MS} ms{missed}: at least {LEAST_IN_TIME:.0%}")
    done = sum(result["state"] == "succeeded" for result in olds)
    check(done == len(old), f"{done} of {len(old)} old ones done: all of them")
    score = macro(live + old, lives + olds)
    check(score >= LEAST_MACRO, f"macro accuracy is at least {LEAST_MACRO}")


def macro(rows, results):
    """Each class counts alike: two thirds of the headlines are neutral, and saying so of all would be right as often."""
    right, all_of = Counter(), Counter()
    for row, result in zip(rows, results):
        if result and result["state"] == "succeeded":
            all_of[row["sentiment"]] += 1
            right[row["sentiment"]] += result["output"]["label"] == row["sentiment"]
    return statistics.mean(right[label] / all_of[label] for label in all_of) if all_of else 0.0


def took_ms(result):
    timings = result["timings"]
    return (moment(timings["finished"]) - moment(timings["accepted"])).total_seconds() * 1000


def moment(text):
    """RFC 3339, of which Python before 3.11 reads neither `Z` nor other than three or six digits of a second."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{(rest + '000000')[:6]}+00:00")


if __name__ == "__main__":
    main(run, HERE)
