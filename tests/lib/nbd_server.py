# SPDX-License-Identifier: Apache-2.0
"""NBD servers for tests: ours and other people's."""

import os

from tidemark import Process, can_connect, qemu, tool


class NbdServer(Process):
    """`tidemark nbd` on a unix socket in `directory`; server.socket is its path."""

    def __init__(self, directory, *arguments, name="nbd", shared=0, program=None, **more):
        self.socket = os.path.join(directory, name + ".sock")
        command = program or tool("nbd")
        super().__init__(
            [*command, "-t", "-e", str(shared), "-k", self.socket, *arguments],
            os.path.join(directory, name + ".log"),
            **more,
        )
        self.wait_for(lambda: can_connect(self.socket), "the NBD server")

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def resident(self):
        """Bytes of memory in use."""
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class QemuNbd(NbdServer):
    def __init__(self, directory, *arguments, name="qemu", **more):
        super().__init__(directory, *arguments, name=name, program=[qemu("qemu-nbd")], **more)


class Nbdkit(Process):
    def __init__(self, directory, *arguments, name="nbdkit"):
        self.socket = os.path.join(directory, name + ".sock")
        super().__init__(
            [qemu("nbdkit"), "-f", "-U", self.socket, *arguments],
            os.path.join(directory, name + ".log"),
        )
        self.wait_for(lambda: can_connect(self.socket), "nbdkit")

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"
