"""Starting and ending the programs of a turn, so that none is left behind, and what they use of the processor."""

import ctypes
import os
import signal
import subprocess
import time

STOP_TIMEOUT_S = 10
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def die_with_parent():
    """In a child before it runs its program: it is asked to end when the run itself is killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start(command, environment, log, **options):
    """A program in a session of its own: Ctrl-C reaches it through us alone, and its children can be found."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        preexec_fn=die_with_parent,
        **options,
    )


def members(session):
    """The processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(name)) and int(stat[3]) == session:
            found.append(int(name))
    return found


def read_stat(process):
    """The fields of /proc/PID/stat from the third, the state, on; None where the process has ended."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def cpu_s(sessions):
    """Processor seconds that all processes of these sessions have used so far, with their ended children's."""
    stats = [read_stat(process) for session in sessions for process in members(session)]
    # Fields 14 to 17: user and system time, and the same of children that were waited for.
    return sum(sum(map(int, stat[11:15])) for stat in stats if stat) / TICKS_PER_S


def cpu_of_named_s(name):
    """Processor seconds of all processes of this name so far; None where there is none."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
                if file.read().strip() == name and (stat := read_stat(process)):
                    found.append(sum(map(int, stat[11:13])) / TICKS_PER_S)
        except OSError:
            pass
    return sum(found) if found else None


def machine_busy_s():
    """Processor seconds that this machine has spent at work since it started, on all cores."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS_PER_S


def stop(process, timeout_s=STOP_TIMEOUT_S):
    """Ends a program and all that it started: by asking, and by force after a while."""
    session = process.pid
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
    # Children that outlived it, or all of them where it did not listen.
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while left := members(session):
        for member in left:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.poll()
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    process.wait()
