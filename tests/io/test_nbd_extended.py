# SPDX-License-Identifier: Apache-2.0
"""The NBD server with extended headers: 64-bit lengths."""

import random
import struct
import unittest

import nbd_raw
from nbd_raw import (
    BLOCK_STATUS, CACHE, EINVAL, ENOSPC, ERR_INVALID, EXPORT_NAME, EXTENDED_HEADERS, FLUSH, READ,
    STRUCTURED, TRIM, WRITE, WRITE_ZEROES, RawClient,
)  # fmt: skip
from nbd_server import NbdServer
from tidemark import TestCase, io, run, tool

GiB = 1 << 30
ERR_EXT_HEADER_REQD = 0x8000000A
PAYLOAD_LEN = 1 << 5
DATA, HOLE, STATUS_EXT, ERROR = 1, 2, 6, 0x8001


class ExtendedTest(TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.create("disk.qcow2", "20T")
        self.data = random.Random(2).randbytes(1 << 20)
        source = self.path("pattern")
        with open(source, "wb") as f:
            f.write(self.data)
        io(self.image, f"write -s {source} 0 1M", f"write -s {source} 6T 1M", fmt="qcow2")
        self.server = self.own(NbdServer(self.dir, "-A", "--discard=unmap", "-f", "qcow2", self.image))

    def client(self, contexts=()):
        client = RawClient(self.server.socket)
        self.addCleanup(client.sock.close)
        client.negotiate_extended()
        client.go(contexts=contexts)
        return client

    def assert_in_step(self, client):
        client.request(READ, 5, 16, cookie=99)
        self.assertEqual(client.chunk(), (99, 1, DATA, struct.pack(">Q", 5) + self.data[5:21]))
        self.assertEqual(client.chunk_offset, 5)

    # --- handshake

    def test_negotiation(self):
        with RawClient(self.server.socket) as client:
            self.assertEqual(client.ask(EXTENDED_HEADERS, b"x")[0][0], ERR_INVALID)
            client.negotiate_structured()
            client.negotiate_extended()
            self.assertEqual(client.ask(EXTENDED_HEADERS)[0][0], ERR_INVALID)
            self.assertEqual(client.ask(STRUCTURED)[0][0], ERR_EXT_HEADER_REQD)
            client.go()
            self.assert_in_step(client)

    def test_extended_headers_alone_stand_for_structured_replies(self):
        with RawClient(self.server.socket) as client:
            client.negotiate_extended()
            self.assertEqual(client.ask(STRUCTURED)[0][0], ERR_EXT_HEADER_REQD)
            client.go(contexts=[b"base:allocation"])
            self.assert_in_step(client)

    def test_export_name_is_no_way_to_extended_headers(self):
        with RawClient(self.server.socket) as client:
            client.negotiate_extended()
            client.option(EXPORT_NAME, b"")
            self.assertEqual(client.sock.recv(1), b"")

    def test_list_tells_of_them(self):
        self.assertIn("64-bit", run(*tool("nbd"), "-L", "-k", self.server.socket).stdout)

    # --- transmission

    def test_reads_and_writes(self):
        client = self.client()
        for flags in (0, PAYLOAD_LEN, PAYLOAD_LEN | 1):
            for size in (1, 4096, 70000, 1 << 20):
                payload = random.Random(size + flags).randbytes(size)
                client.request(WRITE, 7 << 40, size, flags=flags, payload=payload)
                self.assertEqual(client.chunk(), (1, 1, 0, b""))
                self.assertEqual(client.chunk_offset, 7 << 40)
                client.request(READ, 7 << 40, size, cookie=2, flags=4)
                _, _, kind, got = client.chunk()
                self.assertEqual((kind, got[8:]), (DATA, payload))
        self.assert_in_step(client)

    def test_large_read_with_holes(self):
        client = self.client()
        client.request(READ, (1 << 20) - 65536, 1 << 20)
        chunks = client.chunks()
        self.assertEqual([kind for kind, _ in chunks], [DATA, HOLE])
        self.assertEqual(chunks[0][1][8:], self.data[-65536:])
        self.assertEqual(chunks[1][1], struct.pack(">QI", 1 << 20, (1 << 20) - 65536))
        self.assertEqual(client.chunk_offset, (1 << 20) - 65536)

    def extents(self, client, offset, length, flags=0):
        """{context: [(length, flags)]}"""
        client.request(BLOCK_STATUS, offset, length, flags=flags)
        result = {}
        for kind, payload in client.chunks():
            self.assertEqual(kind, STATUS_EXT)
            context, count = struct.unpack(">II", payload[:8])
            self.assertEqual(len(payload), 8 + 16 * count)
            result[context] = list(struct.iter_unpack(">QQ", payload[8:]))
        return result

    def test_block_status_of_all(self):
        client = self.client([b"base:allocation", b"qemu:allocation-depth"])
        whole, mib = 20 << 40, 1 << 20
        first, second = (6 << 40) - mib, (14 << 40) - mib
        self.assertEqual(
            self.extents(client, 0, whole),
            {0: [(mib, 0), (first, 3), (mib, 0), (second, 3)],
             1: [(mib, 1), (first, 0), (mib, 1), (second, 0)]},
        )  # fmt: skip
        self.assertEqual(self.extents(client, mib, whole - mib, flags=8)[0], [(first, 3)])

    def flags(self, option, extended=True, contexts=()):
        with RawClient(self.server.socket) as client:
            if extended:
                client.negotiate_extended()
            if contexts:
                client.ask(nbd_raw.SET_META, nbd_raw.meta_data(b"", *contexts))
            replies = client.ask(option, nbd_raw.go_data(b""))
            (info,) = [data for _, data in replies[:-1] if data[:2] == b"\0\0"]
            return struct.unpack(">H", info[10:])[0]

    def test_block_status_of_some_contexts(self):
        for option in (nbd_raw.INFO, nbd_raw.GO):
            self.assertTrue(self.flags(option, contexts=[b"base:allocation"]) & 1 << 12)
            self.assertFalse(self.flags(option, extended=False) & 1 << 12)
        self.assertFalse(self.flags(nbd_raw.GO) & 1 << 12)
        client = self.client([b"base:allocation", b"qemu:allocation-depth"])

        def ask(offset, length, *ids, flags=0):
            payload = struct.pack(f">Q{len(ids)}I", length, *ids)
            client.request(
                BLOCK_STATUS, offset, len(payload), flags=flags | PAYLOAD_LEN, payload=payload
            )
            return client.chunks()

        mib = 1 << 20
        first = (6 << 40) - mib
        for ids in ((0,), (1,), (1, 0)):
            chunks = ask(0, first, *ids, flags=8)
            self.assertEqual([kind for kind, _ in chunks], [STATUS_EXT] * len(ids))
            self.assertEqual(
                {struct.unpack(">I", payload[:4])[0] for _, payload in chunks}, set(ids)
            )
        self.assertEqual(ask(mib, first, 1, flags=8)[0][1], struct.pack(">IIQQ", 1, 1, first, 0))
        for offset, length, *ids in ((0, mib, 2), (0, mib, 0, 0), (0, mib, 0, 1, 0), (0, mib, 7, 1),
                                     (0, mib), (0, 0, 1), (0, (20 << 40) + 1, 0),
                                     (5, (1 << 64) - 1, 0)):  # fmt: skip
            with self.subTest(offset=offset, length=length, ids=ids):
                ((kind, payload),) = ask(offset, length, *ids)
                self.assertEqual((kind, payload[:4]), (ERROR, struct.pack(">I", EINVAL)))
        self.assert_in_step(client)

    def test_zeroes_trim_and_cache_of_more_than_4_gib(self):
        client = self.client([b"base:allocation"])
        client.request(WRITE_ZEROES, 0, 5 * GiB)
        self.assertEqual(client.error(), 0)
        client.request(TRIM, 6 << 40, 9 * GiB)
        self.assertEqual(client.error(), 0)
        client.request(CACHE, 0, 20 << 40)
        self.assertEqual(client.error(), 0)
        self.assertEqual(
            sum(length for length, flags in self.extents(client, 0, 20 << 40)[0] if not flags & 2), 0
        )

    # --- requests that are wrong

    def test_impossible_lengths_are_refused(self):
        client = self.client([b"base:allocation"])
        for kind, wanted in ((TRIM, EINVAL), (CACHE, EINVAL), (READ, EINVAL), (BLOCK_STATUS, EINVAL),
                             (WRITE_ZEROES, ENOSPC)):  # fmt: skip
            for offset, length in ((0, (1 << 64) - 1), (1, (1 << 64) - 1), ((1 << 64) - 1, 2),
                                   (4096, 20 << 40), (1 << 63, 1 << 63)):  # fmt: skip
                with self.subTest(kind=kind, offset=offset, length=length):
                    client.request(kind, offset, length)
                    self.assertEqual(client.error(), wanted)
                    self.assertEqual(client.chunk_offset, offset)
        client.request(READ, 0, 5 * GiB)
        self.assertEqual(client.error(), EINVAL)
        self.assert_in_step(client)

    def test_payload_of_a_command_that_has_none_is_read_past(self):
        client = self.client([b"base:allocation"])
        for kind in (READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 77):
            for size in (1, 70000):
                with self.subTest(kind=kind, size=size):
                    client.request(kind, 0, size, flags=PAYLOAD_LEN, payload=b"p" * size)
                    self.assertEqual(client.error(), EINVAL)
        self.assert_in_step(client)

    def test_payload_that_is_too_long_ends_the_session(self):
        for kind in (WRITE, TRIM):
            for size in ((32 << 20) + 1, (1 << 64) - 1):
                client = self.client()
                client.request(kind, 0, size, flags=PAYLOAD_LEN)
                self.assertTrue(client.is_closed())

    def test_compact_request_ends_the_session(self):
        client = self.client()
        client.extended = False
        client.request(READ, 0, 16)
        client.send(b"\0" * 32)
        self.assertTrue(client.is_closed())

    def test_extended_request_without_negotiation_ends_the_session(self):
        with RawClient(self.server.socket) as client:
            client.go()
            client.extended = True
            client.request(READ, 0, 16)
            self.assertTrue(client.is_closed())

    def test_payload_flag_means_nothing_without_extended_headers(self):
        with RawClient(self.server.socket) as client:
            client.go()
            client.request(WRITE, 0, 4, flags=PAYLOAD_LEN, payload=b"abcd")
            self.assertEqual(client.error(), EINVAL)
            client.request(TRIM, 0, 4096, flags=PAYLOAD_LEN)
            self.assertEqual(client.error(), EINVAL)

    def test_many_requests_at_once(self):
        client = self.client()
        form = ">IHHQQQ"
        talk = b"".join(
            struct.pack(form, nbd_raw.EXTENDED_REQUEST_MAGIC, 0, WRITE, i, i * 100000, 100000)
            + bytes([i]) * 100000
            for i in range(1, 60)
        )
        client.send(talk)
        self.assertEqual({client.chunk()[0] for _ in range(1, 60)}, set(range(1, 60)))
        for i in range(1, 60):
            client.request(READ, i * 100000, 100000)
            self.assertEqual(b"".join(p[8:] for _, p in client.chunks()), bytes([i]) * 100000)


if __name__ == "__main__":
    unittest.main()
