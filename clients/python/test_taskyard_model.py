"""Real children that serve functions, and a test in the place of the worker: `python3 -m unittest` in this folder."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))


class Child:
    """A process that serves a script's model."""

    def __init__(self, script):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "child.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write("from taskyard_model import *\n" + textwrap.dedent(script) + "\nserved.serve()\n")
        self.process = subprocess.Popen(
            [sys.executable, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": HERE},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        self.folder.cleanup()

    def send(self, value):
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the child ended: " + self.process.stderr.read().decode())
        return json.loads(line)

    def ask(self, input):
        """Sends one task, and answers all its lines without the id, the last of them the answer."""
        request = task(input)
        self.send(request)
        lines = []
        while not lines or not {"output", "error"} & lines[-1].keys():
            lines.append(self.hear())
            assert lines[-1].pop("id") == request["id"]
        return lines

    def end(self):
        """Closes stdin; answers exit code and stderr."""
        self.process.stdin.close()
        error = self.process.stderr.read().decode()
        return self.process.wait(), error


def task(input, attempt=1):
    return {"id": str(uuid.uuid4()), "attempt": attempt, "input": input}


class OneTask(unittest.TestCase):
    def test_a_function_becomes_a_model(self):
        with Child("@model\ndef served(input): return {'text': input['text'].upper()}") as child:
            self.assertEqual(child.ask({"text": "zwölf"}), [{"output": {"text": "ZWÖLF"}}])
            self.assertEqual(child.end(), (0, ""))

    def test_the_function_can_still_be_called(self):
        sys.path.insert(0, HERE)
        from taskyard_model import model

        @model
        def double(input):
            "Doubles."
            return 2 * input

        self.assertEqual((double(4), double.__name__, double.__doc__), (8, "double", "Doubles."))

    def test_it_is_given_the_task(self):
        with Child("@model\ndef served(input, task): return [task.attempt, task.input == input, task.cancelled]") as child:
            child.send(task({}, attempt=3))
            self.assertEqual(child.hear()["output"], [3, True, False])

    def test_what_it_prints_is_no_answer(self):
        script = """
        import os, subprocess
        @model
        def served(input):
            print("noise")
            os.write(1, b"more noise\\n")
            subprocess.run(["echo", "noise of a child"])
        """
        with Child(script) as child:
            self.assertEqual(child.ask(None), [{"output": None}])
            code, error = child.end()
        self.assertEqual(code, 0)
        for noise in ("noise\n", "more noise", "noise of a child"):
            self.assertIn(noise, error)

    def test_progress_and_partial_output_come_before_the_answer(self):
        script = """
        @model
        def served(input, task):
            task.progress(0.25)
            task.partial({"token": "a"})
            task.progress(7, "nearly")
            return "ab"
        """
        with Child(script) as child:
            expected = [
                {"progress": 0.25},
                {"partial": {"token": "a"}},
                {"progress": 1.0, "message": "nearly"},
                {"output": "ab"},
            ]
            self.assertEqual(child.ask(None), expected)

    def test_what_a_generator_yields_is_partial_output(self):
        script = """
        @model
        def served(input):
            for token in input:
                yield token
            return "".join(input)
        """
        with Child(script) as child:
            self.assertEqual(child.ask(["a", "b"]), [{"partial": "a"}, {"partial": "b"}, {"output": "ab"}])

    def test_errors_say_what_they_are(self):
        script = """
        @model
        def served(input):
            if input == "typed": raise TaskError("out_of_memory", "no room", retryable=True)
            if input == "passing": raise ConnectionResetError("gone")
            if input == "nan": return float("nan")
            if input == "set": return {1}
            if input == "deep":
                value = []
                for _ in range(100_000): value = [value]
                return value
            return 1 / input
        """
        with Child(script) as child:
            errors = {input: child.ask(input)[0]["error"] for input in ("typed", "passing", "nan", "set", "deep", 0)}
            self.assertEqual(child.ask(2), [{"output": 0.5}])
            _, log = child.end()
        self.assertEqual(errors["typed"], {"code": "out_of_memory", "message": "no room", "retryable": True})
        self.assertEqual(errors["passing"], {"code": "exception", "message": "ConnectionResetError: gone", "retryable": True})
        self.assertEqual(errors[0], {"code": "exception", "message": "ZeroDivisionError: division by zero", "retryable": False})
        for unwritable in ("nan", "set", "deep"):
            self.assertEqual(errors[unwritable]["code"], "bad_output")
        self.assertIn("return 1 / input", log)
        self.assertNotIn("out_of_memory", log)

    def test_arrays_and_data_classes_are_outputs(self):
        script = """
        import array, dataclasses
        @dataclasses.dataclass
        class Point:
            x: int
        @model
        def served(input): return {"array": array.array("d", [1.5]), "point": Point(2), "half": "\\ud800"}
        """
        with Child(script) as child:
            self.assertEqual(child.ask(None), [{"output": {"array": [1.5], "point": {"x": 2}, "half": "?"}}])


class Batches(unittest.TestCase):
    def test_a_call_with_several_tasks_is_answered_task_by_task(self):
        for function in ("def served(input): return 10 // input", "async def served(input): return 10 // input"):
            with self.subTest(function), Child("@model\n" + function) as child:
                requests = [task(input) for input in (1, 0, 5)]
                child.send(requests)
                answers = {line["id"]: line for line in (child.hear() for _ in requests)}
                self.assertEqual(answers[requests[0]["id"]]["output"], 10)
                self.assertEqual(answers[requests[1]["id"]]["error"]["code"], "exception")
                self.assertEqual(answers[requests[2]["id"]]["output"], 2)

    def test_a_batch_function_gets_all_inputs_at_once(self):
        script = """
        @model(batch=True)
        def served(inputs, tasks):
            if len(inputs) == 3: return inputs[:1]
            if len(inputs) == 4: raise TaskError("too_many")
            return [ValueError("odd") if input % 2 else [input, len(inputs), task.attempt] for input, task in zip(inputs, tasks)]
        """
        with Child(script) as child:

            def ask(*inputs):
                child.send([task(input) for input in inputs])
                return [child.hear() for _ in inputs]

            two = ask(2, 3)
            self.assertEqual(two[0]["output"], [2, 2, 1])
            self.assertEqual(two[1]["error"]["message"], "ValueError: odd")
            self.assertEqual({line["error"]["code"] for line in ask(0, 2, 4)}, {"bad_output"})
            self.assertEqual({line["error"]["code"] for line in ask(0, 2, 4, 6)}, {"too_many"})
            self.assertEqual(child.ask(8), [{"output": [8, 1, 1]}])


class Cancelling(unittest.TestCase):
    # Each waits for the cancellation alone: a child that is not told of it would never answer.
    KINDS = {
        "polls": """
            @model
            def served(input, task):
                task.progress(0)
                while not task.cancelled: pass
                task.check()
            """,
        "reports": """
            @model
            def served(input, task):
                while True: task.progress(0)
            """,
        "yields": """
            @model
            def served(input):
                while True: yield 0
            """,
        "awaits": """
            import asyncio
            @model
            async def served(input, task):
                task.progress(0)
                await asyncio.Event().wait()
            """,
        "yields asynchronously": """
            import asyncio
            @model
            async def served(input):
                while True:
                    yield 0
                    await asyncio.sleep(0)
            """,
    }

    def test_a_cancelled_task_stops_and_says_so(self):
        for kind, script in self.KINDS.items():
            with self.subTest(kind), Child(script) as child:
                for _ in range(2):
                    request = task(None)
                    child.send(request)
                    child.hear()
                    child.send({"cancel": request["id"]})
                    last = next(line for line in iter(child.hear, None) if "error" in line or "output" in line)
                    self.assertEqual(last["error"]["code"], "cancelled")
                child.send({"cancel": str(uuid.uuid4())})

    def test_one_of_several_is_cancelled_and_the_others_are_not(self):
        script = """
        import asyncio
        @model
        async def served(input, task):
            task.progress(0)
            await asyncio.Event().wait() if input == "waits" else None
            return input
        """
        with Child(script) as child:
            requests = [task("waits"), task("goes")]
            child.send(requests)
            lines = [child.hear(), child.hear()]
            self.assertEqual({line["progress"] for line in lines}, {0})
            child.send({"cancel": requests[0]["id"]})
            answers = {line["id"]: line for line in (child.hear() for _ in requests)}
            self.assertEqual(answers[requests[0]["id"]]["error"]["code"], "cancelled")
            self.assertEqual(answers[requests[1]["id"]]["output"], "goes")

    def test_it_ends_with_its_worker(self):
        with Child(self.KINDS["polls"]) as child:
            child.send(task(None))
            child.hear()
            self.assertEqual(child.end(), (0, ""))

    def test_it_ends_when_nobody_reads(self):
        with Child(self.KINDS["reports"]) as child:
            child.send(task(None))
            child.hear()
            child.process.stdout.close()
            child.process.stdin.close()
            self.assertEqual(child.process.wait(), 0)


class Many(unittest.TestCase):
    def test_ten_thousand_tasks_are_answered_in_order(self):
        with Child("@model\ndef served(input): return input + 1") as child:
            for at in range(10_000):
                child.send(task(at))
                if at >= 100:
                    self.assertEqual(child.hear()["output"], at - 100 + 1)
            self.assertEqual([child.hear()["output"] for _ in itertools.repeat(None, 100)], list(range(9_901, 10_001)))


if __name__ == "__main__":
    unittest.main()
