"""Asks a Prometheus that scrapes the stack: is every target up, and does every query of the dashboards run?

    python3 tests/stack/metrics.py URL DASHBOARDS WORKERS

Prints each panel with how many series it shows. An empty panel is no fault (nothing may have been retried), a query
that Prometheus refuses is.
"""

import json
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

URL, DASHBOARDS, WORKERS = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])


def ask(path, **query):
    try:
        with urllib.request.urlopen(f"{URL}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as refused:
        sys.exit(f"{query}: {refused.read().decode()}")


def targets():
    return [(target["labels"]["job"], target["health"], target["lastError"]) for target in ask("/api/v1/targets")["activeTargets"]]


wanted = {"worker": WORKERS, "scheduler": 1, "gateway": 1, "rabbitmq": 1, "prometheus": 1}
for _ in range(60):
    now = targets()
    up = {job: sum(health == "up" for at, health, _ in now if at == job) for job in wanted}
    if up == wanted:
        break
    time.sleep(1)
print(f"targets up: {up}")
if up != wanted:
    sys.exit(f"wanted {wanted}; {[target for target in now if target[1] != 'up']}")
# Rates need a few scrapes.
for _ in range(60):
    if float((ask("/api/v1/query", query="min(count_over_time(up[1m]))")["result"] or [{"value": [0, 0]}])[0]["value"][1]) >= 5:
        break
    time.sleep(1)

empty = 0
for file in sorted(DASHBOARDS.glob("*.json")):
    for panel in json.loads(file.read_text())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
            result = ask("/api/v1/query", query=query)["result"]
            empty += not result
            sample = f"{float(result[0]['value'][1]):.4g}" if result else "-"
            print(f"{panel['title'][:40]:40} {target['legendFormat'][:24]:24} {len(result):3} series, the first {sample}")
print(f"every query runs; {empty} show nothing now")
