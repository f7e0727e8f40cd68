# SPDX-License-Identifier: Apache-2.0
"""What the NBD server does with requests: every command, its errors, and the order of the stream.
"""

import os
import random
import struct
import unittest

import nbd
import nbd_raw
from nbd_raw import (
    BLOCK_STATUS, CACHE, EINVAL, ENOSPC, EPERM, FLUSH, GO, INFO, READ, TRIM, WRITE, WRITE_ZEROES,
    RawClient, go_data,
)  # fmt: skip
from nbd_server import NbdServer
from tidemark import Process, TestCase, can_connect, compat

SIZE = 8 << 20
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
INFO_BLOCK_SIZE, ERR_BLOCK_SIZE_REQD = 3, 0x80000008


class CommandsTest(TestCase):
    def setUp(self):
        super().setUp()
        self.content = random.Random(1).randbytes(SIZE)
        self.disk = self.path("disk.raw")
        with open(self.disk, "wb") as disk:
            disk.write(self.content)

    def serve(self, *arguments, **more):
        return self.own(NbdServer(self.dir, "-f", "raw", *arguments, self.disk, **more))

    def client(self, server, *contexts):
        handle = nbd.NBD()
        for context in contexts:
            handle.add_meta_context(context)
        handle.connect_unix(server.socket)
        return handle

    def on_disk(self, offset, size):
        with open(self.disk, "rb") as disk:
            disk.seek(offset)
            return disk.read(size)

    # --- data

    def test_reads_of_all_sizes_and_places_give_what_is_stored(self):
        for structured in (False, True):
            handle = nbd.NBD()
            handle.set_request_structured_replies(structured)
            handle.connect_unix(self.serve(name=f"s{structured}", shared=0).socket)
            for offset, size in (
                (0, 1), (0, 512), (1, 4095), (4000, 65536), (65535, 65537), (0, 1 << 20),
                (SIZE - 1, 1), (123457, 3 << 20), (0, SIZE),
            ):  # fmt: skip
                with self.subTest(structured=structured, offset=offset, size=size):
                    self.assertEqual(
                        handle.pread(size, offset), self.content[offset : offset + size]
                    )
            handle.shutdown()
            self.end_processes()

    def test_writes_of_all_sizes_and_places_arrive(self):
        handle = self.client(self.serve())
        expected = bytearray(self.content)
        choose = random.Random(2)
        for offset, size in (
            (0, 1), (0, 512), (511, 3), (4096, 4096), (70000, 65535), (200000, 65536),
            (300001, 65537), (500000, 262144), (1000000, 3 << 20), (SIZE - 5, 5),
        ):  # fmt: skip
            data = choose.randbytes(size)
            handle.pwrite(data, offset, choose.choice((0, nbd.CMD_FLAG_FUA)))
            expected[offset : offset + size] = data
        handle.flush()
        self.assertEqual(self.on_disk(0, SIZE), bytes(expected))

    def test_many_requests_in_flight_are_all_answered_right(self):
        handle = self.client(self.serve())
        choose = random.Random(3)
        expected = bytearray(self.content)
        pending = []
        # Disjoint blocks, so that the order doesn't matter; sizes mix all ways of receiving.
        for block in range(0, SIZE, 131072):
            size = choose.choice((1, 512, 4096, 65535, 65536, 100000, 131072))
            if choose.random() < 0.5:
                data = choose.randbytes(size)
                expected[block : block + size] = data
                cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), block)
                pending.append((cookie, None, None))
            else:
                buf = nbd.Buffer(size)
                pending.append((handle.aio_pread(buf, block), buf, block))
        while handle.aio_in_flight() > 0:
            handle.poll(-1)
        for cookie, buf, block in pending:
            self.assertTrue(handle.aio_command_completed(cookie))
            if buf is not None:
                data = bytes(buf.to_bytearray())
                self.assertEqual(data, self.content[block : block + len(data)])
        self.assertEqual(self.on_disk(0, SIZE), bytes(expected))

    def test_zeroes_and_trim(self):
        handle = self.client(self.serve("--discard=unmap"))
        handle.zero(65536, 4096)
        handle.zero(1000, 200001, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
        handle.trim(65536, 1 << 20)
        handle.cache(1 << 20, 0)
        self.assertEqual(self.on_disk(4096, 65536), bytes(65536))
        self.assertEqual(self.on_disk(200001, 1000), bytes(1000))
        self.assertEqual(self.on_disk(201001, 1000), self.content[201001:202001])
        self.assertEqual(self.on_disk(1 << 20, 65536), bytes(65536))
        self.assertEqual(self.on_disk(0, 4096), self.content[:4096])

    def test_holes_are_sent_as_holes(self):
        with open(self.disk, "r+b") as disk:
            os.posix_fallocate(disk.fileno(), 0, SIZE)
            disk.truncate(0)
            disk.truncate(SIZE)
            disk.seek(1 << 20)
            disk.write(b"x" * 65536)
        with RawClient(self.serve().socket) as client:
            client.go()
            client.request(READ, 0, 2 << 20)
            chunks = client.chunks()
            self.assertEqual([kind for kind, _ in chunks], [2, 1, 2])
            self.assertEqual(struct.unpack(">QI", chunks[0][1]), (0, 1 << 20))
            self.assertEqual(chunks[1][1][8:], b"x" * 65536)
            client.request(READ, 0, 2 << 20, flags=DF)
            chunks = client.chunks()
            self.assertEqual([kind for kind, _ in chunks], [1])
            self.assertEqual(chunks[0][1][8:], bytes(1 << 20) + b"x" * 65536 + bytes(983040))

    def test_disk_of_no_bytes(self):
        with open(self.disk, "wb"):
            pass
        handle = self.client(self.serve())
        self.assertEqual(handle.get_size(), 0)
        handle.flush()

    # --- errors; the stream stays in step

    def assert_error(self, client, error, kind, offset, length, flags=0, payload=b""):
        client.request(kind, offset, length, flags, payload=payload)
        with self.subTest(kind=kind, offset=offset, length=length, flags=flags):
            self.assertEqual(client.error(), error)

    def assert_in_step(self, client):
        client.request(READ, 7, 9, cookie=99)
        self.assertEqual(client.chunks(), [(1, struct.pack(">Q", 7) + self.content[7:16])])

    def test_requests_out_of_bounds_are_refused_and_their_payload_read_past(self):
        with RawClient(self.serve().socket) as client:
            client.go(contexts=[b"base:allocation"])
            for kind, error in (
                (READ, EINVAL), (TRIM, EINVAL), (CACHE, EINVAL), (BLOCK_STATUS, EINVAL),
                (WRITE_ZEROES, ENOSPC), (WRITE, ENOSPC),
            ):  # fmt: skip
                for offset, length in (
                    (SIZE, 1), (SIZE - 1, 2), (1 << 63, 512), ((1 << 64) - 1, 2), (SIZE + 5, 70000),
                ):  # fmt: skip
                    payload = bytes(length) if kind == WRITE else b""
                    self.assert_error(client, error, kind, offset, length, payload=payload)
                self.assert_in_step(client)

    def test_requests_that_are_too_long_are_refused(self):
        with RawClient(self.serve().socket, timeout=60) as client:
            client.go()
            self.assert_error(client, EINVAL, READ, 0, (32 << 20) + 1)
            self.assert_error(client, EINVAL, READ, 0, 0xFFFFFFFF)
            self.assert_error(
                client, EINVAL, WRITE, 0, (32 << 20) + 1, payload=bytes((32 << 20) + 1)
            )
            self.assert_in_step(client)

    def test_a_client_that_cannot_know_the_limit_may_exceed_it(self):
        """After NBD_OPT_EXPORT_NAME; the tests of nbd-server read 42 MB at once."""
        length = (32 << 20) + 512
        os.truncate(self.disk, length + SIZE)
        server = self.serve()
        for structured in (False, True):
            with self.subTest(structured=structured), RawClient(server.socket, timeout=60) as client:
                if structured:
                    client.negotiate_structured()
                client.option(nbd_raw.EXPORT_NAME, b"")
                client.receive(10)
                data = random.Random(length).randbytes(length)
                client.request(READ, 0, 512, cookie=0)
                client.request(WRITE, 4096, length, cookie=1, payload=data)
                client.request(READ, 4096, length, cookie=2)
                client.request(READ, length + SIZE - 4096, length, cookie=3)
                found = bytearray(length)
                if structured:
                    cookies = []
                    while len(cookies) < 4:
                        cookie, flags, kind, payload = client.chunk()
                        if cookie == 2 and kind == 1:
                            at = int.from_bytes(payload[:8], "big") - 4096
                            found[at : at + len(payload) - 8] = payload[8:]
                        if flags & 1:
                            cookies.append(cookie)
                            self.assertEqual(kind == 0x8001, cookie == 3)
                    self.assertEqual(cookies, [0, 1, 2, 3])
                else:
                    self.assertEqual((client.simple_reply(), len(client.receive(512))), ((0, 0), 512))
                    self.assertEqual([client.simple_reply() for _ in range(2)], [(1, 0), (2, 0)])
                    found = client.receive(length)
                    self.assertEqual(client.simple_reply(), (3, EINVAL))
                self.assertTrue(found == data)
                self.assertTrue(self.on_disk(4096, length) == data)
        self.assertLess(server.resident(), 64 << 20)

    def test_unknown_commands_and_flags_are_refused(self):
        with RawClient(self.serve().socket) as client:
            client.go(contexts=[b"base:allocation"])
            self.assert_error(client, EINVAL, 8, 0, 0)
            self.assert_error(client, EINVAL, 0xFFFF, 0, 0)
            self.assert_error(client, EINVAL, READ, 0, 512, flags=NO_HOLE)
            self.assert_error(client, EINVAL, WRITE, 0, 4, flags=0x8000, payload=b"data")
            self.assert_error(client, EINVAL, TRIM, 0, 512, flags=DF)
            self.assert_error(client, EINVAL, WRITE_ZEROES, 0, 512, flags=REQ_ONE)
            self.assert_error(client, EINVAL, BLOCK_STATUS, 0, 512, flags=FAST_ZERO)
            self.assert_error(client, EINVAL, BLOCK_STATUS, 0, 0)
            self.assert_in_step(client)
            self.assertEqual(self.on_disk(0, 4), self.content[:4])

    def test_read_only_export_refuses_changes(self):
        with RawClient(self.serve("-r").socket) as client:
            client.go()
            self.assert_error(client, EPERM, WRITE, 0, 100000, payload=bytes(100000))
            self.assert_error(client, EPERM, WRITE_ZEROES, 0, 4096)
            self.assert_error(client, EPERM, TRIM, 0, 4096)
            self.assert_error(client, 0, FLUSH, 0, 0)
            self.assert_error(client, 0, CACHE, 0, 4096)
            self.assert_in_step(client)

    def test_simple_replies_carry_errors_too(self):
        with RawClient(self.serve().socket) as client:
            client.go(structured=False)
            client.request(READ, SIZE, 1, cookie=5)
            self.assertEqual(client.simple_reply(), (5, EINVAL))
            client.request(READ, 0, 4, flags=DF, cookie=6)
            self.assertEqual(client.simple_reply(), (6, EINVAL))
            client.request(BLOCK_STATUS, 0, 4096, cookie=7)
            self.assertEqual(client.simple_reply(), (7, EINVAL))
            client.request(READ, 0, 4, cookie=8)
            self.assertEqual(client.simple_reply(), (8, 0))
            self.assertEqual(client.receive(4), self.content[:4])

    def test_requests_of_no_bytes_succeed(self):
        with RawClient(self.serve().socket) as client:
            client.go()
            for kind in (READ, WRITE, TRIM, WRITE_ZEROES, CACHE):
                self.assert_error(client, 0, kind, 4096, 0)
            self.assert_in_step(client)

    def test_wrong_request_magic_ends_the_session(self):
        server = self.serve("-x", "disk")
        with RawClient(server.socket) as client:
            client.go(b"disk")
            client.send(b"\0" * 28)
            self.assertTrue(client.is_closed())
        who = f"warning: NBD client unix:{os.getpid()}, export 'disk'"
        why = "a request begins with 0x00000000, not with the magic number 0x25609513"
        server.wait_for(lambda: f"{who}: {why}; disconnected" in server.log(), why)
        self.assert_in_step(self.connected(server))

    def connected(self, server):
        client = RawClient(server.socket)
        self.addCleanup(client.sock.close)
        client.go(b"disk")
        return client

    def test_far_too_long_payload_ends_the_session(self):
        server = self.serve()
        with RawClient(server.socket) as client:
            client.negotiate_extended()
            client.go()
            client.request(WRITE, 4096, (32 << 20) + 1, flags=32)
            self.assertTrue(client.is_closed())
        why = "NBD_CMD_WRITE (offset 4096) with a payload of 33554433 bytes; at most 33554432 are possible"
        server.wait_for(lambda: f": {why}; disconnected" in server.log(), why)

    def test_refusals_say_what_is_wrong(self):
        with RawClient(self.serve().socket) as client:
            client.go(contexts=[b"base:allocation"])
            for sentence, kind, offset, length, flags in (
                (b"NBD_CMD_READ reaches beyond the end of the export: offset 8388600, length 512; "
                 b"the export has 8388608 bytes", READ, SIZE - 8, 512, 0),
                (b"NBD_CMD_READ of 33554433 bytes; at most 33554432 are possible",
                 READ, 0, (32 << 20) + 1, 0),
                (b"NBD_CMD_READ has the flags 0x2; it may have 0x5 here", READ, 0, 512, NO_HOLE),
                (b"NBD_CMD_BLOCK_STATUS of no bytes", BLOCK_STATUS, 0, 0, 0),
                (b"Command 77 is unknown", 77, 0, 0, 0),
            ):  # fmt: skip
                client.request(kind, offset, length, flags)
                self.assertEqual(client.chunks()[0][1][6:], sentence)

    def test_refusals_of_a_read_only_export_say_what_is_wrong(self):
        with RawClient(self.serve("-r").socket) as client:
            client.go()
            client.request(TRIM, 0, 4096)
            self.assertEqual(client.chunks()[0][1][6:], b"NBD_CMD_TRIM: the export is read-only")
            client.request(BLOCK_STATUS, 0, 4096)
            self.assertIn(b"no metadata context was selected", client.chunks()[0][1])

    # --- clients that leave or stay away

    def test_client_that_leaves_at_any_byte_of_a_write(self):
        server = self.serve()
        for size in (100000, 600):
            talk = struct.pack(">IHHQQI", nbd_raw.REQUEST_MAGIC, 0, WRITE, 1, 0, size)
            talk += self.content[:size]
            for cut in (*range(0, 40), size // 2, size + 27, size + 28):
                with RawClient(server.socket) as client:
                    client.go()
                    client.send(talk[:cut])
        handle = self.client(server)
        self.assertEqual(handle.pread(4096, 0), self.content[:4096])
        handle.shutdown()
        server.stop()
        self.assertEqual(self.on_disk(0, SIZE), self.content)

    def test_client_that_reads_no_answers_holds_up_nobody(self):
        server = self.serve()
        with RawClient(server.socket) as greedy:
            greedy.go()
            greedy.sock.settimeout(1)
            asked = 0
            try:
                for _ in range(4000):
                    greedy.request(READ, 0, 4 << 20)
                    asked += 1
            except TimeoutError:
                pass
            handle = self.client(server)
            self.assertEqual(handle.pread(4096, 0), self.content[:4096])
            self.assertLess(server.resident(), 256 << 20)
        server.stop()

    def test_requests_in_flight_finish_after_the_client_has_gone(self):
        server = self.serve()
        with RawClient(server.socket) as client:
            client.go()
            for i in range(64):
                client.request(WRITE, i * 65536, 65536, cookie=i, payload=b"w" * 65536)
            client.request(nbd_raw.DISC)
            self.assertTrue(client.is_closed())
        self.assertEqual(self.on_disk(0, 64 * 65536), b"w" * (64 * 65536))

    def test_zero_sectors_of_small_reads_are_holes(self):
        with open(self.disk, "r+b") as disk:
            disk.write(b"a" * 512 + bytes(1024) + b"b" * 600 + bytes(4096 - 2136))
        with RawClient(self.serve().socket) as client:
            client.go()

            def read(offset, length, flags=0):
                client.request(READ, offset, length, flags=flags)
                found = []
                for kind, payload in client.chunks():
                    at = int.from_bytes(payload[:8], "big")
                    size = int.from_bytes(payload[8:], "big") if kind == 2 else len(payload) - 8
                    found.append((kind, at, size))
                    if kind == 1:
                        self.assertEqual(payload[8:], self.on_disk(at, size))
                return found

            self.assertEqual(read(0, 4096), [(1, 0, 512), (2, 512, 1024), (1, 1536, 1024), (2, 2560, 1536)])
            self.assertEqual(read(100, 1000), [(1, 100, 412), (2, 512, 512), (1, 1024, 76)])
            self.assertEqual(read(600, 100), [(1, 600, 100)])
            self.assertEqual(read(512, 1024), [(2, 512, 1024)])
            self.assertEqual(read(0, 4096, flags=DF), [(1, 0, 4096)])

    def serve_probed(self):
        socket = self.path("probed")
        command = [compat("qemu-nbd"), "-t", "-k", socket, self.disk]
        server = self.own(Process(command, self.path("probed.log")))
        server.wait_for(lambda: can_connect(socket), "the server")
        return socket

    def block_sizes(self, replies):
        return [data for kind, data in replies if kind == 3 and data[:2] == b"\0\3"]

    def test_a_probed_raw_image_has_blocks_of_a_sector(self):
        with RawClient(self.serve_probed()) as client:
            replies = client.ask(GO, go_data(b"", INFO_BLOCK_SIZE))
            self.assertEqual(
                self.block_sizes(replies), [struct.pack(">HIII", 3, 512, 4096, 32 << 20)]
            )
            client.request(READ, 1, 10)
            self.assertEqual(client.simple_reply(), (1, 0))

    def test_block_sizes_are_those_of_the_node(self):
        options = (
            f"driver=blkdebug,image.driver=file,image.filename={self.disk},align=4096,"
            "opt-write-zero=64k,max-transfer=1M,max-write-zero=64k"
        )
        server = self.own(
            NbdServer(self.dir, "-r", "--image-opts", options, name="limits")
        )
        with RawClient(server.socket) as client:
            replies = client.ask(GO, go_data(b"", INFO_BLOCK_SIZE))
            self.assertEqual(
                self.block_sizes(replies), [struct.pack(">HIII", 3, 4096, 4096, 1 << 20)]
            )
            # Requests that do not keep to them are served all the same.
            client.request(READ, 1, 10)
            self.assertEqual(client.simple_reply(), (1, 0))
            client.receive(10)
            client.request(READ, 0, 2 << 20)
            self.assertEqual(client.simple_reply(), (1, 0))

    def test_who_does_not_ask_for_block_sizes_is_not_held_to_them(self):
        with RawClient(self.serve_probed()) as client:
            ((kind, text),) = client.ask(INFO, go_data(b""))
            self.assertEqual(kind, ERR_BLOCK_SIZE_REQD)
            self.assertIn(b"blocks of 512 bytes", text)
            self.assertEqual(
                self.block_sizes(client.go()), [struct.pack(">HIII", 3, 1, 4096, 32 << 20)]
            )

    def test_flush_has_no_flags_but_fua(self):
        with RawClient(self.serve().socket) as client:
            client.go()
            for flag in (2, 4, 8, 16, 0x8000):
                self.assert_error(client, EINVAL, FLUSH, 0, 0, flags=flag)
            self.assert_error(client, 0, FLUSH, 0, 0, flags=1)

    # --- block status

    def extents(self, handle, length, offset=0, flags=0):
        found = {}

        def callback(context, start, entries, _):
            self.assertEqual(start, offset)
            found[context] = list(zip(entries[::2], entries[1::2], strict=True))

        handle.block_status(length, offset, callback, flags)
        return found

    def test_block_status_of_a_sparse_file(self):
        with open(self.disk, "wb") as disk:
            disk.truncate(SIZE)
            disk.seek(1 << 20)
            disk.write(b"x" * 65536)
        handle = self.client(self.serve("-A"), "base:allocation", "qemu:allocation-depth")
        all_of_it = [(1 << 20, 3), (65536, 0), (SIZE - (1 << 20) - 65536, 3)]
        found = self.extents(handle, SIZE)
        self.assertEqual(found["base:allocation"], all_of_it)
        self.assertEqual(found["qemu:allocation-depth"], [(SIZE, 1)])
        self.assertEqual(
            self.extents(handle, SIZE - 512, 512, nbd.CMD_FLAG_REQ_ONE)["base:allocation"],
            [((1 << 20) - 512, 3)],
        )
        self.assertEqual(
            self.extents(handle, 1000, (1 << 20) - 500)["base:allocation"], [(500, 3), (500, 0)]
        )

    def test_block_status_lengths_up_to_the_limit_of_32_bits(self):
        with open(self.disk, "wb") as disk:
            disk.truncate(1 << 40)
        handle = self.client(self.serve(), "base:allocation")
        for length in (0xFFFFFFFF, 0xFFFFFFFE, 0x80000000, 1):
            found = self.extents(handle, length, 4096)["base:allocation"]
            self.assertEqual(found, [(length, 3)])

    def test_status_of_many_extents(self):
        with open(self.disk, "wb") as disk:
            disk.truncate(32 << 20)
            for i in range(0, 32 << 20, 16384):
                disk.seek(i)
                disk.write(b"x" * 4096)
        handle = self.client(self.serve(), "base:allocation")
        found = self.extents(handle, 32 << 20)["base:allocation"]
        self.assertEqual(found, [(4096, 0), (12288, 3)] * 2048)


if __name__ == "__main__":
    unittest.main()
