# SPDX-License-Identifier: Apache-2.0
"""The stand-in for QEMU's system emulator, as tests start it."""

import socket
import subprocess

from qmp import Qmp
from tidemark import TIMEOUT, compat

MACHINE = compat("qemu-system-x86_64")
QUIET = ["-nodefaults", "-display", "none", "-accel", "qtest"]


class Machine:
    """A machine with QMP and qtest on sockets that it inherits; `log` takes what it logs."""

    def __init__(self, folder, *options, log=None):
        ours, its = socket.socketpair()
        self.qtest, its_qtest = socket.socketpair()
        command = [
            MACHINE,
            *QUIET,
            "-chardev",
            f"socket,id=mon,fd={its.fileno()}",
            "-mon",
            "chardev=mon,mode=control",
            "-chardev",
            f"socket,id=qtest,fd={its_qtest.fileno()}",
            "-qtest",
            "chardev:qtest",
            *options,
        ]
        with its, its_qtest:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                pass_fds=(its.fileno(), its_qtest.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.qmp = Qmp(ours)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.qmp.close()
        self.qtest.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=TIMEOUT)

    def hmp(self, line):
        return self.qmp.command("human-monitor-command", command_line=line)

    def end(self):
        """Quit; what it has printed."""
        self.qmp.command("quit")
        output, _ = self.process.communicate(timeout=TIMEOUT)
        return output
