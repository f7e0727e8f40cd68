# SPDX-License-Identifier: Apache-2.0
"""Our NBD client with servers that lie, stall or break off."""

import json
import os
import socket
import struct
import threading
import time
import unittest

from nbd_hostile import Hostile, block_sizes, chunk, export_info, extended_chunk, reply
from nbd_raw import ACK, ERR_UNSUP, GO, SIMPLE_MAGIC
from nbd_server import Nbdkit, NbdServer
from tidemark import TestCase, img, io, qemu_img, run, tool

SIZE = 1 << 20


def receive_or_nothing(sock, size):
    try:
        return sock.recv(size, socket.MSG_WAITALL)
    except ConnectionResetError:
        return b""


class HostileCase(TestCase):
    def hostile(self, **more):
        self.path_of_socket = self.path("h")
        self.server = Hostile(self.path_of_socket, **more)
        self.addCleanup(self.server.close)
        return f"nbd+unix:///?socket={self.path_of_socket}"

    def read_fails(self, answer, sentence="", **more):
        """A read that the server answers with answer(cookie) must fail, in time, and say why."""

        def on_request(send, kind, cookie, offset, length):
            send(answer(cookie))

        uri = self.hostile(on_request=on_request, **more)
        result = io(uri, "read 4096 8192", fmt="raw", check=False, timeout=20)
        self.assertNotEqual(result.returncode, 0, result.stdout)
        self.assertIn("read failed", result.stdout + result.stderr)
        if sentence:
            who = f"NBD server unix:{self.path_of_socket}, export ''"
            self.assertIn(f"warning: {who}: {sentence}", result.stderr)
        else:
            self.assertNotIn("warning", result.stderr)

    READ = "reply to NBD_CMD_READ (offset 4096, length 8192): "

    def status_fails(self, answer, sentence, **more):
        """A block status that the server answers with answer(cookie) must fail, and say why."""

        def on_request(send, kind, cookie, offset, length):
            send(answer(cookie))

        uri = self.hostile(on_request=on_request, context=7, **more)
        result = img("map", "-f", "raw", uri, check=False, timeout=20)
        self.assertNotEqual(result.returncode, 0, result.stdout)
        self.assertIn(
            f"NBD server unix:{self.path_of_socket}, export '': reply to NBD_CMD_BLOCK_STATUS "
            f"(offset 0, length {SIZE}){sentence}",
            result.stderr,
        )

class ClientTest(HostileCase):

    def test_relative_backing_file_is_not_looked_for_where_we_run(self):
        qemu_img("create", "-q", "-f", "raw", self.path("base.raw"), "1M")
        top = self.path("top.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top)
        server = self.own(NbdServer(self.dir, "-r", "-f", "raw", top))
        program, word = tool("io")
        command = (os.path.abspath(program), word, "-r", "-f", "qcow2", "-c", "read 0 512")
        result = run(*command, server.uri(), cwd=self.dir, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("has no directory that 'base.raw' could be in", result.stderr)

    def refuses_to_open(self, sentence, **more):
        uri = self.hostile(**more)
        result = img("info", uri, check=False, timeout=20)
        self.assertEqual(result.returncode, 1)
        self.assertIn(sentence, result.stderr)

    def test_messages_name_what_was_being_read(self):
        self.refuses_to_open("Failed to read initial magic: Unexpected end-of-file", hello=b"NBDM")

    def test_strange_hellos_are_refused(self):
        self.refuses_to_open("Bad initial magic", hello=b"SSH-2.0-whatever\r\n")

    def oldstyle(self, size=SIZE, flags=1):
        """A server that says at once what it has, and knows no options."""
        path = self.path("old")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        self.addCleanup(listener.close)

        def serve():
            with listener.accept()[0] as sock:
                sock.sendall(struct.pack(">8sQQI", b"NBDMAGIC", 0x00420281861253, size, flags) + bytes(124))
                while request := receive_or_nothing(sock, 28):
                    _, _, kind, cookie, _, length = struct.unpack(">IHHQQI", request)
                    if kind == 2:
                        return
                    sock.sendall(struct.pack(">IIQ", SIMPLE_MAGIC, 0, cookie) + b"o" * length)

        threading.Thread(target=serve, daemon=True).start()
        return f"nbd+unix:///{{}}?socket={path}"

    def test_oldstyle_servers_are_understood(self):
        io(self.oldstyle().format(""), "read -P 0x6f 4k 64k", fmt="raw", options=("-r",))

    def test_oldstyle_servers_have_no_export_names(self):
        result = img("info", self.oldstyle().format("name"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("has no export names", result.stderr)

    def test_oldstyle_servers_with_impossible_flags_are_refused(self):
        result = img("info", self.oldstyle(flags=1 << 16).format(""), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("transmission flags", result.stderr)

    def test_sizes_that_are_no_multiple_of_the_minimum_block_are_refused(self):
        self.refuses_to_open(
            "no multiple of its minimum block size 4096",
            info=[export_info(size=SIZE - 512), block_sizes(4096, 4096, 1 << 20)],
        )

    def test_extents_that_are_known_are_forgotten_by_a_write(self):
        """convert asks for the status of its target: what it wrote there must not pass for a hole.
        """
        image = self.create("disk.raw", "16M", fmt="raw")
        server = self.own(NbdServer(self.dir, "--discard=unmap", "-f", "raw", image))
        cow = ("driver=copy-on-read,file.driver=raw,file.file.driver=nbd,file.file.server.type=unix,"
               f"file.file.server.path={server.socket}")  # fmt: skip
        program = tool("io")
        words = [w for c in ("map", "write 4M 1M", "map") for w in ("-c", c)]
        out = run(*program, "--image-opts", *words, cow).stdout
        self.assertIn("wrote", out)
        found = img("map", "--output=json", "-f", "raw", server.uri()).stdout
        self.assertIn('"start": 4194304, "length": 1048576', found)

    def test_many_extents_take_few_requests(self):
        image = self.path("many.raw")
        with open(image, "wb") as file:
            for n in range(512):
                file.seek(n * 16384)
                file.write(b"d" * 4096)
            file.truncate(512 * 16384)
        log = self.path("requests")
        server = self.own(Nbdkit(self.dir, "--filter=log", "file", image, f"logfile={log}"))
        extents = json.loads(img("map", "--output=json", "-f", "raw", server.uri()).stdout)
        self.assertGreater(len(extents), 1000)
        with open(log, encoding="utf-8") as file:
            self.assertLess(sum("Extents" in line and " id=" in line for line in file), 100)

    def test_impossible_size_is_refused(self):
        self.refuses_to_open("impossible size", info=[export_info(size=1 << 63)])

    def test_impossible_block_sizes_are_refused(self):
        self.refuses_to_open(
            "block sizes are invalid", info=[export_info(), block_sizes(3, 4096, 1 << 20)]
        )

    def test_absent_export_info_is_refused(self):
        self.refuses_to_open(
            "Unexpected answer of the NBD server to NBD_OPT_GO: NBD_REP_ACK (0x1) with 0 bytes of "
            "data; expected is NBD_REP_INFO, and NBD_REP_ACK after that of NBD_INFO_EXPORT",
            info=[],
        )

    def test_missing_flags_are_refused(self):
        self.refuses_to_open("transmission flags", info=[export_info(flags=0)])

    def test_far_too_long_option_reply_is_refused(self):
        self.refuses_to_open("too long", info=[(3, b"\0" * 100000)])

    def test_data_outside_of_the_read(self):
        self.read_fails(
            lambda c: chunk(c, 1, struct.pack(">Q", 0) + b"x" * 8192),
            self.READ + "range of a structured reply is outside of the request: offset 0, "
            "length 8192; disconnected",
        )

    def test_more_data_than_was_asked_for(self):
        self.read_fails(
            lambda c: chunk(c, 1, struct.pack(">Q", 4096) + b"x" * 8193),
            self.READ + "range of a structured reply is outside of the request: offset 4096, "
            "length 8193; disconnected",
        )

    def test_the_same_data_twice(self):
        part = struct.pack(">Q", 4096) + b"x" * 8192
        self.read_fails(
            lambda c: chunk(c, 1, part, flags=0) + chunk(c, 1, part),
            self.READ + "a part of the request was answered twice: in offset 4096, length 8192",
        )

    def test_one_half_twice_and_the_other_not_at_all(self):
        half = struct.pack(">Q", 4096) + b"x" * 4096
        self.read_fails(
            lambda c: chunk(c, 1, half, flags=0) + chunk(c, 1, half),
            self.READ + "a part of the request was answered twice: in offset 4096, length 4096",
        )

    def test_too_many_pieces(self):
        """Every second byte: more ranges than a client keeps account of."""

        def on_request(send, kind, cookie, offset, length):
            for at in range(0, length, 2):
                send(chunk(cookie, 1, struct.pack(">Q", offset + at) + b"x", flags=0))

        uri = self.hostile(on_request=on_request)
        result = io(uri, "read 0 16k", fmt="raw", check=False, timeout=20)
        self.assertIn("it came in more than 4096 pieces apart from each other", result.stderr)

    def test_many_pieces_in_an_odd_order(self):
        """Every second KiB, then the others backwards: a client has to keep account of what is
        there.
        """

        def on_request(send, kind, cookie, offset, length):
            order = [*range(0, length, 2048), *reversed(range(1024, length, 2048))]
            for at in order:
                send(chunk(cookie, 1, struct.pack(">Q", offset + at) + b"o" * 1024, flags=0))
            send(chunk(cookie, 0, b""))

        io(self.hostile(on_request=on_request), "read -P 0x6f 0 64k", fmt="raw", options=("-r",))

    def test_less_data_than_was_asked_for(self):
        self.read_fails(
            lambda c: chunk(c, 1, struct.pack(">Q", 4096) + b"x" * 4096),
            "reply to NBD_CMD_READ (offset 4096, length 8192) ended after 4096 bytes of data and "
            "holes",
        )

    def test_hole_that_is_too_long(self):
        self.read_fails(
            lambda c: chunk(c, 2, struct.pack(">QI", 4096, 0xFFFFFFFF)),
            self.READ + "range of a structured reply is outside of the request: offset 4096, "
            "length 4294967295",
        )

    def test_hole_of_another_form(self):
        self.read_fails(
            lambda c: chunk(c, 2, struct.pack(">QQ", 4096, 8192)),
            self.READ + "a chunk of type NBD_REPLY_TYPE_OFFSET_HOLE has 16 bytes, not 12",
        )

    def test_chunk_that_is_too_short(self):
        self.read_fails(
            lambda c: chunk(c, 1, b"\0\0\0\0"),
            self.READ + "a chunk of type NBD_REPLY_TYPE_OFFSET_DATA has 4 bytes, not more than 8",
        )

    def test_unknown_cookie(self):
        self.read_fails(
            lambda c: chunk(0xABCDEF, 0, b""),
            "a reply has the cookie 0x0000000000abcdef, which is no request's in flight",
        )

    def test_unknown_chunk_type(self):
        self.read_fails(
            lambda c: chunk(c, 77, b"abc"),
            self.READ + "a chunk of type unknown (77) is no reply to this command",
        )

    def test_status_instead_of_data(self):
        self.read_fails(
            lambda c: chunk(c, 5, struct.pack(">III", 0, 4096, 0)),
            self.READ + "a chunk of type NBD_REPLY_TYPE_BLOCK_STATUS (5) is no reply to this "
            "command",
        )

    def test_end_with_a_payload(self):
        self.read_fails(
            lambda c: chunk(c, 0, b"abc"),
            self.READ + "a chunk of type NBD_REPLY_TYPE_NONE has 3 bytes, not 0",
        )

    def test_end_that_is_none(self):
        self.read_fails(
            lambda c: chunk(c, 0, b"", flags=0),
            self.READ + "a chunk of type NBD_REPLY_TYPE_NONE has the flags 0x0: the flag 'done' is "
            "missing",
        )

    def test_simple_reply_where_chunks_were_agreed(self):
        self.read_fails(
            lambda c: struct.pack(">IIQ", SIMPLE_MAGIC, 0, c) + b"x" * 8192,
            self.READ + "a simple reply without an error, where chunks were negotiated",
        )

    def test_chunk_where_none_was_agreed(self):
        self.read_fails(
            lambda c: chunk(c, 1, struct.pack(">Q", 4096) + b"x" * 8192),
            self.READ + "a chunk of type NBD_REPLY_TYPE_OFFSET_DATA (1), but structured replies "
            "were not negotiated",
            structured=False,
        )

    def test_error_text_that_is_too_long(self):
        self.read_fails(
            lambda c: chunk(c, 0x8001, struct.pack(">IH", 5, 60000) + b"e" * 60000),
            self.READ + "an error chunk has 60006 bytes, not 6 to 4110",
        )

    def test_error_text_longer_than_its_chunk(self):
        self.read_fails(
            lambda c: chunk(c, 0x8001, struct.pack(">IH", 5, 100) + b"short"),
            self.READ + "an error chunk of 11 bytes has a text of 100 bytes",
        )

    def test_error_that_is_none(self):
        self.read_fails(
            lambda c: chunk(c, 0x8001, struct.pack(">IH", 0, 0)),
            self.READ + "an error chunk has the error value 0",
        )

    def test_garbage(self):
        self.read_fails(
            lambda c: b"\xff" * 64,
            "a reply begins with 0xffffffff, not with the magic number 0x67446698 or 0x668e33ef",
        )

    def test_extents_of_a_context_that_was_not_agreed(self):
        self.status_fails(
            lambda c: chunk(c, 5, struct.pack(">III", 8, 4096, 0)),
            ": extents of the metadata context 8, which was not negotiated",
        )

    def test_extents_of_a_context_twice(self):
        extents = struct.pack(">III", 7, 4096, 0)
        self.status_fails(
            lambda c: chunk(c, 5, extents, flags=0) + chunk(c, 5, extents),
            ": extents of the metadata context 7 came twice",
        )

    def test_extent_of_no_bytes(self):
        self.status_fails(
            lambda c: chunk(c, 5, struct.pack(">IIIII", 7, 4096, 0, 0, 0)),
            ": one of 2 extents has length 0",
        )

    def test_extents_of_another_form(self):
        self.status_fails(
            lambda c: chunk(c, 5, struct.pack(">IIQ", 7, 4096, 0)),
            ": a chunk of type NBD_REPLY_TYPE_BLOCK_STATUS has 16 bytes, not 4 and 8 for each "
            "extent",
        )

    def test_far_too_many_extents(self):
        self.status_fails(
            lambda c: chunk(c, 5, struct.pack(">I", 7), length=4 + 8 * ((1 << 20) + 1)),
            ": it has 1048577 extents; at most 1048576 are accepted",
        )

    def test_status_without_extents(self):
        self.status_fails(
            lambda c: chunk(c, 0, b""),
            " has no extents for the context 'base:allocation', which was negotiated",
        )

    def test_option_reply_with_another_magic(self):
        self.refuses_to_open(
            "The NBD server's reply to NBD_OPT_EXTENDED_HEADERS begins with 0x7878787878787878, not "
            "with the magic number 0x0003e889045565a9",
            on_option=lambda option: b"x" * 20,
        )

    def test_option_reply_to_another_option(self):
        self.refuses_to_open(
            "The NBD server replied to option 3 (NBD_OPT_LIST) when 11 (NBD_OPT_EXTENDED_HEADERS) was "
            "asked",
            on_option=lambda option: reply(3, ACK),
        )

    def test_text_of_a_refusal_is_no_command_for_the_terminal(self):
        self.refuses_to_open(
            "server reported: no ?[2J way",
            on_option=lambda option: reply(
                option, 0x80000006 if option == GO else ERR_UNSUP, b"no \x1b[2J way"
            ),
        )

    def test_info_of_another_form(self):
        self.refuses_to_open(
            "Unexpected answer of the NBD server to NBD_OPT_GO: NBD_REP_INFO of kind 0 with 3 bytes",
            info=[(3, b"\0\0\0")],
        )

    def test_an_error_is_an_error(self):
        self.read_fails(lambda c: chunk(c, 0x8001, struct.pack(">IH", 28, 4) + b"full"))

    def test_server_that_breaks_off_in_the_midst_of_an_answer(self):
        answer = chunk(0, 1, struct.pack(">Q", 4096) + b"x" * 8192)
        for cut in (0, 1, 15, 16, 19, 20, 27, 28, 5000, len(answer) - 1):

            def on_request(send, kind, cookie, offset, length, size=cut):
                send(chunk(cookie, 1, struct.pack(">Q", 4096) + b"x" * 8192)[:size])
                raise EOFError

            with self.subTest(cut=cut):
                path = self.path(f"b{cut}")
                server = Hostile(path, on_request=on_request)
                result = io(
                    f"nbd+unix:///?socket={path}", "read 4096 8192", fmt="raw", check=False,
                    timeout=20,
                )  # fmt: skip
                server.close()
                self.assertIn("read failed", result.stdout + result.stderr)

    def test_server_that_does_not_hang_up_is_left_behind(self):
        def on_request(send, kind, cookie, offset, length):
            send(chunk(cookie, 2, struct.pack(">QI", offset, length)))

        start = time.monotonic()
        io(self.hostile(on_request=on_request, linger=60), "read -P 0 0 4096", fmt="raw",
           options=("-r",))  # fmt: skip
        self.assertLess(time.monotonic() - start, 10)

    def test_honest_answers_in_any_order_and_shape_are_understood(self):
        """The same fake server, behaving: otherwise the tests above would prove little."""

        def on_request(send, kind, cookie, offset, length):
            half = length // 2
            send(
                chunk(cookie, 2, struct.pack(">QI", offset + half, length - half), flags=0)
                + chunk(cookie, 1, struct.pack(">Q", offset) + b"h" * half, flags=0)
                + chunk(cookie, 0, b"")
            )

        uri = self.hostile(on_request=on_request)
        io(uri, "read -P 0x68 -l 4096 4096 8192", "read -P 0 -s 4096 -l 4096 4096 8192", fmt="raw",
           options=("-r",))  # fmt: skip


class ExtendedHeadersTest(HostileCase):
    """With extended headers there is one kind of reply, and lengths have 64 bits."""

    def test_simple_reply(self):
        self.read_fails(
            lambda c: struct.pack(">IIQ", SIMPLE_MAGIC, 0, c) + b"x" * 8192,
            "a reply begins with 0x67446698, not with the magic number 0x6e8a278c; disconnected",
            extended=True,
        )

    def test_short_chunk(self):
        self.read_fails(
            lambda c: chunk(c, 1, struct.pack(">Q", 4096) + b"x" * 8192),
            "a reply begins with 0x668e33ef, not with the magic number 0x6e8a278c; disconnected",
            extended=True,
        )

    def test_extended_chunk_where_extended_headers_were_not_agreed(self):
        self.read_fails(
            lambda c: extended_chunk(c, 1, struct.pack(">Q", 4096) + b"x" * 8192),
            "a reply begins with 0x6e8a278c, not with the magic number 0x67446698 or 0x668e33ef",
        )

    def test_chunk_of_another_offset(self):
        self.read_fails(
            lambda c: extended_chunk(c, 1, struct.pack(">Q", 4096) + b"x" * 8192, offset=0),
            self.READ + "a chunk of type NBD_REPLY_TYPE_OFFSET_DATA (1) is for the offset 0",
            extended=True,
        )

    def test_data_of_an_impossible_length(self):
        self.read_fails(
            lambda c: extended_chunk(c, 1, struct.pack(">Q", 4096), length=(1 << 63) + 8),
            self.READ + "range of a structured reply is outside of the request: offset 4096, "
            f"length {1 << 63}",
            extended=True,
        )

    def test_error_chunk_of_an_impossible_length(self):
        self.read_fails(
            lambda c: extended_chunk(c, 0x8001, b"", length=1 << 40),
            self.READ + f"an error chunk has {1 << 40} bytes, not 6 to 4110",
            extended=True,
        )

    def extents_fail(self, payload, sentence, kind=6, **more):
        self.status_fails(
            lambda c: extended_chunk(c, kind, payload, offset=0, **more), sentence, extended=True
        )

    def test_short_extents(self):
        self.extents_fail(
            struct.pack(">III", 7, 4096, 0),
            ": a chunk of type NBD_REPLY_TYPE_BLOCK_STATUS (5) is no reply to this command",
            kind=5,
        )

    def test_extended_extents_where_extended_headers_were_not_agreed(self):
        self.status_fails(
            lambda c: chunk(c, 6, struct.pack(">IIQQ", 7, 1, 4096, 0)),
            ": a chunk of type NBD_REPLY_TYPE_BLOCK_STATUS_EXT (6) is no reply to this command",
        )

    def test_count_that_is_not_that_of_the_extents(self):
        self.extents_fail(
            struct.pack(">IIQQ", 7, 2, 4096, 0),
            ": a chunk of type NBD_REPLY_TYPE_BLOCK_STATUS_EXT has 1 extents, and says that it has 2",
        )

    def test_extents_of_another_form(self):
        self.extents_fail(
            struct.pack(">IIQQI", 7, 1, 4096, 0, 0),
            ": a chunk of type NBD_REPLY_TYPE_BLOCK_STATUS_EXT has 28 bytes, not 8 and 16 for each "
            "extent",
        )

    def test_extent_of_no_bytes(self):
        self.extents_fail(struct.pack(">IIQQ", 7, 1, 0, 0), ": one of 1 extents has length 0")

    def test_far_too_many_extents(self):
        self.extents_fail(
            b"", ": it has 1048577 extents; at most 1048576 are accepted",
            length=8 + 16 * ((1 << 20) + 1),
        )  # fmt: skip

    def test_extents_of_more_than_4_gib_are_asked_for_at_once(self):
        size, hole, asked = 1 << 40, 5 << 37, []

        def on_request(send, kind, cookie, offset, length):
            asked.append(length)
            extents = struct.pack(">QQ", hole - offset, 3) if offset < hole else b""
            extents += struct.pack(">QQ", size, 0) if offset + length > hole else b""
            head = struct.pack(">II", 7, len(extents) // 16)
            send(extended_chunk(cookie, 6, head + extents, offset=offset))

        uri = self.hostile(
            info=[export_info(size)], on_request=on_request, context=7, extended=True
        )
        extents = json.loads(img("map", "--output=json", "-f", "raw", uri).stdout)
        self.assertEqual(
            [(e["start"], e["length"], e["data"]) for e in extents],
            [(0, hole, False), (hole, size - hole, True)],
        )
        self.assertGreater(max(asked), 4 << 30)
        self.assertLess(len(asked), 40)

    def test_writes_say_that_their_payload_has_their_length(self):
        uri = self.hostile(
            on_request=lambda send, kind, cookie, offset, length: send(
                extended_chunk(cookie, 0, b"", offset=offset)
            ),
            info=[export_info(flags=1 | 4)],
            extended=True,
        )
        io(uri, "write 4096 8192", fmt="raw")
        self.assertEqual([f for f in self.server.flags_seen if f[0] == 1], [(1, 32)])
        self.assertTrue(all(flags == 0 for kind, flags in self.server.flags_seen if kind != 1))

    def test_honest_answers_are_understood(self):
        def on_request(send, kind, cookie, offset, length):
            half = length // 2
            send(
                extended_chunk(
                    cookie, 2, struct.pack(">QI", offset + half, length - half), flags=0, offset=offset
                )
                + extended_chunk(
                    cookie, 1, struct.pack(">Q", offset) + b"h" * half, flags=0, offset=offset
                )
                + extended_chunk(cookie, 0, b"", offset=offset)
            )

        uri = self.hostile(on_request=on_request, extended=True)
        io(uri, "read -P 0x68 -l 4096 4096 8192", "read -P 0 -s 4096 -l 4096 4096 8192", fmt="raw",
           options=("-r",))  # fmt: skip


if __name__ == "__main__":
    unittest.main()
