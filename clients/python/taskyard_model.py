"""Makes a Python function a model of a Taskyard worker.

    from taskyard_model import model

    @model
    def shout(input):
        return {"text": input["text"].upper()}

    if __name__ == "__main__":
        shout.serve()

and in the worker's configuration file:

    [models.shout]
    handler = "process"
    [models.shout.process]
    command = ["python3", "shout.py"]

The function is given a task's input, any JSON value, and returns its output. With a second parameter it is given the
`Task` as well, which takes progress and partial output and knows whether it was cancelled. It may be `async`, or a
generator: what it yields is partial output then, and what it returns is the output.

With `@model(batch=True)` it is given all inputs of a call as a list (and the list of their tasks) and returns as many
outputs, in the same order; an output may be an exception. The model's `max_batch` says how many there are at most.

This file is all there is, and needs nothing but Python's own library (3.9 or later): it may be copied as well as
installed. What it speaks with the worker is JSON lines on stdin and stdout; what a model prints goes to the worker's log.
"""

import asyncio
import dataclasses
import inspect
import json
import os
import queue
import sys
import threading
import traceback

__all__ = ["Cancelled", "Model", "Task", "TaskError", "model"]

# Exceptions that another attempt may not meet. All others are taken for the input's or the model's fault.
PASSING = (ConnectionError, MemoryError, TimeoutError)


class TaskError(Exception):
    """How a task fails.

    `code` is for programs (lower case, `_` between words, at most 64 bytes), `message` for people. A `retryable` one is
    tried again, as often as the model or the task allows.
    """

    def __init__(self, code, message="", retryable=False):
        super().__init__(message or code)
        self.code = code
        self.message = message
        self.retryable = retryable


class Cancelled(TaskError):
    """Raised in the function of a task that is cancelled, or out of time, where it reports or asks."""

    def __init__(self):
        super().__init__("cancelled", "the task was cancelled")


class Task:
    """One task in the hands of the function.

    `id` is its UUID as text, `attempt` counts from 1, `input` is the JSON value. Where the model's settings have
    `process.files`, what the input names is a file, `{"$file": PATH}`, and `folder` is where files of the output go: name
    them in the same way, by their paths or their names in the folder. It is gone after the answer.
    """

    def __init__(self, request, output):
        self.id = request["id"]
        self.attempt = request["attempt"]
        self.input = request["input"]
        self.folder = request.get("folder")
        self._output = output
        self._stop = threading.Event()
        self._running = None
        self._loop = None

    @property
    def cancelled(self):
        """Whether its result is of no more use. Unless it has ended a second later, the process is."""
        return self._stop.is_set()

    def check(self):
        """Raises `Cancelled` if its result is of no more use."""
        if self.cancelled:
            raise Cancelled

    def progress(self, part, message=None):
        """Says how far it is: `part` from 0 to 1, and in words. Raises `Cancelled` as `check` does."""
        self.check()
        line = {"id": self.id, "progress": min(1.0, max(0.0, float(part)))}
        if message is not None:
            line["message"] = str(message)
        self._output.write(line)

    def partial(self, value):
        """Hands out a part of the output, any JSON value, before the rest. Raises `Cancelled` as `check` does."""
        self.check()
        self._output.write({"id": self.id, "partial": value})

    def _cancel(self):
        self._stop.set()
        running, loop = self._running, self._loop
        if running is not None:
            try:
                loop.call_soon_threadsafe(running.cancel)
            except RuntimeError:
                pass  # the loop has ended, and the task with it


class Model:
    """A function that serves tasks; `model` makes it. It can still be called as the function it was."""

    def __init__(self, function, batch=False):
        self.function = function
        self.batch = batch
        self.takes_task = _positional(function) >= 2
        self.__name__ = getattr(function, "__name__", "model")
        self.__doc__ = function.__doc__

    def __call__(self, *arguments, **named):
        return self.function(*arguments, **named)

    def serve(self):
        """Serves until the worker closes stdin."""
        output = _Output.take_stdout()
        calls = queue.SimpleQueue()
        open_tasks = {}
        threading.Thread(target=_read, args=(output, calls, open_tasks), daemon=True).start()
        loop = asyncio.new_event_loop() if _is_async(self.function) else None
        try:
            while (tasks := calls.get()) is not None:
                self._call(tasks, loop, output, open_tasks)
        except BrokenPipeError:
            # The worker is gone. The other thread may still be in a read, in which the interpreter cannot end in good order.
            os._exit(0)

    def _call(self, tasks, loop, output, open_tasks):
        if self.batch:
            answers = self._together(tasks, loop)
        elif loop is not None:
            answers = loop.run_until_complete(self._side_by_side(tasks))
        else:
            answers = ((task, self._one(task)) for task in tasks)
        for task, answer in answers:
            # No more to be cancelled: the next line with its id would be of another attempt.
            open_tasks.pop(task.id, None)
            output.answer(task.id, answer)

    def _arguments(self, input, task):
        return (input, task) if self.takes_task else (input,)

    def _one(self, task):
        try:
            task.check()
            result = self.function(*self._arguments(task.input, task))
            return _drained(result, task) if inspect.isgenerator(result) else result
        except BaseException as error:
            return _caught(error)

    async def _side_by_side(self, tasks):
        loop = asyncio.get_running_loop()
        for task in tasks:
            task._loop = loop
            task._running = loop.create_task(self._one_async(task))
            # It may have been cancelled before it could be told.
            if task.cancelled:
                task._running.cancel()
        answers = await asyncio.gather(*(task._running for task in tasks), return_exceptions=True)
        return [(task, _caught(answer) if _failed(answer) else answer) for task, answer in zip(tasks, answers)]

    async def _one_async(self, task):
        result = self.function(*self._arguments(task.input, task))
        if not inspect.isasyncgen(result):
            return await result
        # An asynchronous generator returns nothing: its parts are the output.
        parts = []
        async for part in result:
            task.partial(part)
            parts.append(part)
        return parts

    def _together(self, tasks, loop):
        try:
            inputs = [task.input for task in tasks]
            outputs = self.function(*self._arguments(inputs, tasks))
            if loop is not None:
                outputs = loop.run_until_complete(outputs)
            outputs = list(outputs)
            if len(outputs) != len(tasks):
                raise TaskError("bad_output", f"the model gave {len(outputs)} outputs for {len(tasks)} inputs")
        except BaseException as error:
            outputs = [_caught(error)] * len(tasks)
        return zip(tasks, outputs)


def model(function=None, *, batch=False):
    """Makes a function a `Model`: as `@model`, or `@model(batch=True)` for one that takes many inputs at once."""
    if function is None:
        return lambda function: Model(function, batch)
    return Model(function, batch)


class _Output:
    """The lines to the worker. Any thread may write."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.lock = threading.Lock()

    @classmethod
    def take_stdout(cls):
        # What the model and its libraries print, also from C, is not to get among the answers.
        sys.stdout.flush()
        descriptor = os.dup(1)
        os.dup2(2, 1)
        return cls(descriptor)

    def write(self, line):
        rest = memoryview(_json(line) + b"\n")
        with self.lock:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]

    def answer(self, id, answer):
        if not isinstance(answer, BaseException):
            try:
                return self.write({"id": id, "output": answer})
            except (TypeError, ValueError, RecursionError) as error:
                answer = TaskError("bad_output", f"the output is not JSON: {error}")
        if not isinstance(answer, TaskError):
            answer = _caught(answer)
        error = {"code": answer.code, "message": answer.message, "retryable": answer.retryable}
        self.write({"id": id, "error": error})


def _read(output, calls, open_tasks):
    """Passes calls on, and cancels tasks while the function runs. Ends with stdin."""
    for line in sys.stdin.buffer:
        value = json.loads(line)
        if isinstance(value, dict) and "cancel" in value:
            task = open_tasks.get(value["cancel"])
            if task is not None:
                task._cancel()
            continue
        tasks = [Task(request, output) for request in (value if isinstance(value, list) else [value])]
        open_tasks.update((task.id, task) for task in tasks)
        calls.put(tasks)
    # The worker is gone: nobody waits for what is still open.
    for task in list(open_tasks.values()):
        task._cancel()
    calls.put(None)


def _drained(parts, task):
    while True:
        try:
            part = next(parts)
        except StopIteration as end:
            return end.value
        try:
            task.partial(part)
        except Cancelled:
            parts.close()
            raise


def _failed(answer):
    return isinstance(answer, BaseException)


def _caught(error):
    """The failure that an exception of the function stands for. What nobody named is in the log with its place."""
    if isinstance(error, TaskError):
        return error
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
        return Cancelled()
    if isinstance(error, SystemExit):
        raise error
    traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    return TaskError("exception", f"{type(error).__name__}: {error}", isinstance(error, PASSING))


def _json(value):
    text = json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Half a character cannot be sent.
    return text.encode("utf-8", "replace")


def _plain(value):
    """Arrays and numbers of NumPy and its likes, and data classes, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _positional(function):
    """How many arguments it takes by their place, at most."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(function).parameters.values())


def _is_async(function):
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
