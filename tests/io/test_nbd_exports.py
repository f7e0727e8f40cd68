# SPDX-License-Identifier: Apache-2.0
"""The NBD server of the daemon: where it listens, what it exports, how it stops."""

import os
import socket
import struct
import threading
import time
import unittest

from nbd_raw import BLOCK_STATUS, IHAVEOPT, LIST_META, READ, WRITE, RawClient, meta_data
from nbd_server import NbdServer
from qmp import QmpError
from tidemark import Process, TestCase, run, tool, wait_until
from nbd_hostile import Hostile


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def greeting(family, host, port):
    with socket.socket(family) as sock:
        sock.settimeout(5)
        sock.connect((host, port))
        return sock.recv(8)


class Listening(TestCase):
    def assert_both(self, port):
        self.assertEqual(greeting(socket.AF_INET, "127.0.0.1", port), b"NBDMAGIC")
        self.assertEqual(greeting(socket.AF_INET6, "::1", port), b"NBDMAGIC")

    def test_without_a_host_on_both_families(self):
        disk, port = self.create("disk.raw", "1M", fmt="raw"), free_port()
        command = [*tool("nbd"), "-t", "-e", "0", "-f", "raw", "-p", str(port), disk]
        server = self.own(Process(command, self.path("log")))

        def answers():
            try:
                return greeting(socket.AF_INET, "127.0.0.1", port)
            except OSError:
                return None

        server.wait_for(answers, "the server")
        self.assert_both(port)

    def test_an_empty_host_is_none(self):
        daemon, port = self.daemon(), free_port()
        addr = {"type": "inet", "data": {"host": "", "port": str(port)}}
        daemon.qmp.command("nbd-server-start", addr=addr)
        self.assert_both(port)


class Exports(TestCase):
    def serve(self, *nodes):
        self.socket = self.path("nbd")
        words = [w for node in nodes for w in ("--blockdev", node)]
        return self.daemon(*words, "--nbd-server", f"addr.type=unix,addr.path={self.socket}")

    def test_bitmaps_of_one_name_from_two_nodes(self):
        daemon = self.serve("driver=null-co,node-name=a,size=1M,read-zeroes=on",
                            "driver=null-co,node-name=b,size=1M,read-zeroes=on")  # fmt: skip
        for node in ("a", "b"):
            daemon.qmp.command("block-dirty-bitmap-add", node=node, name="same")
        daemon.qmp.command("block-dirty-bitmap-disable", node="b", name="same")
        export = {"type": "nbd", "id": "e", "node_name": "a", "name": "", "writable": True}
        daemon.qmp.command("block-export-add", **export, bitmaps=["same", {"node": "b", "name": "same"}])
        with RawClient(self.socket) as client:
            client.go(contexts=[b"qemu:dirty-bitmap:same"])
            client.request(WRITE, 0, 65536, payload=bytes(65536))
            self.assertEqual(client.error(), 0)
            client.request(BLOCK_STATUS, 0, 1 << 20)
            states = [payload[4:12] for _, payload in client.chunks()]
        self.assertEqual(states, [b"\0\1\0\0\0\0\0\1", b"\0\x10\0\0\0\0\0\0"])

    def test_one_bitmap_is_not_given_twice(self):
        daemon = self.serve("driver=null-co,node-name=a,size=1M")
        daemon.qmp.command("block-dirty-bitmap-add", node="a", name="same")
        with self.assertRaisesRegex(QmpError, "given twice"):
            daemon.qmp.command("block-export-add", type="nbd", id="e", node_name="a", name="", writable=True,
                               bitmaps=["same", {"node": "a", "name": "same"}])  # fmt: skip

    def test_a_backend_that_hangs_does_not_keep_the_monitor(self):
        silent = Hostile(self.path("silent"), on_request=lambda *request: None)
        self.addCleanup(silent.close)
        daemon = self.serve(f"driver=nbd,node-name=a,server.type=unix,server.path={self.path('silent')}")
        daemon.qmp.command("block-export-add", type="nbd", id="e", node_name="a", name="")
        with RawClient(self.socket) as client:
            client.go()
            client.request(READ, 0, 512)
            time.sleep(0.2)
            begun = time.monotonic()
            with self.assertRaisesRegex(QmpError, "requests in work that don't end"):
                daemon.qmp.command("nbd-server-stop")
            self.assertLess(time.monotonic() - begun, 15)
            self.assertEqual(daemon.qmp.command("query-nbd-server")["running"], True)
        daemon.kill()

    def test_a_server_that_stops_late_leaves_its_path_to_the_next(self):
        begun, end = threading.Event(), threading.Event()

        def hang(*request):
            begun.set()
            end.wait()
            raise EOFError

        slow = Hostile(self.path("slow"), on_request=hang)
        self.addCleanup(slow.close)
        daemon = self.serve(f"driver=nbd,node-name=a,server.type=unix,server.path={self.path('slow')}")
        daemon.qmp.command("block-export-add", type="nbd", id="e", node_name="a", name="")
        with RawClient(self.socket) as client:
            client.go()
            client.request(READ, 0, 512)
            self.assertTrue(begun.wait(20))
            with self.assertRaisesRegex(QmpError, "requests in work that don't end"):
                daemon.qmp.command("nbd-server-stop")
        with socket.socket(socket.AF_UNIX) as following:
            following.bind(self.socket)
            following.listen()
            end.set()
            wait_until(lambda: not daemon.qmp.command("query-nbd-server")["running"], "the stop")
            self.assertTrue(os.path.exists(self.socket))
        daemon.stop()

    def test_clients_negotiate_in_a_thread_of_their_own(self):
        """A thousand handshakes take no time of the one that serves monitors."""
        daemon = self.daemon("--blockdev", "driver=null-co,node-name=disk,size=1M")
        path = self.path("s")
        daemon.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        daemon.qmp.command("block-export-add", type="nbd", id="e", **{"node-name": "disk"})

        def used():
            found = {}
            for task in os.listdir(f"/proc/{daemon.pid}/task"):
                where = f"/proc/{daemon.pid}/task/{task}"
                with open(f"{where}/schedstat", encoding="ascii") as file:
                    name = "main" if int(task) == daemon.pid else None
                    ns = int(file.read().split()[0])
                with open(f"{where}/comm", encoding="ascii") as file:
                    name = name or file.read().strip()
                found[name] = found.get(name, 0) + ns
            return found

        before = used()
        for _ in range(10):
            with RawClient(path) as client:
                client.send(struct.pack(">QII", IHAVEOPT, 4711, 0) * 1000)
                for _ in range(1000):
                    self.assertGreater(client.reply()[0], 0x80000000)
        after = used()
        main, hello = (after[name] - before[name] for name in ("main", "nbd-hello"))
        self.assertGreater(hello, 3 * main)

    def test_a_flood_of_options_keeps_no_monitor_waiting(self):
        daemon = self.serve("driver=null-co,node-name=a,size=1M")
        names = [f"bitmap-{n}" for n in range(500)]
        for name in names:
            daemon.qmp.command("block-dirty-bitmap-add", node="a", name=name)
        daemon.qmp.command("block-export-add", type="nbd", id="e", node_name="a", name="", writable=True,
                           bitmaps=names)  # fmt: skip
        clients = [RawClient(self.socket) for _ in range(10)]
        for client in clients:
            client.negotiate_structured()
            client.sock.setblocking(False)
            for _ in range(2000):
                try:
                    client.option(LIST_META, meta_data(b""))
                except BlockingIOError:
                    break
        begun = time.monotonic()
        for _ in range(5):
            daemon.qmp.command("query-block-exports")
        self.assertLess(time.monotonic() - begun, 2)
        for client in clients:
            client.sock.close()


class Goodbye(Exports):
    """The server ends clients: what is in work is answered, what comes after it is refused."""

    SLOW = "driver=null-co,node-name=disk,size=1M,latency-ns=1000000000"

    def connect(self):
        client = RawClient(self.socket)
        self.addCleanup(client.sock.close)
        client.go(b"disk")
        return client

    def start(self, requests):
        daemon = self.serve(self.SLOW)
        daemon.qmp.command("block-export-add", type="nbd", id="e", **{"node-name": "disk"})
        client = self.connect()
        for n in range(requests):
            client.request(READ, 0, 512, cookie=n)
        time.sleep(0.1)
        return daemon, client

    def answers(self, client):
        """Errors of all answers up to the end, by cookie."""
        found = {}
        try:
            while True:
                cookie, flags, kind, payload = client.chunk()
                if kind & 0x8000:
                    found[cookie] = int.from_bytes(payload[:4], "big")
                elif flags & 1:
                    found[cookie] = 0
        except (EOFError, ConnectionResetError):
            return found

    def check_end(self, end):
        daemon, client = self.start(200)
        begun = time.monotonic()
        end(daemon)
        found = self.answers(client)
        self.assertEqual(sorted(found), list(range(200)))
        self.assertEqual(set(found.values()), {0, 108})
        # As many as the server does at a time.
        self.assertEqual(list(found.values()).count(0), 128)
        self.assertLess(time.monotonic() - begun, 5)

    def test_when_the_server_stops(self):
        self.check_end(lambda daemon: daemon.qmp.command("nbd-server-stop"))

    def test_when_the_export_is_deleted(self):
        self.check_end(
            lambda daemon: daemon.qmp.command("block-export-del", id="e", mode="hard")
        )

    def test_when_the_daemon_ends(self):
        self.check_end(lambda daemon: daemon.qmp.command("quit"))

    def test_clients_that_do_not_read_are_cut_off(self):
        daemon = self.serve("driver=null-co,node-name=disk,size=64M,read-zeroes=off")
        daemon.qmp.command("block-export-add", type="nbd", id="e", **{"node-name": "disk"})
        client = RawClient(self.socket)
        self.addCleanup(client.sock.close)
        client.go(b"disk", structured=False)
        for n in range(8):
            client.request(READ, 0, 8 << 20, cookie=n)
        time.sleep(0.2)
        begun = time.monotonic()
        daemon.qmp.command("nbd-server-stop")
        self.assertLess(time.monotonic() - begun, 4)

    def test_clients_in_the_handshake_are_cut_off_at_once(self):
        daemon = self.serve(self.SLOW)
        with RawClient(self.socket) as fresh, RawClient(self.socket) as half:
            half.send(b"IHAVE")
            begun = time.monotonic()
            daemon.qmp.command("nbd-server-stop")
            self.assertLess(time.monotonic() - begun, 0.9)
            self.assertTrue(fresh.is_closed() and half.is_closed())


class Listed(TestCase):
    def test_no_command_for_the_terminal_gets_through(self):
        disk = self.create("disk.raw", "1M", fmt="raw")
        server = self.own(NbdServer(
            self.dir, "-f", "raw", "-x", "a\x1b[31mb", "-D", "line\nbreak \u009b31m \u00fc", disk
        ))  # fmt: skip
        out = run(*tool("nbd"), "-L", "-k", server.socket).stdout
        self.assertIn("export: 'a\\x1b[31mb'", out)
        self.assertIn("description: line\\x0abreak \\xc2\\x9b31m \u00fc", out)
        self.assertNotIn("\x1b", out)


if __name__ == "__main__":
    unittest.main()
