# SPDX-License-Identifier: Apache-2.0
"""A client whose server goes away and comes back: reconnect-delay and open-timeout."""

import os
import random
import signal
import socket
import threading
import time
import unittest

from nbd_hostile import Hostile, chunk, export_info
from nbd_raw import RawClient
from nbd_server import NbdServer
from tidemark import Process, TestCase, can_connect, img, io, nbd_uri, run, tool, wait_until

READ, WRITE, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 3, 4, 6
FUA = 1
MIB = 1 << 20
BLOCK = 65536


class Reconnecting(TestCase):
    """A server that is killed, and one over it that is its client."""

    def setUp(self):
        super().setUp()
        self.image = self.create("disk.qcow2", "8M")
        self.server = None

    def start(self, *more, image=None, fmt="qcow2"):
        if os.path.exists(self.path("server.sock")):
            os.unlink(self.path("server.sock"))
        self.server = self.own(NbdServer(self.dir, "-f", fmt, *more, image or self.image, name="server"))

    def kill(self):
        """As the kernel would: what the server had in memory is gone."""
        self.server.kill()

    def options(self, delay=20, more=""):
        return (f"driver=nbd,server.type=unix,server.path={self.path('server.sock')},"
                f"reconnect-delay={delay}{more}")  # fmt: skip

    def front(self, *more, delay=20):
        """Its client, which is asked by the returned server's own clients."""
        return self.own(NbdServer(self.dir, *more, "--image-opts", self.options(delay), name="front"))

    def client(self, front, timeout=60):
        client = RawClient(front.socket, timeout=timeout)
        self.addCleanup(client.sock.close)
        client.go()
        return client

    def do(self, client, kind, offset=0, length=0, payload=b""):
        client.request(kind, offset, length or len(payload), payload=payload)
        return client.error()

    def read(self, client, offset, length):
        client.request(READ, offset, length)
        data = bytearray(length)
        for kind, payload in client.chunks():
            self.assertIn(kind, (1, 2))
            at = int.from_bytes(payload[:8], "big") - offset
            if kind == 1:
                data[at : at + len(payload) - 8] = payload[8:]
        return bytes(data)

    # --- going on

    def test_requests_are_sent_again_in_their_order_and_before_later_ones(self):
        """The server answers the first write, so that the third takes its place in the client's
        table, and goes. A fourth is made while it is away.
        """
        found, again = [], threading.Event()

        def on_request(send, kind, cookie, offset, length):
            found.append(offset // BLOCK)
            if len(found) == 4:
                raise EOFError
            if len(found) == 1 or again.is_set():
                send(chunk(cookie, 0, b""))

        class GoesOnce(Hostile):
            def talk(self, sock):
                if found:
                    again.wait(20)
                super().talk(sock)

        writable = [export_info(flags=1 | 4)]
        server = GoesOnce(self.path("server.sock"), info=writable, on_request=on_request)
        self.addCleanup(server.close)
        front = self.front("-e", "4", delay=60)
        client = self.client(front)
        for n in range(4):
            if n == 2:
                self.assertEqual(client.chunk()[0], 0)
            client.request(WRITE, n * BLOCK, BLOCK, cookie=n, payload=bytes(BLOCK))
            # One after the other.
            wait_until(lambda sent=n: len(found) > sent, "the request")
        client.request(WRITE, 4 * BLOCK, BLOCK, cookie=4, payload=bytes(BLOCK))
        # So that it waits by now; if it does not, the test is the weaker for it.
        time.sleep(0.2)
        again.set()
        self.assertEqual({client.chunk()[0] for _ in range(4)}, {1, 2, 3, 4})
        self.assertEqual(found, [0, 1, 2, 3, 0, 1, 2, 3, 4])

    def test_no_write_is_lost_when_the_server_is_killed_20_times(self):
        self.start("--discard=unmap")
        front = self.front()
        stop, failures = threading.Event(), []
        written = {}

        def load(number):
            rng = random.Random(number)
            blocks = range(number * 32, number * 32 + 32)
            try:
                with RawClient(front.socket, timeout=60) as client:
                    client.go()
                    while not stop.is_set():
                        block = rng.choice(blocks)
                        byte = rng.randrange(1, 256)
                        what = rng.randrange(8)
                        if what == 0:
                            self.assertEqual(self.do(client, FLUSH), 0)
                        elif what == 1:
                            self.assertEqual(self.do(client, WRITE_ZEROES, block * BLOCK, BLOCK), 0)
                            written[block] = 0
                        elif what < 5:
                            data = bytes([byte]) * BLOCK
                            self.assertEqual(self.do(client, WRITE, block * BLOCK, payload=data), 0)
                            written[block] = byte
                        else:
                            found = self.read(client, block * BLOCK, BLOCK)
                            self.assertEqual(found, bytes([written.get(block, 0)]) * BLOCK)
            except Exception as failure:
                failures.append(failure)

        threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for number in range(20):
            time.sleep(0.05 + 0.02 * (number % 4))
            self.kill()
            self.start("--discard=unmap")
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.assertGreater(len(written), 20)
        self.assertEqual(self.do(self.client(front), FLUSH), 0)
        self.kill()
        commands = [f"read -P {byte} {block * 64}k 64k" for block, byte in written.items()]
        self.assertNotIn("failed", io(self.image, *commands, fmt="qcow2").stdout)

    def test_a_flush_covers_what_the_killed_server_had_acknowledged(self):
        self.start()
        client = self.client(self.front())
        self.assertEqual(self.do(client, WRITE, 0, payload=b"a" * BLOCK), 0)
        self.assertEqual(self.do(client, WRITE, 0, payload=b"b" * 4096), 0)
        self.assertEqual(self.do(client, WRITE_ZEROES, 4096, 4096), 0)
        self.kill()
        self.assertIn("failed", io(self.image, "read -P 97 8k 56k", fmt="qcow2", check=False).stdout)
        self.start()
        self.assertEqual(self.do(client, FLUSH), 0)
        self.kill()
        out = io(self.image, "read -P 98 0 4k", "read -P 0 4k 4k", "read -P 97 8k 56k", fmt="qcow2").stdout
        self.assertNotIn("failed", out)

    def test_what_was_written_with_fua_is_not_undone_by_older_writes(self):
        self.start()
        client = self.client(self.front())
        self.assertEqual(self.do(client, WRITE, 0, payload=b"a" * 2 * BLOCK), 0)
        client.request(WRITE, 0, BLOCK, flags=FUA, payload=b"b" * BLOCK)
        self.assertEqual(client.error(), 0)
        self.kill()
        self.start()
        self.assertEqual(self.read(client, 0, 2 * BLOCK), b"b" * BLOCK + b"a" * BLOCK)

    def test_flushes_fail_when_a_write_cannot_be_repeated(self):
        # The same disk, in a file that takes no second writing of it.
        self.start()
        front = self.front()
        client = self.client(front)
        self.assertEqual(self.do(client, WRITE, 0, payload=b"a" * BLOCK), 0)
        self.kill()
        config = self.path("full.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write('[inject-error]\nevent = "none"\niotype = "write"\nerrno = "28"\nonce = "on"\n')
        os.unlink(self.path("server.sock"))
        options = (f"driver=blkdebug,config={config},image.driver=qcow2,image.file.driver=file,"
                   f"image.file.filename={self.image}")  # fmt: skip
        self.server = self.own(NbdServer(self.dir, "--image-opts", options, name="server"))
        self.assertEqual(self.do(client, WRITE, BLOCK, payload=b"b" * BLOCK), 0)
        self.assertEqual(self.do(client, FLUSH), 5)
        self.assertEqual(self.do(client, FLUSH), 5)
        self.assertIn("flushes fail from now on", front.log())

    def test_io_goes_on_after_its_server_was_restarted_while_idle(self):
        self.start()
        front = self.front()
        client = self.client(front)
        for byte in (b"1", b"2", b"3"):
            self.assertEqual(self.do(client, WRITE, 0, payload=byte * 4096), 0)
            self.kill()
            time.sleep(0.2)
            self.start()
        self.assertEqual(self.read(client, 0, 4096), b"3" * 4096)

    def test_requests_fail_after_the_delay_and_work_again_later(self):
        self.start()
        client = self.client(self.front(delay=1))
        self.kill()
        begun = time.monotonic()
        self.assertEqual(self.do(client, WRITE, 0, payload=b"a" * 4096), 5)
        self.assertGreater(time.monotonic() - begun, 0.5)
        self.assertLess(time.monotonic() - begun, 10)
        begun = time.monotonic()
        self.assertEqual(self.do(client, FLUSH), 5)
        self.assertLess(time.monotonic() - begun, 0.8)
        self.start()
        deadline = time.monotonic() + 10
        while self.do(client, WRITE, 0, payload=b"a" * 4096) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(self.read(client, 0, 4096), b"a" * 4096)

    def test_without_a_delay_requests_fail_at_once(self):
        self.start()
        client = self.client(self.front(delay=0))
        self.kill()
        begun = time.monotonic()
        self.assertEqual(self.do(client, WRITE, 0, payload=b"a" * 4096), 5)
        self.assertLess(time.monotonic() - begun, 5)

    # --- another export

    def refused(self, sentence, *more, image=None, fmt="qcow2"):
        front = self.front()
        client = self.client(front)
        self.assertEqual(self.do(client, WRITE, 0, payload=b"a" * 4096), 0)
        self.kill()
        self.start(*more, image=image, fmt=fmt)
        self.assertEqual(self.do(client, WRITE, 0, payload=b"b" * 4096), 5)
        self.assertIn(sentence, front.log())

    def test_a_server_that_comes_back_smaller_is_refused(self):
        self.start()
        small = self.create("small.qcow2", "4M")
        self.refused("it has 4194304 bytes, and had 8388608", image=small)

    def test_a_server_that_comes_back_read_only_is_refused(self):
        self.start()
        self.refused("it is read-only now", "-r")

    # --- an end while the connection is lost

    def test_a_process_whose_server_is_away_ends_at_once(self):
        self.start()
        front = self.front(delay=60)
        client = self.client(front)
        self.kill()
        client.request(WRITE, 0, 4096, payload=b"a" * 4096)
        time.sleep(0.3)
        begun = time.monotonic()
        front.process.send_signal(signal.SIGTERM)
        front.process.wait(20)
        self.assertLess(time.monotonic() - begun, 5)

    def test_an_export_whose_server_is_away_is_removed_at_once(self):
        self.start()
        front = self.path("daemon-nbd")
        daemon = self.daemon(
            "--blockdev", self.options(60, more=",node-name=disk"),
            "--nbd-server", f"addr.type=unix,addr.path={front}",
            "--export", "type=nbd,id=e,node-name=disk,name=,writable=on",
        )  # fmt: skip
        with RawClient(front) as client:
            client.go()
            self.kill()
            client.request(WRITE, 0, 4096, payload=b"a" * 4096)
            time.sleep(0.3)
            begun = time.monotonic()
            daemon.qmp.command("block-export-del", id="e", mode="hard")
            daemon.qmp.wait_event("BLOCK_EXPORT_DELETED")
            daemon.qmp.command("blockdev-del", node_name="disk")
            self.assertLess(time.monotonic() - begun, 5)

    def test_a_server_that_hangs_in_the_handshake_does_not_hold_up_the_end(self):
        self.start()
        front = self.front(delay=60)
        client = self.client(front)
        self.kill()
        os.unlink(self.path("server.sock"))
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(self.path("server.sock"))
            silent.listen()
            client.request(WRITE, 0, 4096, payload=b"a" * 4096)
            time.sleep(0.5)
            begun = time.monotonic()
            front.process.send_signal(signal.SIGTERM)
            front.process.wait(20)
            self.assertLess(time.monotonic() - begun, 5)

    # --- slow servers

    def slow_server(self, on_request, before_hello=0):
        """A server that comes back slowly."""
        talks = []

        class Slow(Hostile):
            def talk(self, sock):
                talks.append(sock)
                if len(talks) > 1:
                    time.sleep(before_hello)
                super().talk(sock)

        server = Slow(
            self.path("server.sock"), info=[export_info(flags=1 | 4)], on_request=on_request
        )
        self.addCleanup(server.close)
        return talks

    def test_the_time_for_opening_does_not_limit_later_attempts(self):
        def on_request(send, kind, cookie, offset, length):
            if len(talks) == 1:
                raise EOFError
            send(chunk(cookie, 0, b""))

        talks = self.slow_server(on_request, before_hello=3)
        options = self.options(20, more=",open-timeout=1")
        result = io(options, "write 0 64k", options=("--image-opts",))
        self.assertNotIn("failed", result.stdout)
        self.assertEqual(len(talks), 2)

    def test_writes_may_be_repeated_slowly(self):
        """All of them together take longer than the limit for each."""
        count, pause = 17, 2
        repeated = []

        def on_request(send, kind, cookie, offset, length):
            if len(talks) == 1 and kind == FLUSH:
                raise EOFError
            if len(talks) == 2 and kind == WRITE:
                repeated.append(offset // 4096)
                time.sleep(pause)
            send(chunk(cookie, 0, b""))

        talks = self.slow_server(on_request)
        client = self.client(self.front(delay=100))
        for n in range(count):
            self.assertEqual(self.do(client, WRITE, n * 4096, payload=bytes(4096)), 0)
        self.assertEqual(self.do(client, FLUSH), 0)
        self.assertEqual(len(talks), 2)
        self.assertEqual(repeated, list(range(count)))

    # --- opening

    def test_open_timeout_waits_for_a_server_that_comes_later(self):
        program = tool("io")
        command = [*program, "--image-opts", "-c", "read 0 4k", self.options(0, more=",open-timeout=20")]
        late = self.own(Process(command, self.path("late.log")))
        time.sleep(0.5)
        self.assertTrue(late.is_running())
        self.start()
        self.assertEqual(late.wait(), 0, late.log())

    def test_open_timeout_cuts_off_a_server_that_says_nothing(self):
        """Without it such a server gets half a minute."""
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(self.path("server.sock"))
            silent.listen()
            begun = time.monotonic()
            result = img("info", "--image-opts", self.options(0, more=",open-timeout=1"), check=False)
            self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Connection attempt cancelled by timeout", result.stderr)


if __name__ == "__main__":
    unittest.main()
