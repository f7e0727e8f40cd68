# SPDX-License-Identifier: Apache-2.0
"""NBD clients and servers that end, change or ask for things at the worst of moments."""

import fcntl
import os
import random
import socket
import ssl
import struct
import termios
import threading
import unittest

import nbd_raw
from gnutls_client import GnutlsClient
from nbd_hostile import Hostile, export_info
from nbd_raw import (
    ACK, BLOCK_STATUS, CACHE, DISC, EINVAL, ENOSPC, FLUSH, GO, READ, SET_META, STARTTLS, TRIM,
    WRITE, WRITE_ZEROES, RawClient, go_data, meta_data,
)  # fmt: skip
from nbd_server import NbdServer
from qmp import QmpError
from tidemark import TestCase, io, wait_until
from tls_creds import make_psk, psk

SIZE = 1 << 20
MAX64 = (1 << 64) - 1
ESHUTDOWN, EOVERFLOW = 108, 75
KEY = "00112233445566778899aabbccddeeff"
NOBODY_READS = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets the connection


def unread(sock):
    """How much of what was sent the peer has not taken yet (bytes of memory; 0: took all)."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


class TlsTeardown(TestCase):
    """Sessions that end where they should not. After each, others are served, and nothing stays."""

    def setUp(self):
        super().setUp()
        self.data = random.Random(3).randbytes(SIZE)
        self.disk = self.path("disk.raw")
        with open(self.disk, "wb") as disk:
            disk.write(self.data)
        self.keys = make_psk(self.dir, "psk", alice=KEY)

    def serve(self, obj=None):
        return self.own(NbdServer(self.dir, "-f", "raw", "--log-level", "info", "--object",
                                  obj or psk("server", self.keys), "--tls-creds", "tls0",
                                  self.disk))  # fmt: skip

    def client(self, server, version="TLS1.3"):
        client = RawClient(server.socket)
        self.addCleanup(client.sock.close)
        self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
        client.raw = client.sock
        client.sock = GnutlsClient(client.sock, KEY, version)
        return client

    def assert_serves(self, server):
        client = self.client(server)
        client.go()
        client.request(READ, 0, SIZE)
        ((_, payload),) = client.chunks()
        self.assertTrue(payload[8:] == self.data)
        client.sock.close()

    def assert_all_gone(self, server):
        """No descriptor of a client is left."""

        def sockets():
            names = os.listdir(f"/proc/{server.pid}/fd")
            links = []
            for name in names:
                try:
                    links.append(os.readlink(f"/proc/{server.pid}/fd/{name}"))
                except FileNotFoundError:
                    pass
            return sum(link.startswith("socket:") for link in links)

        wait_until(lambda: sockets() == 1, "the end of all connections")

    def test_an_end_in_every_phase(self):
        server = self.serve()
        hello = self.hello()
        for part in (0, 1, 5, len(hello) // 2, len(hello)):
            for how in ("close", "reset", "half"):
                with self.subTest(part=part, how=how):
                    client = RawClient(server.socket)
                    self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
                    client.send(hello[:part])
                    self.end(client.sock, how)
        for structured in (False, True):
            for how in ("close", "reset", "half"):
                with self.subTest(structured=structured, how=how):
                    client = self.client(server)
                    if structured:
                        client.go()
                        for cookie in range(8):
                            client.request(READ, 0, SIZE, cookie=cookie)
                    self.end(client.raw, how)
        self.assert_serves(server)
        self.assert_all_gone(server)
        server.stop()

    def hello(self):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="x")
        with self.assertRaises(ssl.SSLWantReadError):
            tls.do_handshake()
        return outgoing.read()

    @staticmethod
    def end(sock, how):
        if how == "half":
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(20)
            while sock.recv(1 << 20):
                pass
        elif how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOBODY_READS)
        sock.close()

    def test_an_end_in_the_midst_of_a_record(self):
        server = self.serve()
        for part in (1, 5, 6, 40):
            client = self.client(server)
            client.go()
            client.raw.sendall((b"\x17\x03\x03\x01\x00" + bytes(256))[:part])
            client.raw.shutdown(socket.SHUT_WR)
            self.assertTrue(self.is_closed(client.raw))
        client = self.client(server)
        client.go()
        client.raw.sendall(b"\x17\x03\x03\x01\x00" + bytes(256))  # by no key
        self.assertTrue(self.is_closed(client.raw))
        wait_until(lambda: "TLS has failed" in server.log(), "a word about the forged record")
        self.assert_serves(server)
        self.assert_all_gone(server)

    @staticmethod
    def is_closed(sock):
        sock.settimeout(20)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def test_requests_before_a_goodbye_are_answered(self):
        server = self.serve()
        client = self.client(server)
        client.go()
        for cookie in range(4):
            client.request(READ, 0, SIZE, cookie=cookie)
        client.request(WRITE, 0, 4096, cookie=4, payload=b"w" * 4096)
        client.sock.goodbye()
        client.raw.shutdown(socket.SHUT_WR)
        for _ in range(5):
            for kind, _ in client.chunks():
                self.assertFalse(kind & 0x8000)
        self.assertEqual(client.sock.recv(1), b"")
        server.stop()
        with open(self.disk, "rb") as disk:
            self.assertEqual(disk.read(4096), b"w" * 4096)

    def test_a_renegotiation(self):
        server = self.serve()
        client = self.client(server, "TLS1.2")
        client.go()
        client.sock.sock.settimeout(None)
        self.assertNotEqual(client.sock.renegotiate(), 0)
        self.assert_serves(server)
        self.assert_all_gone(server)

    def test_a_flood_of_new_keys(self):
        server = self.serve()
        client = self.client(server)
        client.go()
        for ask in (False, True) * 4:
            client.sock.update_key(ask)
            client.request(READ, 4096, 4096)
            ((_, payload),) = client.chunks()
            self.assertEqual(payload[8:], self.data[4096:8192])
        try:
            for _ in range(5000):
                client.sock.update_key(True)
        except AssertionError:
            pass  # the server has had enough
        self.assert_serves(server)
        client.sock.close()
        self.assert_all_gone(server)

    def test_a_second_starttls_and_tls_without_one(self):
        server = self.serve()
        client = self.client(server)
        kind, text = client.ask(STARTTLS)[-1]
        self.assertEqual((kind, text), (nbd_raw.ERR_INVALID, b"TLS already enabled"))
        client.go()
        with RawClient(server.socket) as bare:
            bare.send(self.hello())
            self.assertTrue(bare.is_closed())
        self.assert_serves(server)


class Requests(TestCase):
    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.raw", "1M", "raw")
        self.server = self.own(NbdServer(self.dir, "-f", "raw", "--discard=unmap", self.disk))

    def test_a_goodbye_behind_requests(self):
        """What came before NBD_CMD_DISC is carried out, and answered."""
        with RawClient(self.server.socket) as client:
            client.go()
            for i in range(64):
                client.request(WRITE, i * 4096, 4096, cookie=i, payload=bytes([i + 1]) * 4096)
            client.request(FLUSH, cookie=64)
            client.request(DISC)
            client.request(WRITE, 0, 4096, cookie=65, payload=b"late" * 1024)
            cookies = set()
            try:
                while True:
                    cookie, _, kind, _ = client.chunk()
                    self.assertFalse(kind & 0x8000)
                    cookies.add(cookie)
            except EOFError:
                pass
            except ConnectionResetError:  # since what came after the goodbye was not read
                pass
            self.assertNotIn(65, cookies)
        self.server.stop()
        with open(self.disk, "rb") as disk:
            for i in range(64):
                self.assertEqual(disk.read(4096), bytes([i + 1]) * 4096)

    def test_lengths_at_the_edges_of_64_bits(self):
        with RawClient(self.server.socket) as client:
            client.negotiate_extended()
            client.go(contexts=[b"base:allocation"])
            for kind in (READ, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS):
                for offset, length in (
                    (0, MAX64), (1, MAX64), (MAX64, 1), (MAX64, MAX64), (0, 1 << 63),
                    (1 << 63, 1 << 63), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (0, 1 << 32),
                    (SIZE, MAX64 - SIZE + 1), (SIZE, MAX64 - SIZE + 2),
                ):  # fmt: skip
                    with self.subTest(kind=kind, offset=offset, length=length):
                        client.request(kind, offset, length)
                        self.assertIn(client.error(), (EINVAL, ENOSPC, EOVERFLOW))
            for kind in (TRIM, WRITE_ZEROES, CACHE):
                client.request(kind, 0, SIZE)
                self.assertEqual(client.error(), 0)
            client.request(BLOCK_STATUS, 0, SIZE)
            ((kind, payload),) = client.chunks()
            self.assertEqual(struct.unpack(">IIQQ", payload), (0, 1, SIZE, 3))
        self.server.stop()

    def test_contexts_that_are_chosen_again_and_again(self):
        """Only the last choice counts, and none costs memory."""
        before = self.server.resident()
        many = [b"base:allocation", b"x:y", b"qemu:dirty-bitmap:"] * 300
        with RawClient(self.server.socket) as client:
            client.negotiate_structured()
            for _ in range(300):
                self.assertEqual(client.ask(SET_META, meta_data(b"", *many))[-1][0], ACK)
            self.assertEqual(client.ask(SET_META, meta_data(b""))[-1][0], ACK)
            self.assertEqual(client.ask(GO, go_data(b""))[-1][0], ACK)
            client.request(BLOCK_STATUS, 0, SIZE)
            self.assertEqual(client.error(), EINVAL)
            self.assertLess(self.server.resident() - before, 32 << 20)


class Changes(TestCase):
    """The daemon changes what clients use."""

    def setUp(self):
        super().setUp()
        self.socket = self.path("nbd")
        self.disk = self.create("disk.raw", "4M", "raw")
        group = {"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 4}}
        self.d = self.daemon("--blockdev", f"driver=file,node-name=file,filename={self.disk}",
                             "--blockdev", "driver=raw,node-name=disk,file=file",
                             "--nbd-server", f"addr.type=unix,addr.path={self.socket}")  # fmt: skip
        self.d.qmp.command("object-add", **group)
        self.d.qmp.command("blockdev-add", **{"driver": "throttle", "node-name": "slow",
                           "throttle-group": "g", "file": "disk"})  # fmt: skip

    def export(self, node):
        self.d.qmp.command("block-export-add", type="nbd", id="e", name="", writable=True,
                           **{"node-name": node})  # fmt: skip

    def test_a_disk_that_shrinks_and_grows_under_requests(self):
        self.export("disk")
        errors, stop = [], threading.Event()

        def work(seed):
            rng = random.Random(seed)
            try:
                with RawClient(self.socket) as client:
                    client.negotiate_extended()
                    client.go(contexts=[b"base:allocation"])
                    while not stop.is_set():
                        batch = []
                        for cookie in range(8):
                            kind = rng.choice((READ, WRITE, TRIM, WRITE_ZEROES, BLOCK_STATUS, CACHE))
                            length = rng.choice((512, 4096, 65536, 1 << 20))
                            offset = rng.randrange(0, (4 << 20) - length + 1, 512)
                            payload = bytes(length) if kind == WRITE else b""
                            flags = 32 if kind == WRITE else 0
                            client.request(kind, offset, length, flags, cookie, payload)
                            batch.append(cookie)
                        while batch:
                            cookie, flags, kind, payload = client.chunk()
                            if kind & 0x8000:
                                code = struct.unpack(">I", payload[:4])[0]
                                if code not in (EINVAL, ENOSPC):
                                    errors.append(code)
                            if flags & 1:
                                batch.remove(cookie)
            except Exception as e:  # pylint: disable=broad-except
                errors.append(repr(e))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for n in range(30):
            size = (1 << 20, 4 << 20, (2 << 20) + 512)[n % 3]
            self.d.qmp.command("block_resize", **{"node-name": "disk", "size": size})
        self.d.qmp.command("block_resize", **{"node-name": "disk", "size": 2 << 20})
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        with RawClient(self.socket) as client:
            client.go()
            client.request(READ, (2 << 20) - 512, 1024)
            self.assertEqual(client.error(), EINVAL)
            client.request(WRITE, (2 << 20) - 512, 1024, payload=bytes(1024))
            self.assertEqual(client.error(), ENOSPC)
            client.request(READ, (2 << 20) - 512, 512)
            self.assertEqual(client.error(), 0)

    def test_an_export_that_is_removed_under_each_command(self):
        for kind in (READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS):
            with self.subTest(kind=kind), RawClient(self.socket) as client:
                self.export("slow")
                client.go(contexts=[b"base:allocation"])
                length = 0 if kind == FLUSH else 4096
                for cookie in range(8):
                    client.request(kind, 0, length, cookie=cookie,
                                   payload=bytes(4096) if kind == WRITE else b"")  # fmt: skip
                wait_until(lambda: unread(client.sock) == 0, "the server to take the requests")
                with self.assertRaisesRegex(QmpError, "still in use"):
                    self.d.qmp.command("block-export-del", id="e", mode="safe")
                self.d.qmp.command("block-export-del", id="e", mode="hard")
                answered = set()
                try:
                    while True:
                        cookie, flags, what, payload = client.chunk()
                        if what & 0x8000:
                            self.assertEqual(struct.unpack(">I", payload[:4])[0], ESHUTDOWN)
                        if flags & 1:
                            answered.add(cookie)
                except (EOFError, ConnectionResetError):
                    pass
                self.assertEqual(answered, set(range(8)))
                wait_until(lambda: self.d.qmp.command("query-block-exports") == [], "the end")


class Fickle(TestCase):
    """A server that is another one after a reconnection is not used."""

    def reconnect(self, first, then):
        """What the client says that meets a server with other properties the second time."""
        path = self.path("s")
        seen = []

        def on_request(send, kind, cookie, _offset, length):
            seen.append(kind)
            if len(seen) == 1:
                hostile.info = then
                raise EOFError
            data = bytes(length) if kind == READ else b""
            send(struct.pack(">IIQ", nbd_raw.SIMPLE_MAGIC, 0, cookie) + data)

        hostile = Hostile(path, on_request=on_request, info=first, structured=False)
        self.addCleanup(hostile.close)
        image = f"driver=raw,file.driver=nbd,file.path={path},file.reconnect-delay=2"
        result = io(image, "read 0 512", options=("--image-opts",), check=False)
        os.unlink(path)
        return result, seen

    def test_properties_that_a_server_takes_back(self):
        flags = 1 | 4 | 8 | 32 | 64
        sizes = (3, struct.pack(">HIII", 3, 512, 4096, 1 << 20))
        coarse = (3, struct.pack(">HIII", 3, 4096, 4096, 1 << 20))
        short = (3, struct.pack(">HIII", 3, 512, 4096, 4096))
        whole = [export_info(flags=flags), sizes]
        for name, then in (
            ("smaller", [export_info(SIZE // 2, flags), sizes]),
            ("read-only", [export_info(flags=flags | 2), sizes]),
            ("no flush", [export_info(flags=flags & ~4), sizes]),
            ("no FUA", [export_info(flags=flags & ~8), sizes]),
            ("no trim", [export_info(flags=flags & ~32), sizes]),
            ("no zeroes", [export_info(flags=flags & ~64), sizes]),
            ("larger blocks", [export_info(flags=flags), coarse]),
            ("shorter requests", [export_info(flags=flags), short]),
        ):
            with self.subTest(name):
                result, seen = self.reconnect(whole, then)
                self.assertEqual(len(seen), 1, result.stderr)
                self.assertIn("read failed", result.stdout + result.stderr)
        for then in (whole, [export_info(2 * SIZE, flags), sizes]):
            result, seen = self.reconnect(whole, then)
            self.assertEqual((len(seen), result.returncode), (2, 0), result.stderr)


if __name__ == "__main__":
    unittest.main()
