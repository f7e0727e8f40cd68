# SPDX-License-Identifier: Apache-2.0
"""BLOCK_IO_ERROR: what a client of an export sees fail is reported to the manager."""

import errno
import time

import tidemark
from nbd_raw import EXPORT_NAME, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, RawClient

MIB = 1 << 20


class Case(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.nbd = self.path("nbd.sock")
        self.qmp = self.daemon().qmp
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": self.nbd}})

    def add(self, name, *rules, size=MIB, **more):
        self.qmp.command(
            "blockdev-add", driver="blkdebug", node_name=name, inject_error=list(rules),
            image={"driver": "null-co", "size": size, "read-zeroes": True}, **more,
        )  # fmt: skip
        self.qmp.command(
            "block-export-add", type="nbd", id=f"export-{name}", node_name=name, name=name,
            writable=True,
        )  # fmt: skip

    def client(self, name):
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.go(name.encode(), structured=False)
        return client

    def fail(self, client, request, offset=0, length=0, payload=b""):
        client.request(request, offset, length, payload=payload)
        error = client.simple_reply()[1]
        self.assertNotEqual(error, 0)
        return error

    def event(self):
        return self.qmp.wait_event("BLOCK_IO_ERROR")["data"]

    def no_event(self, seconds):
        with self.assertRaises((TimeoutError, OSError)):
            self.qmp.wait_event("BLOCK_IO_ERROR", timeout=seconds)


class Events(Case):
    def test_every_kind_of_request(self):
        for i, (kind, code, request, length, operation, word) in enumerate(
            (
                ("read", errno.EIO, READ, 4096, "read", "read"),
                ("write", errno.ENOSPC, WRITE, 4096, "write", "write"),
                ("write-zeroes", errno.EIO, WRITE_ZEROES, 8192, "write", "write-zeroes"),
                ("discard", errno.EIO, TRIM, 8192, "write", "discard"),
                ("flush", errno.EIO, FLUSH, 0, "write", "flush"),
            )
        ):
            with self.subTest(kind):
                name = f"n{i}"
                rule = {"event": "none", "iotype": kind, "errno": code, "immediately": False}
                self.add(name, rule, discard="unmap")
                client = self.client(name)
                if kind == "flush":  # of what was written
                    client.request(WRITE, 0, 512, payload=b"x" * 512)
                    self.assertEqual(client.simple_reply()[1], 0)
                offset = 0 if kind == "flush" else 65536
                payload = b"x" * length if request == WRITE else b""
                self.fail(client, request, offset, length, payload)
                self.assertEqual(
                    self.event(),
                    {
                        "qom-path": f"export-{name}",
                        "device": "",
                        "node-name": name,
                        "operation": operation,
                        "action": "report",
                        "nospace": code == errno.ENOSPC,
                        "reason": "No space left on device"
                        if code == errno.ENOSPC
                        else "Input/output error",
                        "x-request": word,
                        "x-offset": offset,
                        "x-length": length,
                        "x-errno": code,
                        "x-count": 1,
                    },
                )

    def test_a_write_that_is_done_in_pieces(self):
        """It is longer than a client may write that knows the limit."""
        length = (32 << 20) + 4096
        rule = {"event": "none", "iotype": "write", "errno": errno.EIO, "sector": 40 << 11}
        self.add("n", rule, size=64 * MIB)
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.option(EXPORT_NAME, b"n")
        client.receive(10)
        error = self.fail(client, WRITE, 16 * MIB, length, bytes(length))
        self.assertEqual(error, errno.EIO)
        event = self.event()
        self.assertEqual((event["qom-path"], event["x-request"]), ("export-n", "write"))
        self.assertEqual((event["x-offset"], event["x-length"]), (16 * MIB, length))

    def test_at_most_one_a_second_and_the_last_one_is_not_lost(self):
        self.add("n", {"event": "none", "iotype": "write", "errno": errno.EIO})
        self.add("other", {"event": "none", "iotype": "write", "errno": errno.EIO})
        client = self.client("n")
        begin = time.monotonic()
        for i in range(200):
            self.fail(client, WRITE, i * 512, 512, b"x" * 512)
        self.fail(self.client("other"), WRITE, 0, 512, b"x" * 512)
        events = [self.event()]
        while not any(e["qom-path"] == "export-n" and e["x-count"] == 200 for e in events):
            events.append(self.event())
        elapsed = time.monotonic() - begin
        self.assertLessEqual(len([e for e in events if e["qom-path"] == "export-n"]), elapsed + 2)
        self.assertIn("export-other", [e["qom-path"] for e in events])
        self.assertEqual(events[-1]["x-offset"], 199 * 512)
        self.no_event(1.5)

    def test_mistakes_of_clients_are_no_events(self):
        self.add("n")
        client = self.client("n")
        self.fail(client, READ, 1 << 40, 512)
        self.fail(client, 99, 0, 512)
        self.no_event(0.5)

    def test_an_export_that_ends(self):
        self.add("n", {"event": "none", "iotype": "write", "errno": errno.EIO})
        client = self.client("n")
        for _ in range(3):
            self.fail(client, WRITE, 0, 512, b"x" * 512)
        self.qmp.command("block-export-del", id="export-n", mode="hard")
        counts = [self.event()["x-count"]]
        while counts[-1] < 3:
            counts.append(self.event()["x-count"])
        self.add("m", {"event": "none", "iotype": "write", "errno": errno.EIO})
        self.fail(self.client("m"), WRITE, 0, 512, b"x" * 512)
        self.assertEqual(self.event()["qom-path"], "export-m")

    def test_many_clients_and_the_end_of_the_daemon(self):
        self.add("n", {"event": "none", "iotype": "write", "errno": errno.EIO})
        clients = [self.client("n") for _ in range(8)]
        for client in clients:
            for i in range(50):
                client.request(WRITE, i * 512, 512, payload=b"x" * 512)
        for client in clients:
            for _ in range(50):
                self.assertNotEqual(client.simple_reply()[1], 0)
        self.event()
        self.processes[0].quit()
