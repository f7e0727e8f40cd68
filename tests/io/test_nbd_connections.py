# SPDX-License-Identifier: Apache-2.0
"""Our NBD client with several connections to one export."""

import os
import random
import struct
import sys
import threading
import time
import unittest

from nbd_hostile import Hostile, export_info
from nbd_raw import FLUSH, READ, SIMPLE_MAGIC, WRITE, RawClient
from nbd_server import NbdServer
from tidemark import Process, TestCase, img, io

MIB = 1 << 20
SIZE = 64 * MIB
MANY = "x-connections=4"
MULTI_CONN = 1 << 8


class Crowd(Hostile):
    """A server for any number of clients at a time, slow enough that requests pile up."""

    def __init__(self, path, flags=1 | 4 | MULTI_CONN, react=None, accepted=None, add=0):
        self.served = {}  # by connection: how many requests
        self.accepted = accepted  # called when a client has connected
        self.add = add  # to each byte of the data
        self.react = react  # called with number and offset before each answer
        self.sockets = []
        self.reads = []  # number of the connection, offset
        super().__init__(path, info=[export_info(SIZE, flags)], structured=False)

    def run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(sock)
            number = len(self.sockets) - 1
            if self.accepted:
                self.accepted()
            threading.Thread(target=self.serve, args=(sock, number), daemon=True).start()

    def serve(self, sock, number):
        try:
            one = Connection(self, number)
            one.talk(sock)
        except (EOFError, OSError):
            pass
        finally:
            sock.close()


class Connection(Hostile):
    def __init__(self, crowd, number):  # no listener of its own
        self.crowd, self.number = crowd, number
        self.hello, self.on_option, self.extended = crowd.hello, None, False
        self.structured, self.context, self.info = False, None, crowd.info
        self.flags_seen, self.linger, self.closed = [], 0, crowd.closed

    def on_request(self, send, kind, cookie, offset, length):
        crowd = self.crowd
        crowd.reads.append((self.number, offset))
        if crowd.react:
            crowd.react(self.number, offset)
        time.sleep(0.02)
        crowd.served[self.number] = crowd.served.get(self.number, 0) + 1
        data = bytes([offset // MIB + crowd.add]) * length if kind == READ else b""
        send(struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie) + data)


class ConnectionsTest(TestCase):
    def crowd(self, **more):
        server = Crowd(self.path("crowd"), **more)
        self.addCleanup(server.close)
        return server

    def read(self, *more, size=MIB, count=40, **options):
        """Many reads at a time, each of them verified."""
        words = (f"driver=nbd,path={self.path('crowd')}", *more)
        if not any(word.startswith("x-connections") for word in more):
            words += (MANY,)
        image = ",".join(words)
        reads = [f"aio_read -P {n} {n * MIB} {size}" for n in range(count)]
        # The second half finds the connections that were made for the first.
        half = [*reads[: count // 2], "aio_flush"]
        result = io(image, *half, *half, options=("--image-opts", "-r"), **options)
        self.assertNotIn("failed", result.stdout + result.stderr)
        return result

    def test_large_requests_are_spread(self):
        server = self.crowd()
        self.read()
        self.assertEqual(len(server.served), 4, server.served)
        self.assertEqual(sum(server.served.values()), 40)
        self.assertGreater(sum(server.served.values()) - server.served[0], 8)

    def test_as_many_connections_as_the_option_says(self):
        for number in (1, 2):
            server = self.crowd()
            self.read(f"x-connections={number}")
            self.assertEqual(len(server.sockets), number)
            server.close()
            os.unlink(self.path("crowd"))

    def test_a_copy_from_a_unix_socket_reads_small_parts(self):
        lengths = []

        def on_request(send, kind, cookie, _offset, length):
            lengths.append(length)
            send(struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie) + bytes(length if kind == READ else 0))

        server = Hostile(self.path("s"), on_request=on_request, structured=False,
                         info=[export_info(8 * MIB)])  # fmt: skip
        self.addCleanup(server.close)
        img("convert", "-n", "-f", "raw", "--target-image-opts", f"nbd+unix:///?socket={self.path('s')}",
            f"driver=null-co,size={8 * MIB}")  # fmt: skip
        self.assertEqual(set(lengths), {256 << 10})

    def test_a_wrong_number_is_refused(self):
        self.crowd()
        for number in (0, 17, -1):
            image = f"driver=nbd,path={self.path('crowd')},x-connections={number}"
            result = img("info", "--image-opts", image, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("x-connections", result.stderr)

    def test_small_requests_have_one_connection(self):
        server = self.crowd()
        self.read(size=4096)
        self.assertEqual(len(server.sockets), 1)

    def test_a_server_that_does_not_offer_several_gets_one(self):
        server = self.crowd(flags=1 | 4)
        self.read()
        self.assertEqual(len(server.sockets), 1)

    def test_reads_of_a_connection_that_ends_are_done_by_another(self):
        def react(number, offset):
            if number > 0:
                raise EOFError

        server = self.crowd(react=react)
        self.read()
        self.assertGreater(len(server.sockets), 1)
        self.assertEqual(server.served, {0: 40})

    def test_another_server_at_the_same_path_is_not_taken_for_the_first(self):
        """Its export looks the same, and has other data."""
        words = (
            f"import sys, time; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r});"
            "import test_nbd_connections as t; t.Crowd(sys.argv[1], add=1); time.sleep(600)"
        )
        other = self.own(
            Process([sys.executable, "-c", words, self.path("other")], self.path("other.log"))
        )
        other.wait_for(lambda: os.path.exists(self.path("other")), "the other server")

        def replace():
            if os.path.exists(self.path("other")):
                os.rename(self.path("other"), self.path("crowd"))

        server = self.crowd(accepted=replace)
        self.read(count=20)
        self.assertEqual(len(server.sockets), 1)

    def test_a_server_that_has_no_place_for_another(self):
        """As qemu-nbd, which leaves further clients in the backlog: nobody waits for it."""
        server = self.crowd()
        serve = server.serve
        server.serve = lambda sock, number: number or serve(sock, number)
        begun = time.monotonic()
        self.read()
        self.assertLess(time.monotonic() - begun, 15)
        self.assertEqual(server.served, {0: 40})

    def test_the_first_gets_the_only_place_of_a_server_back(self):
        """One that waits in the backlog takes the place when the first is cut off."""
        place = threading.Semaphore(1)

        def react(number, offset):
            if number == 0 and len(server.sockets) > 1 and server.served.get(0, 0) > 4:
                raise EOFError

        server = self.crowd(react=react)
        serve = server.serve

        def serve_one(sock, number):
            with place:
                serve(sock, number)

        server.serve = serve_one
        self.read("reconnect-delay=600", timeout=120)
        self.assertGreater(len(server.served), 1)
        self.assertGreaterEqual(sum(server.served.values()), 40)

    def test_none_of_those_to_an_earlier_server_is_used(self):
        """The first is restored, perhaps at another server; the others are not."""
        cut = []

        def react(number, offset):
            if number == 0 and offset >= 24 * MIB and not cut and len(server.served) > 1:
                cut.append(len(server.sockets))
                raise EOFError

        server = self.crowd(react=react)
        waves = []
        for first in (0, 12, 24, 36, 48):
            waves += [f"aio_read -P {n} {n * MIB} {MIB}" for n in range(first, first + 12)]
            waves.append("aio_flush")
        image = f"driver=nbd,path={self.path('crowd')},reconnect-delay=600,{MANY}"
        result = io(image, *waves, options=("--image-opts", "-r"))
        self.assertNotIn("failed", result.stdout + result.stderr)
        self.assertTrue(cut, server.served)
        last = {number for number, offset in server.reads if offset >= 48 * MIB}
        self.assertGreaterEqual(min(last), cut[0], server.reads)

    def test_what_is_copied_over_several_is_the_same(self):
        source, target = self.path("source.raw"), self.path("target.raw")
        data = random.Random(3).randbytes(SIZE)
        for path, content in ((source, data), (target, bytes(SIZE))):
            with open(path, "wb") as file:
                file.write(content)
        servers = [self.own(NbdServer(self.dir, "-f", "raw", path, name=name))
                   for name, path in (("a", source), ("b", target))]  # fmt: skip
        a, b = (server.uri() for server in servers)
        img("convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", a, b)
        for server in servers:
            server.stop()
        with open(target, "rb") as file:
            self.assertTrue(file.read() == data)


class RestoredTest(TestCase):
    """Reads must not go to a restored server's copy before it has got back what it has lost."""

    def start(self):
        if os.path.exists(self.path("server.sock")):
            os.unlink(self.path("server.sock"))
        self.server = self.own(NbdServer(self.dir, "-f", "qcow2", self.image, name="server"))

    def test_what_was_acknowledged_is_read(self):
        self.image = self.create("disk.qcow2", "64M")
        self.start()
        image = (f"driver=nbd,server.type=unix,server.path={self.path('server.sock')},"
                 f"reconnect-delay=60,{MANY}")  # fmt: skip
        front = self.own(NbdServer(self.dir, "--image-opts", image, name="front"))
        over, failures, rounds = threading.Event(), [], []

        def load(number):
            chance = random.Random(number)
            try:
                with RawClient(front.socket, timeout=60) as client:
                    client.go(structured=False)
                    while not over.is_set():
                        offset = (number * 8 + chance.randrange(4)) * MIB
                        data = bytes([chance.randrange(1, 256)]) * MIB
                        client.request(WRITE, offset, MIB, payload=data)
                        self.assertEqual(client.simple_reply(), (1, 0))
                        client.request(READ, offset, MIB)
                        self.assertEqual(client.simple_reply(), (1, 0))
                        self.assertTrue(client.receive(MIB) == data, "old data")
                        if chance.randrange(8) == 0:
                            client.request(FLUSH)
                            self.assertEqual(client.simple_reply(), (1, 0))
                        rounds.append(number)
            except Exception as failure:
                failures.append(failure)

        threads = [threading.Thread(target=load, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(12):
            before = len(rounds)
            while len(rounds) < before + 12 and not failures:
                time.sleep(0.01)
            self.server.kill()
            self.start()
        over.set()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])


if __name__ == "__main__":
    unittest.main()
