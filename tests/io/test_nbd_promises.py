# SPDX-License-Identifier: Apache-2.0
"""What flags of NBD requests promise, whole answers through full sockets, contexts of the right
export, errors of servers.
"""

import os
import random
import struct
import time

import nbd
import nbd_raw
from nbd_raw import ACK, EINVAL, GO, READ, SET_META, WRITE, RawClient, go_data, meta_data
from nbd_server import NbdServer, Nbdkit
from qmp import QmpError
from nbd_hostile import Hostile, chunk
from tidemark import TestCase, can_connect, io

MIB = 1 << 20
SIZE = 8 * MIB


class Zeroes(TestCase):
    def test_no_hole_keeps_the_space(self):
        disk = self.path("disk.raw")
        with open(disk, "wb") as f:
            f.write(b"x" * MIB)
        handle = nbd.NBD()
        handle.connect_unix(self.own(NbdServer(self.dir, "-f", "raw", "--discard=unmap", disk)).socket)
        full = os.stat(disk).st_blocks
        handle.zero(MIB // 2, 0, nbd.CMD_FLAG_NO_HOLE)
        handle.flush()
        self.assertGreaterEqual(os.stat(disk).st_blocks, full)
        handle.zero(MIB // 2, 0)
        handle.flush()
        self.assertLessEqual(os.stat(disk).st_blocks, full - MIB // 2 // 512)

    def test_fast_zeroes_are_fast_or_refused(self):
        below = self.own(Nbdkit(self.dir, "--filter=nozero", "memory", "size=1M"))
        handle = nbd.NBD()
        handle.connect_unix(self.own(NbdServer(self.dir, "-f", "raw", below.uri())).socket)
        handle.pwrite(b"x" * 65536, 0)
        with self.assertRaises(nbd.Error) as caught:
            handle.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
        self.assertEqual(caught.exception.errno, "ENOTSUP")
        self.assertEqual(handle.pread(65536, 0), b"x" * 65536)
        handle.zero(65536, 0)
        self.assertEqual(handle.pread(65536, 0), bytes(65536))


class Answers(TestCase):
    def setUp(self):
        super().setUp()
        self.content = random.Random(2).randbytes(SIZE)
        self.disk = self.path("disk.raw")
        with open(self.disk, "wb") as f:
            f.write(self.content)
        self.server = self.own(NbdServer(self.dir, "-f", "raw", self.disk))

    def test_all_bits_of_a_cookie_come_back(self):
        cookie = 0xFEDCBA9876543210
        for form in ("simple", "structured", "extended"):
            with self.subTest(form=form), RawClient(self.server.socket) as client:
                if form == "extended":
                    client.negotiate_extended()
                client.go(structured=form != "simple")
                client.request(READ, 0, 512, cookie=cookie)
                if form == "simple":
                    self.assertEqual(client.simple_reply(), (cookie, 0))
                    client.receive(512)
                else:
                    self.assertEqual(client.chunk()[0], cookie)
                client.request(WRITE, 0, 512, cookie=cookie - 1, payload=self.content[:512])
                got = client.simple_reply() if form == "simple" else client.chunk()
                self.assertEqual(got[0], cookie - 1)

    def test_answers_that_fill_the_socket_arrive_whole(self):
        with RawClient(self.server.socket) as client:
            client.go()
            for n in range(8):
                client.request(READ, n * MIB, MIB, flags=4, cookie=n)  # in one chunk each
            time.sleep(0.3)
            seen = set()
            for _ in range(8):
                cookie, _, _, payload = client.chunk()
                self.assertEqual(payload[8:], self.content[cookie * MIB : (cookie + 1) * MIB])
                seen.add(cookie)
            self.assertEqual(seen, set(range(8)))


class Contexts(TestCase):
    """Two exports of one server; the first has a bitmap."""

    def setUp(self):
        super().setUp()
        self.socket = self.path("nbd.sock")
        for name in "ab":
            self.create(f"{name}.raw", "1M", "raw")
        self.server = daemon = self.daemon(
            *(f"--blockdev=driver=file,node-name={n},filename={self.path(n + '.raw')}" for n in "ab"),
            "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
        )  # fmt: skip
        daemon.qmp.command("block-dirty-bitmap-add", node="a", name="bits")
        for name, more in (("a", {"bitmaps": ["bits"]}), ("b", {})):
            more["node-name"] = name
            daemon.qmp.command("block-export-add", type="nbd", id=name, name=name, writable=True, **more)
        daemon.wait_for(lambda: can_connect(self.socket), "the NBD server")

    def client(self):
        client = RawClient(self.socket)
        self.addCleanup(client.sock.close)
        client.negotiate_structured()
        queries = meta_data(b"a", b"base:allocation", b"qemu:dirty-bitmap:bits")
        self.assertEqual(len(client.ask(SET_META, queries)), 3)
        return client

    def test_a_bitmap_that_may_change_is_none_for_who_only_reads(self):
        with self.assertRaisesRegex(QmpError, "Enabled bitmap 'bits' incompatible with readonly export"):
            self.server.qmp.command("block-export-add", type="nbd", id="r", name="r", bitmaps=["bits"],
                                    **{"node-name": "a"})  # fmt: skip

    def test_a_bitmap_of_an_unrelated_node_that_nobody_writes(self):
        command = self.server.qmp.command
        command("blockdev-add", driver="null-co", node_name="n", size=1 << 20)
        command("block-dirty-bitmap-add", node="n", name="more")
        export = {"type": "nbd", "id": "r", "name": "r", "node-name": "b",
                  "bitmaps": [{"node": "n", "name": "more"}]}  # fmt: skip
        command("block-export-add", **export)
        with self.assertRaisesRegex(QmpError, "'write' are .* unshared by NBD export 'r'"):
            command("block-export-add", type="nbd", id="w", writable=True, **{"node-name": "n"})
        command("block-export-del", id="r", mode="hard")
        self.server.qmp.wait_event("BLOCK_EXPORT_DELETED")
        command("block-export-add", type="nbd", id="w", writable=True, **{"node-name": "n"})
        with self.assertRaisesRegex(QmpError, "incompatible with readonly export: node 'n' can be"):
            command("block-export-add", **export)

    def test_nor_may_it_change_later(self):
        """While the export lives nobody gets to write the node whose bitmap it offers."""
        path = self.create("c.qcow2", "1M")
        command = self.server.qmp.command
        node = {"driver": "qcow2", "node-name": "c", "file": {"driver": "file", "filename": path}}
        command("blockdev-add", **node)
        command("block-dirty-bitmap-add", node="c", name="bits", persistent=True)
        command("blockdev-reopen", options=[{**node, "read-only": True}])
        export = {"type": "nbd", "id": "r", "name": "r", "node-name": "c",
                  "bitmaps": [{"node": "c", "name": "bits"}]}  # fmt: skip
        command("block-export-add", **export)
        command("blockdev-reopen", options=[{**node, "read-only": False}])
        with self.assertRaisesRegex(QmpError, "'write' are .* unshared by NBD export 'r'"):
            command("block-export-add", type="nbd", id="w", name="w", writable=True,
                    **{"node-name": "c"})  # fmt: skip
        command("block-export-del", id="r", mode="hard")
        command("block-export-add", type="nbd", id="w", name="w", writable=True, **{"node-name": "c"})

    def test_an_export_with_clients_is_not_deleted_safely(self):
        client = RawClient(self.socket)
        self.addCleanup(client.sock.close)
        client.go(b"b")
        actions = [{"type": "block-export-del", "data": {"id": "b"}}]
        with self.assertRaisesRegex(QmpError, "still in use"):
            self.server.qmp.command("transaction", actions=actions)
        client.request(READ, 0, 512)
        self.assertEqual(client.error(), 0)

    def test_an_export_is_not_deleted_twice(self):
        actions = [{"type": "block-export-del", "data": {"id": "a", "mode": "hard"}}] * 2
        with self.assertRaisesRegex(QmpError, "Export 'a' is not found"):
            self.server.qmp.command("transaction", actions=actions)
        self.assertEqual({e["id"] for e in self.server.qmp.command("query-block-exports")}, {"a", "b"})

    def test_one_name_for_two_exports_of_a_transaction(self):
        actions = [
            {"type": "block-export-add", "data": {"type": "nbd", "id": i, "name": "same", "node-name": "b"}}
            for i in ("one", "two")
        ]
        with self.assertRaisesRegex(QmpError, "already has export named 'same'"):
            self.server.qmp.command("transaction", actions=actions)
        self.assertEqual({e["id"] for e in self.server.qmp.command("query-block-exports")}, {"a", "b"})

    def test_a_selection_holds_for_its_own_export(self):
        client = self.client()
        self.assertEqual(client.ask(GO, go_data(b"a"))[-1][0], ACK)
        client.request(nbd_raw.BLOCK_STATUS, 0, 4096)
        self.assertEqual([kind for kind, _ in client.chunks() if kind], [5, 5])

    def test_and_not_for_another_that_is_gone_to(self):
        client = self.client()
        self.assertEqual(client.ask(GO, go_data(b"b"))[-1][0], ACK)
        client.request(nbd_raw.BLOCK_STATUS, 0, 4096)
        self.assertEqual(client.error(), EINVAL)

    def test_nor_for_one_that_is_named_in_the_old_way(self):
        client = self.client()
        client.option(nbd_raw.EXPORT_NAME, b"b")
        client.receive(10)
        client.request(nbd_raw.BLOCK_STATUS, 0, 4096)
        self.assertEqual(client.error(), EINVAL)


class Server(TestCase):
    def test_a_second_server_is_refused_and_the_first_goes_on(self):
        paths = [self.path("one"), self.path("two")]
        disk = self.create("disk.raw", "1M", "raw")
        daemon = self.daemon(f"--blockdev=driver=file,node-name=disk,filename={disk}")
        addresses = [{"type": "unix", "data": {"path": path}} for path in paths]
        daemon.qmp.command("nbd-server-start", addr=addresses[0])
        daemon.qmp.command("block-export-add", type="nbd", id="e", **{"node-name": "disk"})
        with self.assertRaisesRegex(QmpError, "already running"):
            daemon.qmp.command("nbd-server-start", addr=addresses[1])
        self.assertFalse(os.path.exists(paths[1]))
        with RawClient(paths[0]) as client:
            client.go(b"disk")


class Client(TestCase):
    def test_errors_of_all_commands_are_told(self):
        for command, rate, error in (
            ("write 0 4k", "error-pwrite-rate", "No space left on device"),
            ("write -z 0 64k", "error-zero-rate", "No space left on device"),
            ("read 0 4k", "error-pread-rate", "No space left on device"),
        ):
            with self.subTest(command=command):
                server = self.own(
                    Nbdkit(self.dir, "--filter=error", "memory", "size=1M", "error=ENOSPC", f"{rate}=100%",
                           name=rate)
                )  # fmt: skip
                result = io(server.uri(), command, fmt="raw", check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn(error, result.stdout + result.stderr)

    def test_an_answer_to_an_earlier_request_is_none_to_this_one(self):
        """It has the same place among those in flight, but not the same number."""

        def on_request(send, kind, cookie, offset, length):
            send(chunk(cookie ^ (1 << 40), 1, struct.pack(">Q", offset) + b"x" * length))

        path = self.path("h")
        server = Hostile(path, on_request=on_request)
        self.addCleanup(server.close)
        result = io(f"nbd+unix:///?socket={path}", "read 0 4k", fmt="raw", check=False, timeout=20)
        self.assertIn("read failed", result.stdout + result.stderr)

    def test_parts_that_overlap_do_not_make_up_for_one_that_lacks(self):
        def on_request(send, kind, cookie, offset, length):
            half = struct.pack(">Q", offset) + b"x" * (length // 2)
            send(chunk(cookie, 1, half, flags=0) + chunk(cookie, 1, half))

        path = self.path("h2")
        server = Hostile(path, on_request=on_request)
        self.addCleanup(server.close)
        result = io(f"nbd+unix:///?socket={path}", "read 0 8k", fmt="raw", check=False, timeout=20)
        self.assertIn("read failed", result.stdout + result.stderr)
