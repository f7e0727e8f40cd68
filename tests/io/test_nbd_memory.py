# SPDX-License-Identifier: Apache-2.0
"""Memory and time that the NBD server spends on clients who ask for much and don't take it."""

import fcntl
import os
import socket
import struct
import termios
import time
import unittest

from nbd_raw import REQUEST_MAGIC, RawClient
from nbd_server import NbdServer
from tidemark import TestCase

READ, WRITE, BLOCK_STATUS, DF = 0, 1, 7, 4
MIB = 1 << 20
SIZE = 64 * MIB


def pattern(offset, length):
    return b"".join(struct.pack(">Q", at + 1) * 64 for at in range(offset, offset + length, 512))


class Greedy(TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as file:
            file.write(pattern(0, SIZE))
        self.server = self.own(NbdServer(self.dir, "-f", "raw", self.image))

    def connect(self, structured=True):
        client = RawClient(self.server.socket, timeout=60)
        self.addCleanup(client.sock.close)
        client.go(structured=structured)
        return client

    def slow_readers(self, count, length, requests):
        """Clients who ask and don't read."""
        clients = [self.connect() for _ in range(count)]
        for client in clients:
            client.sock.setblocking(False)
            try:
                for cookie in range(requests):
                    client.request(READ, 0, length, cookie=cookie)
            except BlockingIOError:
                pass  # the server has stopped reading
        time.sleep(1)
        return clients

    def cpu(self):
        with open(f"/proc/{self.server.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def data(self, client, offset, length):
        found = bytearray(length)
        for kind, payload in client.chunks():
            self.assertEqual(kind, 1)
            at = int.from_bytes(payload[:8], "big") - offset
            found[at : at + len(payload) - 8] = payload[8:]
        return bytes(found)

    def test_refused_payloads_are_received_in_large_pieces(self):
        client = self.connect()
        client.request(WRITE, 0, MIB, payload=pattern(0, MIB))
        self.assertEqual(client.error(), 0)
        before = self.cpu()
        client.request(WRITE, SIZE, 32 * MIB, payload=bytes(32 * MIB))
        self.assertEqual(client.error(), 28)
        self.assertLess(self.cpu() - before, 3)  # byte by byte it took a quarter of a minute

    def test_memory_is_bounded_over_all_connections_and_given_back(self):
        clients = self.slow_readers(40, 32 * MIB, 3)
        self.assertLess(self.server.resident(), 400 * MIB)
        for client in clients:
            client.sock.close()
        self.server.wait_for(lambda: self.server.resident() < 120 * MIB, "memory to be given back")

    def test_small_requests_leave_no_memory_behind(self):
        clients = self.slow_readers(100, 65536, 128)
        self.assertLess(self.server.resident(), 400 * MIB)
        for client in clients:
            client.sock.close()
        self.server.wait_for(lambda: self.server.resident() < 120 * MIB, "memory to be given back")

    def test_clients_that_come_and_go_leave_nothing(self):
        def come_and_go(count):
            for n in range(count):
                with RawClient(self.server.socket) as client:
                    if n % 3:
                        client.go()
                        client.request(READ, 0, 4096)
                        client.chunks()

        def descriptors():
            return len(os.listdir(f"/proc/{self.server.pid}/fd"))

        come_and_go(500)
        open_before = descriptors()
        before = self.server.resident()
        come_and_go(4000)
        self.assertLess(self.server.resident(), before + MIB)  # 256 bytes for each
        self.server.wait_for(lambda: descriptors() <= open_before, "sockets to be closed")

    def unread(self, client):
        """Bytes that lie in the client's socket, when no more come."""
        before = None
        while True:
            now = struct.unpack("i", fcntl.ioctl(client.sock, termios.FIONREAD, bytes(4)))[0]
            if now == before and now > 0:
                return now
            before = now
            time.sleep(0.3)

    def test_a_client_that_does_not_read_gets_little(self):
        """Each byte in its socket was read and copied for nothing, and is memory of the system."""
        for length in (65536, MIB, 32 * MIB):
            client = self.connect(structured=length > MIB)
            client.request_often(64, READ, 0, length)
            self.assertLess(self.unread(client), MIB)

    def read_by_server(self):
        """Bytes that the server has read from its image."""
        with open(f"/proc/{self.server.pid}/io", encoding="ascii") as io:
            return int(io.readline().split()[1])

    def test_nothing_is_prepared_for_a_client_that_does_not_read(self):
        """Work for it, while its socket is full, is time that the others wait."""
        before = self.read_by_server()
        client = self.connect(structured=False)
        client.request_often(100, READ, 0, 65536)
        self.unread(client)
        self.assertLess(self.read_by_server() - before, 1.5 * MIB)

    def is_zero(self, offset, length):
        with open(self.image, "rb") as file:
            file.seek(offset)
            return file.read(length) == bytes(length)

    def test_a_client_may_send_some_requests_before_it_reads(self):
        """It does not wait for a server that waits for it; what it writes is done meanwhile."""
        client = self.connect(structured=False)
        for cookie in range(6):
            client.request(READ, cookie * MIB, MIB, cookie=cookie)
        client.request(WRITE, 32 * MIB, 4 * MIB, cookie=6, payload=bytes(4 * MIB))
        self.server.wait_for(lambda: self.is_zero(32 * MIB, 4 * MIB), "the write to be done")
        cookies = []
        for _ in range(7):
            cookie, error = client.simple_reply()
            self.assertEqual(error, 0)
            if cookie < 6:
                self.assertEqual(client.receive(MIB), pattern(cookie * MIB, MIB))
            cookies.append(cookie)
        self.assertEqual(sorted(cookies), list(range(7)))

    def test_a_client_that_sends_no_more_costs_nothing_and_gets_its_replies(self):
        client = self.connect(structured=False)
        for cookie in range(4):
            client.request(READ, cookie * MIB, MIB, cookie=cookie)
        client.sock.shutdown(socket.SHUT_WR)
        self.unread(client)
        before = self.cpu()
        time.sleep(0.5)
        self.assertLess(self.cpu() - before, 0.03)  # it looked at the socket all the time
        cookies = set()
        for _ in range(4):
            cookie, error = client.simple_reply()
            self.assertEqual(error, 0)
            self.assertEqual(client.receive(MIB), pattern(cookie * MIB, MIB))
            cookies.add(cookie)
        self.assertEqual(cookies, {0, 1, 2, 3})
        self.assertTrue(client.is_closed())

    def test_requests_of_a_client_that_leaves_are_forgotten(self):
        for _ in range(20):
            client = self.connect()
            client.request_often(20, READ, 0, MIB)
            client.sock.close()
        self.server.wait_for(lambda: self.server.resident() < 120 * MIB, "memory to be given back")
        client = self.connect()
        client.request(READ, 512, 4096)
        self.assertEqual(self.data(client, 512, 4096), pattern(512, 4096))

    def take(self, client, count):
        client.request_often(count, READ, 0, MIB)
        for _ in range(count):
            client.simple_reply()
            client.receive(MIB)

    def test_a_client_that_takes_much_gets_larger_pieces(self):
        client = self.connect(structured=False)
        for _ in range(20):
            self.take(client, 64)
            client.request_often(16, READ, 0, MIB)
            if self.unread(client) > 2 * MIB:
                return
            for _ in range(16):
                client.simple_reply()
                client.receive(MIB)
        self.fail("never more than 2 MiB at a time")

    def test_an_honest_client_is_served_while_many_do_not_read(self):
        honest = self.connect()
        self.slow_readers(60, MIB, 100)
        worst = 0
        for n in range(100):
            begun = time.monotonic()
            honest.request(READ, n * 4096, 4096)
            self.assertEqual(self.data(honest, n * 4096, 4096), pattern(n * 4096, 4096))
            worst = max(worst, time.monotonic() - begun)
        self.assertLess(worst, 1)

    def test_large_requests_are_done_in_pieces_when_memory_is_short(self):
        self.slow_readers(8, 32 * MIB, 2)
        client = self.connect()
        client.request(READ, 512, 20 * MIB)
        self.assertEqual(self.data(client, 512, 20 * MIB), pattern(512, 20 * MIB))
        client.request(READ, 0, 20 * MIB, flags=DF)
        self.assertEqual(client.error(), 75)
        client.request(WRITE, MIB, 20 * MIB, payload=b"w" * (20 * MIB))
        self.assertEqual(client.error(), 0)
        client.request(READ, 0, 4096)
        self.assertEqual(self.data(client, 0, 4096), pattern(0, 4096))
        with open(self.image, "rb") as file:
            self.assertEqual(file.read(MIB), pattern(0, MIB))
            self.assertEqual(file.read(20 * MIB), b"w" * (20 * MIB))
            self.assertEqual(file.read(MIB), pattern(21 * MIB, MIB))

    def test_simple_replies_in_pieces(self):
        self.slow_readers(8, 32 * MIB, 2)
        client = self.connect(structured=False)
        for cookie in (7, 8):
            client.request(READ, 4096, 20 * MIB, cookie=cookie)
            self.assertEqual(client.simple_reply(), (cookie, 0))
            self.assertEqual(client.receive(20 * MIB), pattern(4096, 20 * MIB))


class ManyContexts(TestCase):
    def test_block_status_of_many_fragmented_bitmaps(self):
        names = [f"b{n}" for n in range(40)]
        socket = self.path("nbd")
        daemon = self.daemon(
            "--blockdev", "driver=null-co,node-name=disk,size=1G,read-zeroes=on",
            "--nbd-server", f"addr.type=unix,addr.path={socket}",
        )  # fmt: skip
        for name in names:
            daemon.qmp.command("block-dirty-bitmap-add", node="disk", name=name, granularity=4096)
        daemon.qmp.command("block-export-add", type="nbd", id="e", node_name="disk", name="", writable=True,
                           bitmaps=names)  # fmt: skip
        with RawClient(socket, timeout=60) as client:
            client.go(structured=False)
            for first in range(0, 1 << 30, 512 * 8192):
                client.send(b"".join(
                    struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 0, at, 512) + bytes(512)
                    for at in range(first, first + 512 * 8192, 8192)
                ))  # fmt: skip
                client.receive(16 * 512)
        for negotiate in (RawClient.negotiate_extended, RawClient.negotiate_structured):
            with RawClient(socket, timeout=60) as client:
                negotiate(client)
                client.go(structured=False, contexts=[b"qemu:dirty-bitmap:" + n.encode() for n in names])
                client.request(BLOCK_STATUS, 0, 1 << 30)
                chunks = client.chunks()
                self.assertEqual({kind for kind, _ in chunks}, {6 if client.extended else 5})
                self.assertEqual(len(chunks), len(names))
                for _, payload in chunks:
                    self.assertGreater(len(payload), 1000 * 8)


if __name__ == "__main__":
    unittest.main()
