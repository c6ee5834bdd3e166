"""Ctrl-C and polite kills, let in only where something is waited for.

Everywhere else a signal is remembered until then: nothing is started that nobody ends, and no ending is cut short.
"""

import signal
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Asked to stop."""


_came = False
_is_welcome = False


def _handle(_number, _frame):
    global _came
    _came = True
    if _is_welcome:
        raise Interrupted


def install():
    for number in SIGNALS:
        signal.signal(number, _handle)


@contextmanager
def interruptible():
    """Within it a signal raises Interrupted; one that came before does so at once."""
    global _is_welcome
    if _came:
        raise Interrupted
    _is_welcome = True
    try:
        if _came:
            raise Interrupted
        yield
    finally:
        _is_welcome = False
