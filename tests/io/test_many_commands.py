# SPDX-License-Identifier: Apache-2.0
"""A manager's long day: memory and descriptors stay flat however many commands there are.

TIDEMARK_COMMANDS sets their number; a million take some minutes.
"""

import json
import os
import socket

import tidemark

COMMANDS = int(os.environ.get("TIDEMARK_COMMANDS", "20000"))
# Of one round, on a connection of its own; those marked come with a descriptor.
ROUND = (
    ("query-version", {}, False),
    ("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 65536}, False),
    ("blockdev-add", {"driver": "raw", "node-name": "r", "file": "n"}, False),
    ("blockdev-add", {"driver": "raw", "node-name": "r", "file": "n"}, False),  # taken
    ("block-dirty-bitmap-add", {"node": "r", "name": "b"}, False),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "r", "name": "x"}, False),
    ("query-named-block-nodes", {}, False),
    ("query-block-exports", {}, False),
    (
        "transaction",
        {
            "actions": [
                {"type": "block-dirty-bitmap-add", "data": {"node": "r", "name": "c"}},
                {"type": "block-dirty-bitmap-add", "data": {"node": "r", "name": "b"}},
            ]
        },
        False,
    ),
    ("block-export-del", {"id": "e"}, False),
    ("block-dirty-bitmap-remove", {"node": "r", "name": "b"}, False),
    ("blockdev-del", {"node-name": "r"}, False),
    ("blockdev-del", {"node-name": "n"}, False),
    ("object-add", {"qom-type": "secret", "id": "s", "data": "x"}, False),
    ("object-del", {"id": "s"}, False),
    ("chardev-add", {"id": "c", "backend": {"type": "ringbuf", "data": {}}}, False),
    ("ringbuf-write", {"device": "c", "data": "abc"}, False),
    ("chardev-remove", {"id": "c"}, False),
    ("getfd", {"fdname": "f"}, True),
    ("closefd", {"fdname": "f"}, False),
    ("add-fd", {"fdset-id": 3}, True),
    ("remove-fd", {"fdset-id": 3}, False),
    ("getfd", {"fdname": "0"}, True),  # refused
    ("no-such-command", {"x": [1, {"y": None}]}, False),
    ("query-jobs", {}, False),
)
ROUNDS_OF_A_CONNECTION = 20


class ManyCommandsTest(tidemark.TestCase):
    def memory(self):
        """Bytes that belong to the daemon alone."""
        with open(f"/proc/{self.server.pid}/smaps_rollup", encoding="ascii") as lines:
            figures = dict(line.split(":") for line in lines if ":" in line and " kB" in line)
        return int(figures["Anonymous"].split()[0]) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def run_rounds(self, count):
        """Requests of a round are sent together; an answer each."""
        fd = os.open(os.devnull, os.O_RDONLY)
        try:
            for _ in range(max(count // ROUNDS_OF_A_CONNECTION, 1)):
                with self.server.connect() as client:
                    for _ in range(ROUNDS_OF_A_CONNECTION):
                        for command, arguments, with_fd in ROUND:
                            message = json.dumps({"execute": command, "arguments": arguments})
                            if with_fd:
                                socket.send_fds(client.sock, [message.encode()], [fd])
                            else:
                                client.send_raw(message)
                        for _ in ROUND:
                            client.receive_answer()
                        client.events.clear()
                self.server.qmp.command("query-version")
                self.server.qmp.events.clear()
        finally:
            os.close(fd)

    def test_memory_and_descriptors_are_flat(self):
        self.server = self.daemon()
        self.server.qmp.command(
            "nbd-server-start", addr={"type": "unix", "data": {"path": self.path("nbd.sock")}}
        )
        rounds = COMMANDS // len(ROUND)
        self.run_rounds(rounds // 5)  # until caches and pools have their size
        memory, descriptors = self.memory(), self.descriptors()
        for part in range(4):
            self.run_rounds(rounds // 5)
            print(f"# {part}: {self.memory()} bytes, {self.descriptors()} descriptors")
        tidemark.wait_until(lambda: self.descriptors() <= descriptors, "descriptors to be closed")
        self.assertLess(self.memory() - memory, 1 << 20)
