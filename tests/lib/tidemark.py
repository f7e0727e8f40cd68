# SPDX-License-Identifier: Apache-2.0
"""What tests of whole programs share: tools, temporary directories, daemons."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from qmp import Qmp

BUILD = os.environ.get("TIDEMARK_BUILD", "build")
TIDEMARK = os.path.join(BUILD, "tidemark")
TIMEOUT = 60


def tool(name):
    """The command line that begins one of our tools: "img" is `tidemark img`."""
    return [TIDEMARK, name]


def compat(name):
    """Our program under the name of one of QEMU's tools."""
    return os.path.join(BUILD, "compat", name)


def qemu(name):
    """Path of QEMU's own tool, in the folder TIDEMARK_QEMU if that is set. The test needs it, so
    its absence is an error.
    """
    path = shutil.which(name, path=os.environ.get("TIDEMARK_QEMU"))
    if path is None:
        raise FileNotFoundError(f"{name} is not installed (see dependencies.txt)")
    return path


def run(*command, check=True, timeout=TIMEOUT, **more):
    """Run a command; its result with text in stdout and stderr. With check, failure is an error
    that shows what it printed."""
    more.setdefault("stdin", subprocess.DEVNULL)
    command = [str(word) for word in command]
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=False,
        **more,
    )
    if check and result.returncode != 0:
        raise AssertionError(
            f"{' '.join(command)}: exit {result.returncode}\n{result.stdout}{result.stderr}"
        )
    return result


def img(*arguments, **more):
    return run(*tool("img"), *arguments, **more)


def io(image, *commands, fmt=None, options=(), **more):
    """`tidemark io` with -c for each command."""
    words = [word for command in commands for word in ("-c", command)]
    how = ["-f", fmt] if fmt else []
    return run(*tool("io"), *how, *options, *words, image, **more)


def qemu_img(*arguments, check=True, **more):
    """QEMU measures the speed of its key derivation, and gives up where that is unsteady."""
    for _ in range(5):
        result = run(qemu("qemu-img"), *arguments, check=False, **more)
        if "Unable to get accurate CPU usage" not in result.stderr:
            break
    if check and result.returncode != 0:
        raise AssertionError(f"{result.args}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def qemu_io(image, *commands, fmt=None, options=(), **more):
    words = [word for command in commands for word in ("-c", command)]
    how = ["-f", fmt] if fmt else []
    return run(qemu("qemu-io"), *how, *options, *words, image, **more)


def open_paths(pid):
    """What a process has open; files that it closes meanwhile may be missing."""
    folder = f"/proc/{pid}/fd"
    paths = []
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.readlink(os.path.join(folder, fd)))
    return paths


def wait_until(condition, what, timeout=20):
    """Poll until condition() is true; its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.01)


def freeze(pid):
    """Stop a process by SIGSTOP. The signal takes effect some time after kill(): until every thread
    has stopped, the process may still answer.
    """

    def has_stopped():
        tasks = f"/proc/{pid}/task"
        states = []
        for task in os.listdir(tasks):
            try:
                with open(f"{tasks}/{task}/stat", encoding="ascii", errors="replace") as stat:
                    states.append(stat.read().rsplit(")", 1)[1].split()[0])
            except (FileNotFoundError, ProcessLookupError):
                pass  # the thread has ended
        return set(states) == {"T"}

    os.kill(pid, signal.SIGSTOP)
    wait_until(has_stopped, f"process {pid} to stop")


class Process:
    """A server in the background. stop() ends it and checks how it ended."""

    def __init__(self, command, log_path, **more):
        self.command = [str(word) for word in command]
        self.log_path = log_path
        more.setdefault("stdin", subprocess.DEVNULL)
        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, **more)

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def is_running(self):
        return self.process.poll() is None

    def wait_for(self, condition, what, timeout=20):
        """As wait_until(), but an end of the process is an error that shows its log."""

        def check():
            value = condition()
            if not value and not self.is_running():
                raise AssertionError(
                    f"{' '.join(self.command)}: exit {self.process.returncode}\n{self.log()}"
                )
            return value

        return wait_until(check, what, timeout)

    def wait(self, timeout=TIMEOUT):
        return self.process.wait(timeout)

    def stop(self, sig=signal.SIGTERM, expect=0, timeout=TIMEOUT):
        """Send a signal and wait. `expect` is the exit status wanted; None: any."""
        if self.is_running():
            self.process.send_signal(sig)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not end in {timeout} s:\n{self.log()}") from None
        if expect is not None and status != expect:
            raise AssertionError(f"exit {status}, wanted {expect}:\n{self.log()}")
        return status

    def kill(self):
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()


def can_connect(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


class Daemon(Process):
    """`tidemark daemon` with a QMP socket in `directory`, and what `arguments` say.

    daemon.qmp is a negotiated connection; daemon.connect() makes another.
    `program` starts another program of the same grammar (QEMU's, for comparison).
    """

    def __init__(self, directory, *arguments, name="daemon", program=None, connect=True, **more):
        self.qmp_path = os.path.join(directory, name + ".qmp")
        self.qmp = None
        command = program or tool("daemon")
        super().__init__(
            [
                *command,
                "--chardev",
                f"socket,id=qmp-{name},path={self.qmp_path},server=on,wait=off",
                "--monitor",
                f"chardev=qmp-{name}",
                *arguments,
            ],
            os.path.join(directory, name + ".log"),
            **more,
        )
        self.wait_for(lambda: os.path.exists(self.qmp_path), self.qmp_path)
        if connect:
            try:
                self.qmp = self.wait_for(self.connect_if_ready, "the monitor")
            except BaseException:
                self.kill()
                raise

    def connect(self, **more):
        return Qmp(self.qmp_path, **more)

    def connect_if_ready(self):
        try:
            return self.connect()
        except (OSError, EOFError):
            return None

    def disconnect(self):
        if self.qmp is not None:
            self.qmp.close()
            self.qmp = None

    def stop(self, **more):
        self.disconnect()
        return super().stop(**more)

    def quit(self, expect=0, timeout=TIMEOUT):
        """End it by the command quit. `expect` is the exit status wanted; None: any."""
        self.qmp.command("quit")
        self.disconnect()
        status = self.wait(timeout)
        if expect is not None and status != expect:
            raise AssertionError(f"exit {status}, wanted {expect}:\n{self.log()}")
        return status


def nbd_uri(socket_path, export=""):
    return f"nbd+unix:///{export}?socket={socket_path}"


class TestCase(unittest.TestCase):
    """A test with a directory of its own (self.dir; short enough for a unix socket) and
    processes that end with it."""

    in_memory = False  # where there is a place for it: for hundreds of syncs

    def setUp(self):
        in_memory = self.in_memory and os.path.isdir("/dev/shm")
        self.dir = tempfile.mkdtemp(prefix="tm-", dir="/dev/shm" if in_memory else "/tmp")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.processes = []
        self.addCleanup(self.end_processes)

    def path(self, name):
        return os.path.join(self.dir, name)

    def own(self, process):
        """Kill it at the end of the test if it still runs."""
        self.processes.append(process)
        return process

    def daemon(self, *arguments, **more):
        daemon = self.own(Daemon(self.dir, *arguments, **more))
        self.addCleanup(daemon.disconnect)
        return daemon

    def end_processes(self):
        for process in self.processes:
            if process.is_running():
                process.kill()

    def create(self, name, size="64M", fmt="qcow2", options=()):
        """Make an image in the test's directory with our tool; its path."""
        path = self.path(name)
        img("create", "-q", "-f", fmt, *options, path, size)
        return path

    def bitmap_extents(self, image, bitmap):
        """The `qemu-img map` of a dirty bitmap, as QEMU's server shows it: what is dirty is no
        data.
        """
        path = self.path("bitmap.sock")
        server = subprocess.Popen(
            [qemu("qemu-nbd"), "-r", "-t", "-f", "qcow2", "-k", path, "-B", bitmap, image]
        )
        try:
            wait_until(lambda: os.path.exists(path), "the server's socket")
            options = (
                f"driver=nbd,server.type=unix,server.path={path},"
                f"x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
            )
            return json.loads(qemu_img("map", "--output=json", "--image-opts", options).stdout)
        finally:
            server.terminate()
            server.wait()
            if os.path.exists(path):
                os.unlink(path)
