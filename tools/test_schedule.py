# SPDX-License-Identifier: Apache-2.0
"""What runs together, for tools/run-tests.

Most tests wait most of the time, and others compute. So at least `width` tests run at the same
time, and up to WIDEST times as many while a processor is idle. Chores (builds, lint, fuzz targets)
do not depend on the clock. They run next to the tests with a low priority, `width` at a time, and
use the processors when no test does.
"""

import collections
import os
import signal
import subprocess
import threading
import time

WIDEST = 4
LOOK_SECONDS = 0.3
# Of one processor: a test is started beyond `width` when as much was idle.
ENOUGH_IDLE = 0.4
CHORE_NICE = 19

groups = set()  # processes that lead a group of their own
groups_lock = threading.Lock()
stopped = threading.Event()  # by a signal: nothing is started any more


def start_group(cmd, nice=0, **options):
    """A process that leads a session. The kernel may weigh sessions, not processes, by priority."""
    with groups_lock:
        if stopped.is_set():
            raise InterruptedError("stopped by a signal")
        process = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        groups.add(process.pid)
    if nice:
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, process.pid, max(nice, ours))
        try:
            with open(f"/proc/{process.pid}/autogroup", "w") as f:
                f.write(str(nice))
        except OSError:
            pass  # a kernel without it
    return process


def kill_group(process):
    """Call before the process is reaped: until then its number stands for this group."""
    os.killpg(process.pid, signal.SIGKILL)
    with groups_lock:
        groups.discard(process.pid)


def stop_on_signals():
    """A signal to this process reaches none of the groups: it ends them."""

    def stop(number, _frame):
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def kill_all_groups():
    with groups_lock:
        for pid in groups:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def run_quietly(cmd, nice=0):
    """Run to its end; return the exit status and what it printed."""
    process = start_group(cmd, nice, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    kill_group(process)
    return process.wait(), output


class Processors:
    """How many of the machine's processors are idle."""

    def __init__(self):
        self.last = self.read()

    def read(self):
        try:
            with open("/proc/stat") as f:
                lines = f.read().splitlines()
        except OSError:
            return None
        count = sum(line.startswith("cpu") for line in lines) - 1
        return count, [int(field) for field in lines[0].split()[1:9]]

    def idle(self, with_nice):
        """Since the last call; with_nice: those that run at low priority count as idle."""
        before, now = self.last, self.read()
        self.last = now
        if not before or not now:
            return 0.0
        spent = [b - a for a, b in zip(before[1], now[1])]
        _user, nice, _system, idle, iowait = spent[:5]
        return now[0] * (idle + iowait + (nice if with_nice else 0)) / max(sum(spent), 1)


class Schedule:
    """Tests and chores are functions without arguments; they may add more."""

    def __init__(self, width):
        self.width = width
        self.changed = threading.Condition()
        self.processors = Processors()
        self.looked = time.monotonic()
        self.tests = []  # (how long it may take, test)
        self.alone = collections.deque()
        self.chores = collections.deque()
        self.running = 0
        self.busy = 0
        self.errors = []  # exceptions of tests and chores: defects of the runner

    def add_test(self, test, seconds, alone=False):
        """Those that may take longest are started first; `alone`: nothing runs meanwhile."""
        with self.changed:
            if alone:
                self.alone.append(test)
            else:
                self.tests.append((seconds, test))
            self.changed.notify_all()

    def add_chore(self, chore):
        with self.changed:
            self.chores.append(chore)
            self.changed.notify_all()

    def finished(self):
        return not (self.tests or self.chores or self.running or self.busy)

    def has_room(self):
        if self.running < self.width:
            return True
        if self.running >= WIDEST * self.width or time.monotonic() < self.looked + LOOK_SECONDS:
            return False
        self.looked = time.monotonic()
        return self.processors.idle(with_nice=self.busy > 0) >= ENOUGH_IDLE

    def run_test(self, test):
        try:
            test()
        except Exception as error:
            self.errors.append(error)
        finally:
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def run_chores(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.chores or self.finished())
                if not self.chores:
                    return
                chore = self.chores.popleft()
                self.busy += 1
            try:
                chore()
            except Exception as error:
                self.errors.append(error)
            finally:
                with self.changed:
                    self.busy -= 1
                    self.changed.notify_all()

    def start_tests(self):
        with self.changed:
            while not self.finished():
                if self.tests and self.has_room():
                    longest = max(self.tests, key=lambda entry: entry[0])
                    self.tests.remove(longest)
                    self.running += 1
                    threading.Thread(target=self.run_test, args=[longest[1]], daemon=True).start()
                else:
                    self.changed.wait(LOOK_SECONDS)

    def run(self):
        try:
            for _ in range(self.width):
                threading.Thread(target=self.run_chores, daemon=True).start()
            self.start_tests()
            for test in self.alone:
                test()
        except BaseException:
            stopped.set()
            raise
        finally:
            kill_all_groups()
        if self.errors:
            raise self.errors[0]
