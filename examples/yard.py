"""A yard for an application: one of its own for as long as it runs, or with `--api URL` one that runs already.

It speaks HTTP and needs Python's own library only. The three applications beside it share it.
"""

import argparse
import csv
import gzip
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Longest that a yard may take to start: it loads its models meanwhile.
START_S = 120
# Tasks to a call; a call may have 8 MiB.
BATCH = 500


class Unmet(Exception):
    """The application's own check does not hold, or the yard did not do what it was asked."""


def main(run, folder):
    """Runs an application in a yard. The process exits with 0 when everything that it checks holds, else with 1."""
    parser = argparse.ArgumentParser(description=sys.modules[run.__module__].__doc__.splitlines()[0])
    parser.add_argument("--api", metavar="URL", default=os.environ.get("TASKYARD_API"),
                        help="a yard that runs already; without it one is started, and stopped at the end")
    api = parser.parse_args().api
    try:
        if api:
            run(Yard(api))
        else:
            with Own(folder / "models.toml") as yard:
                run(yard)
    except Unmet as unmet:
        print(f"Not met: {unmet}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def check(holds, text):
    print(f"  {'ok ' if holds else 'NOT'}  {text}")
    if not holds:
        raise Unmet(text)


def read_rows(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def quantile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))]


class Yard:
    """The HTTP API at an address. A thread has a connection of its own."""

    def __init__(self, api):
        address = urllib.parse.urlsplit(api)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise Unmet(f"{api} is no address of an HTTP API")
        self.api = api
        self._kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._place = (address.hostname, address.port)
        self._threads = threading.local()

    def call(self, method, path, body=None):
        """The status and the JSON of the answer. Raises `Unmet` when nobody answers. A body of bytes goes as it is."""
        is_file = isinstance(body, bytes)
        headers = {"Content-Type": "application/octet-stream" if is_file else "application/json"}
        if key := os.environ.get("TASKYARD_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = body if body is None or is_file else json.dumps(body)
        for is_last in (False, True):
            connection = getattr(self._threads, "connection", None)
            if connection is None:
                connection = self._threads.connection = self._kind(*self._place, timeout=90)
            try:
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                return response.status, json.loads(response.read() or "null")
            except (OSError, http.client.HTTPException) as failure:
                # The server closes connections that were idle; every call here may be made twice.
                self._threads.connection = None
                if is_last:
                    raise Unmet(f"{method} {self.api}{path}: {failure}") from failure

    def models(self):
        status, answer = self.call("GET", "/v1/models")
        expect(status == 200, answer)
        return {model["name"] for model in answer["models"] if model["now"]["slots"]}

    def put(self, content):
        """Keeps bytes as an artifact, and gives what names it in a task."""
        status, answer = self.call("POST", "/v1/artifacts", content)
        expect(status == 201, answer)
        return {"$ref": answer["$ref"]}

    def submit(self, tasks):
        """Publishes tasks, many to a call. Each has an id, so that it is one task however often it is sent."""
        tasks = [{"id": str(uuid.uuid4()), **task} for task in tasks]
        for first in range(0, len(tasks), BATCH):
            _, answers = self.call("POST", "/v1/batches", tasks[first:first + BATCH])
            for answer in answers if isinstance(answers, list) else [{"problem": answers}]:
                expect("task" in answer, answer.get("problem"))
        return [task["id"] for task in tasks]

    def result(self, task, patience_s=300):
        """Waits for the end of one task."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            status, answer = self.call("GET", f"/v1/tasks/{task}?wait=30s")
            expect(status in (200, 202), answer)
            if answer["timings"]["finished"]:
                return answer
        raise Unmet(f"the task {task} has not ended after {patience_s} s")

    def results(self, tasks, patience_s=300):
        return [self.result(task, patience_s) for task in tasks]


class Own:
    """`taskyard dev` as a child, on a port that is free."""

    def __init__(self, config):
        self.config = config

    def __enter__(self):
        binary = find_binary()
        environment = dict(os.environ, TASKYARD__GATEWAY__LISTEN="127.0.0.1:0")
        self.log = tempfile.NamedTemporaryFile("w+", prefix="taskyard-", suffix=".log", delete=False)
        try:
            self.child = subprocess.Popen([binary, "dev", "--config", str(self.config)], env=environment,
                                          stdout=subprocess.PIPE, stderr=self.log, text=True)
        except OSError as failure:
            os.unlink(self.log.name)
            raise Unmet(f"{binary}: {failure.strerror}") from failure
        api = self._address()
        # Nobody reads what it says from now on, and it must not wait for that.
        threading.Thread(target=self.child.stdout.read, daemon=True).start()
        print(f"A yard of its own runs at {api}, with {binary}; its log is {self.log.name}.")
        return Yard(api)

    def _address(self):
        giving_up = threading.Timer(START_S, self.child.kill)
        giving_up.start()
        try:
            for line in self.child.stdout:
                if address := re.search(r"http://\S+", line):
                    return address.group()
        finally:
            giving_up.cancel()
        self.child.wait()
        self.log.seek(0)
        os.unlink(self.log.name)
        raise Unmet(f"the yard did not start:\n{self.log.read()[-2000:]}")

    def __exit__(self, kind, value, trace):
        self.child.terminate()
        try:
            self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.log.close()
        if kind is None:
            os.unlink(self.log.name)


def find_binary():
    if named := os.environ.get("TASKYARD_BIN"):
        return named
    built = [path for path in (ROOT / "target/release/taskyard", ROOT / "target/debug/taskyard") if path.exists()]
    if built:
        # The one that was built last: the other may be older than these models.
        return str(max(built, key=lambda path: path.stat().st_mtime))
    if found := shutil.which("taskyard"):
        return found
    raise Unmet("no taskyard was found: build it with `cargo build --release`, or name it in TASKYARD_BIN")


def expect(holds, problem):
    if not holds:
        problem = problem if isinstance(problem, dict) else {"detail": problem}
        raise Unmet(f"{problem.get('code', 'error')}: {problem.get('detail')}")
