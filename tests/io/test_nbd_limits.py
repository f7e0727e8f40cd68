# SPDX-License-Identifier: Apache-2.0
"""How many clients a server, an address and an export may have; the default export."""

import socket
import unittest

import nbd
from nbd_raw import ACK, EXPORT_NAME, GO, INFO, LIST, RawClient, go_data
from qmp import QmpError
from tidemark import Process, TestCase, tool

SIZE = 1 << 20
ERR_POLICY = 0x80000002
NODES = [word for n in "ab" for word in ("--blockdev", f"null-co,node-name={n},size={SIZE}")]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def connects(host, port):
    """A connection that the server keeps; None if it hangs up."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(5)
    try:
        sock.connect((host, port))
        if sock.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC":
            return sock
    except OSError:
        pass
    sock.close()
    return None


class Addresses(TestCase):
    def open(self, count, *hosts):
        """Connections that are kept."""
        found = []
        for host in hosts:
            for _ in range(count):
                sock = connects(host, self.port)
                if sock:
                    self.addCleanup(sock.close)
                    found.append(sock)
        return found

    def test_each_address_has_its_own_limit(self):
        disk = self.create("disk.raw", "1M", fmt="raw")
        self.port = free_port()
        server = self.own(Process(
            [*tool("nbd"), "-t", "-e", "0", "--max-per-address=3", "-f", "raw", "-p",
             str(self.port), disk], self.path("log"),
        ))  # fmt: skip
        server.wait_for(lambda: connects("127.0.0.1", self.port), "the server")
        first = self.open(5, "127.0.0.1")
        self.assertLessEqual(len(first), 3)
        self.assertGreaterEqual(len(first), 2)
        # Another address is not concerned.
        self.assertEqual(len(self.open(1, "::1")), 1)
        # Who goes makes room.
        for sock in first:
            sock.close()
        server.wait_for(lambda: connects("127.0.0.1", self.port), "room")
        self.assertEqual(server.log().count("refused, since its address has 3 connections"), 1)

    def test_the_limit_is_an_option_of_the_daemon_and_unix_sockets_have_none(self):
        self.port = free_port()
        daemon = self.daemon()
        daemon.qmp.command(
            "nbd-server-start", addr={"type": "inet", "data": {"host": "127.0.0.1",
                                                               "port": str(self.port)}},
            **{"x-max-connections-per-address": 1},
        )  # fmt: skip
        self.assertEqual(len(self.open(3, "127.0.0.1")), 1)
        daemon.qmp.command("nbd-server-stop")
        path = self.path("sock")
        daemon.qmp.command(
            "nbd-server-start", addr={"type": "unix", "data": {"path": path}},
            **{"x-max-connections-per-address": 1},
        )  # fmt: skip
        with RawClient(path), RawClient(path), RawClient(path) as third:
            self.assertEqual(third.ask(LIST)[-1][0], ACK)


class Exports(TestCase):
    def serve(self, *exports):
        self.socket = self.path("nbd")
        words = [word for e in exports for word in ("--export", e)]
        return self.daemon(
            *NODES, "--nbd-server", f"addr.type=unix,addr.path={self.socket}", *words
        )

    def client(self, name):
        handle = nbd.NBD()
        handle.set_export_name(name)
        handle.connect_unix(self.socket)
        return handle

    def test_an_export_that_is_full_is_refused_and_another_is_not(self):
        self.serve("nbd,id=a,node-name=a,x-max-connections=1", "nbd,id=b,node-name=b")
        first = self.client("a")
        self.assertFalse(first.can_multi_conn())
        with RawClient(self.socket) as second:
            self.assertEqual(second.ask(INFO, go_data(b"a"))[-1][0], ACK)
            (kind, text), = second.ask(GO, go_data(b"a"))
            self.assertEqual(kind, ERR_POLICY)
            self.assertIn(b"export 'a' has 1 clients", text)
            self.assertEqual(second.ask(GO, go_data(b"b"))[-1][0], ACK)
        with RawClient(self.socket) as old:
            old.option(EXPORT_NAME, b"a")
            self.assertTrue(old.is_closed())
        first.shutdown()
        # The server notices that it has gone.
        for _ in range(100):
            try:
                self.client("a")
                break
            except nbd.Error:
                pass
        else:
            self.fail("no room")

    def test_the_default_export(self):
        daemon = self.serve("nbd,id=a,node-name=a", "nbd,id=b,node-name=b,x-default=on")
        with RawClient(self.socket) as client:
            replies = client.ask(INFO, go_data(b"", 1))
            self.assertIn(b"\0\1b", [data for _, data in replies])
            names = [data[4:] for _, data in client.ask(LIST)]
            self.assertEqual(sorted(names), [b"", b"a", b"b"])  # the first is of the last reply
        self.client("")
        with self.assertRaisesRegex(QmpError, "'b' is the default"):
            daemon.qmp.command("block-export-add", id="c", type="nbd", name="c", node_name="a",
                               x_default=True)  # fmt: skip
        # One that has the empty name comes first.
        daemon.qmp.command("block-export-add", id="d", type="nbd", name="", **{"node-name": "a"})
        with RawClient(self.socket) as client:
            self.assertIn(b"\0\1", [data for _, data in client.ask(INFO, go_data(b"", 1))])


if __name__ == "__main__":
    unittest.main()
