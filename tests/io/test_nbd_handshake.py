# SPDX-License-Identifier: Apache-2.0
"""The NBD server's handshake: what it offers, and clients that don't behave."""

import os
import resource
import socket
import struct
import time
import unittest

import nbd_raw
from nbd_raw import (
    ABORT, ACK, ERR_INVALID, ERR_POLICY, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, EXPORT_NAME,
    EXTENDED_HEADERS, GO,
    INFO, LIST, LIST_META, META_CONTEXT, SERVER, SET_META, STARTTLS, STRUCTURED,
    RawClient, go_data, meta_data,
)  # fmt: skip
from nbd_server import NbdServer
from tidemark import TestCase, wait_until

SIZE = 1 << 20


class HandshakeTest(TestCase):
    def serve(self, *arguments, **more):
        return self.own(NbdServer(self.dir, "-f", "raw", *arguments, self.disk(), **more))

    def disk(self):
        path = self.path("disk.raw")
        with open(path, "wb") as disk:
            disk.write(b"d" * SIZE)
        return path

    def assert_serves(self, server, name=b""):
        with RawClient(server.socket) as client:
            client.go(name, structured=False)
            client.request(nbd_raw.READ, 0, 16)
            self.assertEqual(client.simple_reply(), (1, 0))
            self.assertEqual(client.receive(16), b"d" * 16)

    # --- options

    def test_hello_offers_fixed_newstyle(self):
        with RawClient(self.serve().socket) as client:
            self.assertEqual(client.hello, b"NBDMAGICIHAVEOPT\0\3")

    def test_export_name_is_followed_by_zeroes_unless_declined(self):
        server = self.serve("-x", "disk")
        for flags, zeroes in ((1, 124), (3, 0)):
            with RawClient(server.socket, flags) as client:
                client.option(EXPORT_NAME, b"disk")
                size, _ = struct.unpack(">QH", client.receive(10))
                self.assertEqual(size, SIZE)
                self.assertEqual(client.receive(zeroes), b"\0" * zeroes)
                client.request(nbd_raw.READ, 0, 4)
                self.assertEqual(client.simple_reply(), (1, 0))

    def test_list_names_exports_with_description(self):
        server = self.serve("-x", "disk", "-D", "a disk")
        with RawClient(server.socket) as client:
            self.assertEqual(
                client.ask(LIST), [(SERVER, nbd_raw.string(b"disk") + b"a disk"), (ACK, b"")]
            )
            self.assertEqual(client.ask(LIST, b"x")[0][0], ERR_INVALID)

    def test_info_and_go_tell_size_flags_and_block_sizes(self):
        server = self.serve("-r", "-x", "disk")
        with RawClient(server.socket) as client:
            for option in (INFO, GO):
                infos = [data for _, data in client.ask(option, go_data(b"disk", 3))[:-1]]
                self.assertIn(struct.pack(">HIII", 3, 1, 4096, 32 << 20), infos)
                self.assertIn(struct.pack(">HQH", 0, SIZE, 0x50F), infos)

    def test_unknown_exports_and_options_are_refused_and_the_session_goes_on(self):
        server = self.serve("-x", "disk")
        with RawClient(server.socket) as client:
            self.assertEqual(
                client.ask(GO, go_data(b"no")), [(ERR_UNKNOWN, b"export 'no' not present")]
            )
            self.assertEqual(client.ask(INFO, go_data(b""))[0][0], ERR_UNKNOWN)
            self.assertEqual(client.ask(4711, b"data")[0][0], ERR_UNSUP)
            self.assertEqual(client.ask(STARTTLS)[0][0], ERR_POLICY)
            client.go(b"disk")

    def test_unknown_export_name_ends_the_session(self):
        server = self.serve("-x", "disk")
        with RawClient(server.socket) as client:
            client.option(EXPORT_NAME, b"other")
            self.assertEqual(client.sock.recv(1), b"")

    def test_abort_is_acknowledged(self):
        with RawClient(self.serve().socket) as client:
            self.assertEqual(client.ask(ABORT), [(ACK, b"")])
            self.assertEqual(client.sock.recv(1), b"")

    def test_malformed_options_are_refused_and_the_session_goes_on(self):
        server = self.serve()
        wrong = [b"", b"\0\0\0\5abc", go_data(b"")[:-1], go_data(b"") + b"x", b"\xff" * 8,
                 struct.pack(">IHH", 0, 2, 3)]  # fmt: skip
        with RawClient(server.socket) as client:
            for data in wrong:
                with self.subTest(data=data):
                    self.assertEqual(client.ask(GO, data)[0][0], ERR_INVALID)
            self.assertEqual(client.ask(STRUCTURED, b"x")[0][0], ERR_INVALID)
            client.negotiate_structured()
            self.assertEqual(client.ask(STRUCTURED)[0][0], ERR_INVALID)
            for data in (b"", b"\0\0\0\0", struct.pack(">II", 0, 1), meta_data(b"", b"q") + b"x"):
                with self.subTest(meta=data):
                    self.assertEqual(client.ask(SET_META, data)[0][0], ERR_INVALID)
            self.assertEqual(client.ask(GO, go_data(b""))[-1][0], ACK)

    def test_what_is_wrong_with_an_option_is_said(self):
        server = self.serve()
        with RawClient(server.socket) as client:
            for option, data, sentence in (
                (LIST, b"x", b"NBD_OPT_LIST takes no data, and has 1 bytes"),
                (STRUCTURED, b"abc", b"NBD_OPT_STRUCTURED_REPLY takes no data, and has 3 bytes"),
                (GO, b"\0\0\0\5abc", b"NBD_OPT_GO has 7 bytes of data that do not have its form"),
                (4711, bytes(70000), b"unknown with 70000 bytes of data; at most 65536 are accepted"),
            ):  # fmt: skip
                self.assertIn(sentence, client.ask(option, data)[0][1])

    # --- clients that break the protocol: they are dropped, and the log says why

    def assert_dropped(self, server, sentence, *options, flags=3):
        """A client that sends each of `options` (number, data) or bytes."""
        with RawClient(server.socket, flags=flags) as client:
            for option in options:
                if isinstance(option, bytes):
                    client.send(option)
                else:
                    client.option(*option)
            self.assertTrue(client.is_closed())
        who = f"warning: NBD client unix:{os.getpid()}"
        server.wait_for(lambda: f"{who}: {sentence}; disconnected" in server.log(), sentence)

    def test_unknown_client_flags_end_the_session(self):
        self.assert_dropped(
            self.serve(), "the client flags are 0x00000007; they may have 0x3", flags=7
        )

    def test_wrong_option_magic_ends_the_session(self):
        self.assert_dropped(
            self.serve(),
            "an option begins with 0x474554202f204854, not with the magic number "
            "0x49484156454f5054",
            b"GET / HTTP/1.1\r\n\r\n",
        )

    def test_far_too_long_option_ends_the_session(self):
        server = self.serve()
        self.assert_dropped(
            server,
            "option 7 (NBD_OPT_GO) with 1048577 bytes of data; at most 1048576 are possible",
            (GO, b"", (1 << 20) + 1),
        )
        self.assert_dropped(
            server,
            "option 1 (NBD_OPT_EXPORT_NAME) with 4097 bytes of data; at most 4096 are possible",
            (EXPORT_NAME, b"", 4097),
        )

    def test_option_of_a_client_without_options_ends_the_session(self):
        self.assert_dropped(
            self.serve(),
            "option 3 (NBD_OPT_LIST) without the flag for fixed newstyle, which leaves "
            "NBD_OPT_EXPORT_NAME alone",
            (LIST, b""),
            flags=0,
        )

    def test_export_name_that_cannot_be_served_ends_the_session(self):
        server = self.serve("-x", "disk")
        self.assert_dropped(
            server,
            "NBD_OPT_EXPORT_NAME for 'a?name', which is not exported",
            (EXPORT_NAME, b"a\nname"),
        )
        self.assert_dropped(
            server,
            "NBD_OPT_EXPORT_NAME with a name of 3 bytes, of which one is zero",
            (EXPORT_NAME, b"a\0b"),
        )
        self.assert_dropped(
            server,
            "NBD_OPT_EXPORT_NAME after extended headers, which need NBD_OPT_GO",
            (EXTENDED_HEADERS, b""),
            (EXPORT_NAME, b"disk"),
        )

    # --- metadata contexts

    def test_contexts_need_structured_replies_to_be_selected(self):
        with RawClient(self.serve().socket) as client:
            data = meta_data(b"", b"base:allocation")
            self.assertEqual(client.ask(SET_META, data)[0][0], ERR_INVALID)
            # A client may look first, as it may with other servers.
            self.assertEqual(
                client.ask(LIST_META, data), [(META_CONTEXT, bytes(4) + b"base:allocation"), (ACK, b"")]
            )

    def test_wildcards_list_but_do_not_select(self):
        def names(option, *queries):
            replies = client.ask(option, meta_data(b"", *queries))
            self.assertEqual(replies[-1], (ACK, b""))
            self.assertTrue(all(kind == META_CONTEXT for kind, _ in replies[:-1]))
            return [data[4:] for _, data in replies[:-1]]

        both = [b"base:allocation", b"qemu:allocation-depth"]
        with RawClient(self.serve("-A").socket) as client:
            client.negotiate_structured()
            self.assertEqual(names(LIST_META), [*both, b"x-tidemark:merged"])
            self.assertEqual(names(LIST_META, b"x-tidemark:"), [b"x-tidemark:merged"])
            self.assertEqual(names(LIST_META, b"x-tidemark:merged:"), [])
            self.assertEqual(names(LIST_META, b"base:"), both[:1])
            self.assertEqual(names(LIST_META, b"qemu:"), both[1:])
            self.assertEqual(names(LIST_META, b"qemu:dirty-bitmap:"), [])
            self.assertEqual(names(SET_META, b"base:", b"qemu:"), [])
            self.assertEqual(names(SET_META, b"x-other:y", *both, both[0]), both)
            self.assertEqual(names(SET_META), [])
            self.assertEqual(client.ask(SET_META, meta_data(b"no", *both))[0][0], ERR_UNKNOWN)

    def test_selection_is_void_for_another_export_or_after_a_failed_one(self):
        with RawClient(self.serve().socket) as client:
            client.negotiate_structured()
            client.ask(SET_META, meta_data(b"", b"base:allocation"))
            self.assertEqual(client.ask(SET_META, meta_data(b"no", b"x"))[0][0], ERR_UNKNOWN)
            client.ask(GO, go_data(b""))
            client.request(nbd_raw.BLOCK_STATUS, 0, 4096)
            self.assertEqual(client.error(), nbd_raw.EINVAL)

    # --- sizes

    def test_export_names_of_all_sizes(self):
        for size in (0, 255, 256, 257, 4096):
            name = b"n" * size
            server = self.serve("-x", name.decode(), name=f"s{size}", shared=0)
            with self.subTest(size=size), RawClient(server.socket) as client:
                client.go(name)
            self.assert_serves(server, name)
            server.stop()

    def test_names_that_are_too_long_are_refused(self):
        server = self.serve()
        with RawClient(server.socket) as client:
            self.assertEqual(client.ask(GO, go_data(b"n" * 4097))[0][0], ERR_INVALID)
            self.assertEqual(client.ask(INFO, go_data(b"n" * 70000))[0][0], ERR_TOO_BIG)
            client.go(b"")
        with RawClient(server.socket) as client:
            client.option(EXPORT_NAME, b"n" * 4097)
            self.assertTrue(client.is_closed())
        for option in (EXPORT_NAME, GO, INFO, LIST_META, SET_META, LIST, 4711):
            with self.subTest(option=option), RawClient(server.socket) as client:
                client.option(option, b"n" * 100, length=0xFFFFFFFF)
                self.assertTrue(client.is_closed())
        # The name alone is said to be that long.
        with RawClient(server.socket) as client:
            self.assertEqual(client.ask(GO, b"\xff\xff\xff\xffabcdef")[0][0], ERR_INVALID)
        self.assert_serves(server)
        self.assertLess(server.resident(), 64 << 20)

    # --- clients that leave or stay

    def test_disconnection_at_every_byte_of_the_handshake(self):
        server = self.serve()
        contexts = meta_data(b"", b"base:allocation")
        parts = [
            b"\0\0\0\3",
            struct.pack(">QII", nbd_raw.IHAVEOPT, STRUCTURED, 0),
            struct.pack(">QII", nbd_raw.IHAVEOPT, SET_META, len(contexts)) + contexts,
            struct.pack(">QII", nbd_raw.IHAVEOPT, GO, 6) + go_data(b""),
            struct.pack(">IHHQQI", nbd_raw.REQUEST_MAGIC, 0, nbd_raw.READ, 1, 0, 4096),
            struct.pack(">IHHQQI", nbd_raw.REQUEST_MAGIC, 0, nbd_raw.WRITE, 2, 0, 8) + b"dddddddd",
        ]
        talk = b"".join(parts)
        for size in range(len(talk) + 1):
            with RawClient(server.socket, flags=None) as client:
                client.send(talk[:size])
                if size % 3 == 0:
                    client.sock.shutdown(socket.SHUT_WR)
                    client.is_closed()
        self.assert_serves(server)
        server.stop()

    def test_idle_flood_does_not_lock_out_an_honest_client(self):
        server = self.serve(shared=100)
        flood = []
        self.addCleanup(lambda: [sock.close() for sock in flood])
        for _ in range(200):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(server.socket)
            flood.append(sock)
        start = time.monotonic()
        self.assert_serves(server)
        self.assertLess(time.monotonic() - start, 8)
        self.assertLess(server.resident(), 128 << 20)

    def test_idle_flood_does_not_keep_all_descriptors(self):
        server = self.serve(
            shared=0, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        )
        flood = []
        self.addCleanup(lambda: [sock.close() for sock in flood])
        for _ in range(90):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(server.socket)
            flood.append(sock)
        start = time.monotonic()
        self.assert_serves(server)
        # ten, if they could stay as long as a handshake may
        self.assertLess(time.monotonic() - start, 6)

    def test_clients_in_transmission_are_never_pushed_out(self):
        server = self.serve(shared=2)
        with RawClient(server.socket) as first, RawClient(server.socket) as second:
            first.go(structured=False)
            second.go(structured=False)
            with RawClient(server.socket, flags=None) as third:
                third.sock.settimeout(2)
                with self.assertRaises(TimeoutError):
                    third.receive(1)
                for client in (first, second):
                    client.request(nbd_raw.READ, 0, 4)
                    self.assertEqual(client.simple_reply(), (1, 0))
                    self.assertEqual(client.receive(4), b"dddd")
                first.request(nbd_raw.DISC)
                third.receive(18)

    def test_slow_handshake_is_dropped_after_ten_seconds(self):
        server = self.serve()
        with RawClient(server.socket, timeout=15) as client:
            start = time.monotonic()
            client.ask(LIST)
            self.assertTrue(client.is_closed())
            self.assertAlmostEqual(time.monotonic() - start, 10, delta=2)
        with RawClient(server.socket) as client:
            client.go(structured=False)
        self.assert_serves(server)

    def test_server_stops_while_clients_are_in_every_phase(self):
        server = self.serve()
        with (
            RawClient(server.socket, flags=None) as silent,
            RawClient(server.socket) as negotiating,
            RawClient(server.socket) as served,
        ):
            negotiating.option(GO, b"", length=100)
            served.go()
            wait_until(lambda: silent.receive(18), "the hello")
            server.stop()
            for client in (silent, negotiating, served):
                self.assertTrue(client.is_closed())


if __name__ == "__main__":
    unittest.main()
