# SPDX-License-Identifier: Apache-2.0
"""What has gone wrong in NBD servers, clients and copy tools before, each under the name by which
it became known. A test fails where the program has that fault.
"""

import contextlib
import itertools
import os
import random
import socket
import struct
import threading
import unittest

import nbd_raw
from nbd_hostile import Final, Hostile, chunk, export_info, extended_chunk, reply
from nbd_raw import (
    ABORT, ACK, ERR_INVALID, ERR_UNKNOWN, EXPORT_NAME, EXTENDED_HEADERS, GO, INFO, LIST, LIST_META,
    REP_INFO, SET_META, STARTTLS, STRUCTURED, RawClient, go_data, meta_data,
    string,
)  # fmt: skip
from nbd_server import Nbdkit, NbdServer
from test_nbd_tls import TlsTest
from tidemark import TestCase, compat, img, io, qemu_img
from tls_creds import x509

SIZE = 1 << 20
CONTEXT = b"base:allocation"


class Case(TestCase):
    def serve(self, *arguments, size=SIZE, **more):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.write(b"d" * 65536)
            file.truncate(size)
        return self.own(NbdServer(self.dir, "-f", "raw", *arguments, disk, **more))

    def assert_serves(self, server, name=b""):
        with RawClient(server.socket) as client:
            client.go(name, structured=False)
            client.request(nbd_raw.READ, 0, 16)
            self.assertEqual(client.simple_reply(), (1, 0))
            self.assertEqual(client.receive(16), b"d" * 16)

    def assert_ended(self, result, sentence=""):
        """It failed, and not by a signal."""
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(sentence, result.stdout + result.stderr)


class ProbingTest(Case):
    def test_cve_2013_1922_the_format_is_not_what_a_guest_wrote(self):
        """A guest wrote the header of another format into its raw disk, with a backing file."""
        secret = self.path("secret")
        with open(secret, "wb") as file:
            file.write(b"SECRET!!" * 8192)
        guest = self.path("guest.raw")
        with open(guest, "wb") as file:
            file.write(b"d" * SIZE)
        server = self.own(NbdServer(self.dir, "-f", "raw", guest))
        evil = self.path("evil.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", evil)
        with open(evil, "rb") as file:
            header = file.read(65536)
        io(server.uri(), f"write -s {self.write('header', header)} 0 64k", fmt="raw")
        with RawClient(server.socket) as client:
            client.go(structured=False)
            client.request(nbd_raw.READ, 0, 65536)
            self.assertEqual(client.simple_reply(), (1, 0))
            self.assertEqual(client.receive(65536), header)
        server.stop()
        # A guest whose disk was served without a format cannot make one, either.
        with open(guest, "wb") as file:
            file.write(b"d" * SIZE)
        server = self.own(
            NbdServer(self.dir, guest, name="guess", program=[compat("qemu-nbd")])
        )
        result = io(server.uri(), f"write -s {self.path('header')} 0 64k", fmt="raw", check=False)
        self.assertEqual(result.returncode, 1)
        with open(guest, "rb") as file:
            self.assertEqual(file.read(512), b"d" * 512)

    def write(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)


class LengthTest(Case):
    """Lengths of options and names."""

    def test_cve_2017_15118_export_names_longer_than_a_string_may_be(self):
        server = self.serve()
        with RawClient(server.socket) as client:
            for size in (4097, 4098, 5000, 8192, 30000):
                name = b"n" * size
                for option, data in (
                    (INFO, go_data(name)), (GO, go_data(name)),
                    (LIST_META, meta_data(name)), (SET_META, meta_data(name)),
                    (LIST_META, meta_data(b"", name)), (SET_META, meta_data(b"", name)),
                ):  # fmt: skip
                    with self.subTest(size=size, option=option):
                        self.assertGreater(client.ask(option, data)[0][0], 0x80000000)
            client.go(structured=False)
        with RawClient(server.socket) as client:
            client.option(EXPORT_NAME, b"n" * 5000)
            self.assertTrue(client.is_closed())
        self.assert_serves(server)

    def test_cve_2017_15119_endless_option_data_are_not_read(self):
        server = self.serve()
        for option in (LIST, GO, STARTTLS, ABORT, 4711):
            with self.subTest(option=option), RawClient(server.socket) as client:
                client.option(option, b"", length=0xFFFFFFFF)
                sent = 0
                try:
                    while sent < 64 << 20:
                        sent += client.sock.send(b"x" * 65536)
                except OSError:
                    pass
                self.assertLess(sent, 16 << 20)
        self.assert_serves(server)

    def test_cve_2020_10761_the_longest_name_makes_the_longest_error(self):
        server = self.serve()
        with RawClient(server.socket) as client:
            client.negotiate_structured()
            for name in (b"n" * 4096, b"\xff" * 4096, b"%s" * 2048):
                for option in (INFO, GO, LIST_META, SET_META):
                    data = go_data(name) if option in (INFO, GO) else meta_data(name, CONTEXT)
                    kind, text = client.ask(option, data)[0]
                    self.assertEqual(kind, ERR_UNKNOWN)
                    self.assertLessEqual(len(text), 4096)
            self.assertEqual(client.ask(GO, go_data(b""))[-1], (ACK, b""))
        self.assert_serves(server)

    def test_cve_2022_26495_lengths_that_overflow(self):
        server = self.serve()
        with RawClient(server.socket) as client:
            client.negotiate_structured()
            for length in (0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFC, 0x80000000, 0x7FFFFFFF, 7):
                name = struct.pack(">I", length)
                for option, data in (
                    (INFO, name + b"\0\0"), (GO, name + b"\0\0"), (GO, name + b"abcdef"),
                    (INFO, string(b"") + b"\xff\xff"), (GO, string(b"") + b"\xff\xff\0\3"),
                    (SET_META, name + b"\0\0\0\0"), (LIST_META, string(b"") + name),
                    (SET_META, string(b"") + struct.pack(">I", 1) + name),
                    (LIST_META, string(b"") + struct.pack(">I", 1) + name + b"base"),
                ):  # fmt: skip
                    with self.subTest(length=length, option=option):
                        self.assertEqual(client.ask(option, data)[-1][0], ERR_INVALID)
            client.go(structured=False)
        self.assert_serves(server)
        self.assertLess(server.resident(), 64 << 20)

    def test_cve_2022_26496_names_as_long_as_their_option(self):
        """A server that reads a name to a buffer of 1 or 4 KiB is overrun by these."""
        server = self.serve()
        for size in (1023, 1024, 1025, 2000, 4095, 4096, 4097, 16384, 65000):
            for option in (INFO, GO):
                with self.subTest(size=size, option=option), RawClient(server.socket) as client:
                    kind, _ = client.ask(option, go_data(b"n" * size, 0, 1, 2, 3))[0]
                    self.assertEqual(kind == ERR_UNKNOWN, size <= 4096)
                    client.go(structured=False)
        self.assert_serves(server)


class HandshakeTest(Case):
    def test_cve_2017_9524_who_does_not_negotiate_harms_nobody(self):
        server = self.serve()
        idle = [RawClient(server.socket, flags=None) for _ in range(40)]
        self.assert_serves(server)
        for n, client in enumerate(idle):
            if n % 2:
                client.send(b"\0\0\0\3"[: n % 5])
            client.sock.close()
        self.assert_serves(server)
        server.stop()

    def test_cve_2017_7539_who_goes_before_the_answer_harms_nobody(self):
        """Options whose answers find nobody any more."""
        server = self.serve()
        many = b"".join(
            struct.pack(">QII", nbd_raw.IHAVEOPT, option, len(data)) + data
            for option, data in (
                (LIST, b""), (STRUCTURED, b""), (LIST_META, meta_data(b"")), (INFO, go_data(b"", 3)),
                (4711, b"x"), (ABORT, b""),
            )  # fmt: skip
        )
        for cut in range(0, len(many) + 1, 3):
            with RawClient(server.socket) as client:
                client.send(many * 20 + many[:cut])
        self.assert_serves(server)
        server.stop()

    def test_cve_2024_7409_a_server_that_stops_under_handshakes(self):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.write(b"d" * SIZE)
        daemon = self.daemon("--blockdev", f"driver=file,node-name=disk,filename={disk}")
        path, over = self.path("s"), threading.Event()
        talk = b"\0\0\0\3" + struct.pack(">QII", nbd_raw.IHAVEOPT, GO, 10) + go_data(b"disk")

        def knock(seed):
            chance = random.Random(seed)
            while not over.is_set():
                with socket.socket(socket.AF_UNIX) as sock:
                    try:
                        sock.connect(path)
                        sock.send(talk[: chance.randrange(len(talk) + 1)])
                        sock.settimeout(chance.random() / 50)
                        sock.recv(1000)
                    except OSError:
                        over.wait(0.001)

        threads = [threading.Thread(target=knock, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        self.addCleanup(lambda: [thread.join() for thread in threads])
        self.addCleanup(over.set)
        for _ in range(30):
            daemon.qmp.command(
                "nbd-server-start", addr={"type": "unix", "data": {"path": path}}
            )
            daemon.qmp.command("block-export-add", type="nbd", id="e", **{"node-name": "disk"})
            # As many have come as did meanwhile: the moment differs each time.
            daemon.qmp.command("query-block-exports")
            daemon.qmp.command("nbd-server-stop")
        over.set()
        daemon.qmp.command("query-named-block-nodes")
        daemon.stop()

    def test_cve_2019_14851_options_in_any_order(self):
        server = self.serve()
        options = (
            (STRUCTURED, b""), (EXTENDED_HEADERS, b""), (LIST, b""), (INFO, go_data(b"")),
            (INFO, go_data(b"other")), (SET_META, meta_data(b"", CONTEXT)),
            (LIST_META, meta_data(b"")), (GO, go_data(b"other")),
        )  # fmt: skip
        for order in itertools.product(options, repeat=3):
            with RawClient(server.socket) as client:
                for option, data in order:
                    kind = client.ask(option, data)[-1][0]
                    if kind == ACK and option == STRUCTURED:
                        client.structured = True
                    if kind == ACK and option == EXTENDED_HEADERS:
                        client.structured = client.extended = True
                self.assertEqual(client.ask(GO, go_data(b""))[-1][0], ACK, order)
                client.request(nbd_raw.READ, 0, 512)
                if client.structured:
                    self.assertEqual(client.chunks()[0][1][8:], b"d" * 512, order)
                else:
                    self.assertEqual(client.simple_reply(), (1, 0), order)
                    self.assertEqual(client.receive(512), b"d" * 512)


class BeforeTlsTest(TlsTest):
    """What was said in the clear, and who is not allowed yet."""

    def server(self):
        return self.serve(x509("server", self.creds.server))

    def test_cve_2021_3716_nothing_from_before_tls_remains(self):
        """Chunks that an attacker negotiated for the client would be garbage to it."""
        server = self.server()
        for before in ((STRUCTURED, b""), (EXTENDED_HEADERS, b""), (SET_META, meta_data(b"", CONTEXT))):
            with self.subTest(before=before[0]), RawClient(server.socket) as client:
                self.assertGreater(client.ask(*before)[-1][0], 0x80000000)
                self.start_tls(client)
                self.assertGreater(client.ask(SET_META, meta_data(b"", CONTEXT))[-1][0], 0x80000000)
                self.assertEqual(client.ask(GO, go_data(b""))[-1], (ACK, b""))
                client.request(nbd_raw.READ, 0, 512)
                self.assertEqual(client.simple_reply(), (1, 0))
                self.assertEqual(client.receive(512), self.data[:512])

    def test_cve_2019_14850_who_is_not_allowed_does_not_reach_the_disk(self):
        """Each connection would open the disk, with all that this costs, before TLS has begun."""
        server = self.server()

        def opened():
            where = f"/proc/{server.pid}/fd"
            links = []
            for fd in os.listdir(where):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    links.append(os.readlink(os.path.join(where, fd)))
            return links.count(self.disk)

        before = opened()
        self.assertGreater(before, 0)
        clients = [self.own_client(RawClient(server.socket)) for _ in range(20)]
        for client in clients:
            self.assertGreater(client.ask(INFO, go_data(b""))[-1][0], 0x80000000)
            self.assertGreater(client.ask(GO, go_data(b""))[-1][0], 0x80000000)
        self.assertEqual(opened(), before)

    def own_client(self, client):
        self.addCleanup(client.sock.close)
        return client

    def test_cve_2024_7383_certificates_are_verified(self):
        """Of another authority, of another name, or none that can be checked."""
        good = self.server()
        impostor = self.other_server()
        certificates = f"tls-certificates={self.creds.client}"
        for server, query in (
            (impostor, "&tls-hostname=disk.example"), (impostor, ""),
            (good, "&tls-hostname=other.example"), (good, ""), (good, "&tls-hostname="),
        ):  # fmt: skip
            with self.subTest(impostor=server is impostor, query=query):
                uri = f"nbds+unix:///?socket={server.socket}&{certificates}{query}"
                for command in (("info", "-f", "raw", uri), ("map", "-f", "raw", uri)):
                    self.assert_refused("", img(*command, check=False))
        uri = f"nbds+unix:///?socket={good.socket}&{certificates}&tls-hostname=disk.example"
        self.assertIn("1 MiB", img("info", "-f", "raw", uri).stdout)

    def other_server(self):
        stranger = self.creds.other_ca.make(f"s{random.random()}", "server")
        self.disk = self.path("other.raw")
        with open(self.disk, "wb") as file:
            file.truncate(SIZE)
        return self.serve(x509("server", stranger), name="impostor")


class StatusTest(Case):
    """Lengths of a block status at the limits."""

    LENGTHS = (0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFE00, 0xFFFFF000, 0x80000000, 0x7FFFFFFF, 513, 1)

    def extents(self, client, offset, length, flags=0):
        client.request(nbd_raw.BLOCK_STATUS, offset, length, flags)
        ((kind, payload),) = client.chunks()
        self.assertEqual(kind, 5, payload)
        return list(struct.iter_unpack(">II", payload[4:]))

    def check(self, server):
        with RawClient(server.socket) as client:
            client.go(contexts=[CONTEXT])
            for offset in (0, 1, 511, 4096, 65536 - 1, 1 << 32, (1 << 40) - 0xFFFFFFFF):
                for length in self.LENGTHS:
                    for flags in (0, 8):
                        with self.subTest(offset=offset, length=length, flags=flags):
                            found = self.extents(client, offset, length, flags)
                            self.assertTrue(all(n > 0 for n, _ in found))
                            total = sum(n for n, _ in found)
                            # Only the last extent may reach beyond what was asked for.
                            self.assertLess(total - found[-1][0], length)
                            if not flags:
                                self.assertGreaterEqual(total, length)
        self.assert_serves(server)

    def test_cve_2025_47711_extents_longer_than_32_bits(self):
        self.check(self.serve(size=1 << 40))

    def test_cve_2025_47712_lengths_that_overflow_when_they_are_aligned(self):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.write(b"d" * 65536)
            file.truncate(1 << 40)
        self.check(self.own(NbdServer(
            self.dir, "--image-opts",
            f"driver=blkdebug,align=4096,image.driver=file,image.filename={disk}",
        )))  # fmt: skip


class HostileServerTest(Case):
    """Our client."""

    def hostile(self, name="h", **more):
        path = self.path(name)
        server = Hostile(path, **more)
        self.addCleanup(server.close)
        return f"nbd+unix:///?socket={path}"

    def test_cve_2019_14842_data_before_the_read(self):
        """An offset that is less than that of the read, or so large that it looks negative."""
        offsets = (0, 4095, (1 << 64) - 4096, (1 << 63) + 4096, 4096 + (1 << 32), 4096 + 8192)
        for n, offset in enumerate(offsets):
            for extended in (False, True):

                def on_request(send, kind, cookie, at, length, of=offset, ext=extended):
                    make = extended_chunk if ext else chunk
                    send(make(cookie, 1, struct.pack(">Q", of) + b"x" * 512))

                uri = self.hostile(f"h{n}{extended}", on_request=on_request, extended=extended)
                result = io(uri, "read 4096 8192", fmt="raw", check=False, timeout=20)
                with self.subTest(offset=offset, extended=extended):
                    self.assert_ended(result, "is outside of the request")

    def test_cve_2021_20286_a_refusal_or_an_end_instead_of_the_export(self):
        good = b"".join(
            [reply(GO, REP_INFO, export_info()[1]), reply(GO, ACK)]
        )
        answers = [reply(GO, kind) for kind in (ERR_UNKNOWN, 0x80000001, 0x80000005, 0x8FFFFFFF)]
        answers += [good[:cut] for cut in range(0, len(good), 3)]
        for n, answer in enumerate(answers):

            def on_option(option, text=answer):
                if option != GO:
                    return reply(option, 0x80000001)
                return Final(text)

            uri = self.hostile(f"g{n}", on_option=on_option)
            with self.subTest(answer=answer):
                self.assert_ended(img("info", "-f", "raw", uri, check=False, timeout=20), "")

    def test_cve_2023_5215_sizes_that_look_negative(self):
        for n, size in enumerate((1 << 63, (1 << 63) + 4096, (1 << 64) - 1, (1 << 64) - 4096)):
            uri = self.hostile(f"s{n}", info=[export_info(size)])
            for command in (("info",), ("map",), ("convert", self.path("out"))):
                words = [command[0], "-f", "raw", uri, *command[1:]]
                with self.subTest(size=size, command=command[0]):
                    self.assert_ended(img(*words, check=False, timeout=20), "impossible size")

    def test_cve_2023_5871_block_status_of_another_form(self):
        """Extents without the count that they have, of the other width, or none at all."""
        forms = (
            (6, struct.pack(">IIQQ", 7, 0, SIZE, 0)), (6, struct.pack(">II", 7, 0)),
            (6, struct.pack(">IIQQ", 7, 0xFFFFFFFF, SIZE, 0)), (6, b""),
            (6, struct.pack(">IIQ", 7, 1, SIZE)), (5, struct.pack(">III", 7, SIZE, 0)),
            (6, struct.pack(">IIQQ", 8, 1, SIZE, 0)), (6, struct.pack(">IIQQ", 7, 1, 0, 0)),
        )  # fmt: skip
        for n, (kind, payload) in enumerate(forms):

            def on_request(send, command, cookie, offset, length, form=kind, data=payload):
                send(extended_chunk(cookie, form, data, offset=offset))

            uri = self.hostile(f"e{n}", on_request=on_request, context=7, extended=True)
            with self.subTest(kind=kind, payload=payload):
                self.assert_ended(
                    img("map", "-f", "raw", uri, check=False, timeout=20),
                    "reply to NBD_CMD_BLOCK_STATUS",
                )


class CopyTest(Case):
    """Tools that copy must not take an error for data, nor for success."""

    def faulty(self, *errors, size=SIZE):
        disk = self.path("faulty.raw")
        with open(disk, "wb") as file:
            file.write(b"f" * size)
        words = ("--filter=error", "file", disk, *errors)
        return self.own(Nbdkit(self.dir, *words, name=f"nbdkit{len(errors[0])}")).uri()

    def source(self):
        path = self.path("source.raw")
        with open(path, "wb") as file:
            file.write(random.Random(1).randbytes(SIZE))
        return path

    def test_cve_2022_0485_errors_of_the_source(self):
        uri = self.faulty("error-pread=EIO", "error-rate=100%")
        out = self.path("out")
        for words in (
            ("convert", "-f", "raw", uri, out), ("convert", "-W", "-m", "16", "-f", "raw", uri, out),
            ("convert", "-c", "-f", "raw", "-O", "qcow2", uri, out),
            ("dd", "-f", "raw", f"if={uri}", f"of={out}"), ("compare", "-f", "raw", "-F", "raw", uri, uri),
            ("rebuild-chain", uri, self.path("chain")),
        ):  # fmt: skip
            with self.subTest(words=words[:3]):
                result = img(*words, check=False)
                self.assertGreater(result.returncode, 0, result.stdout + result.stderr)
                self.assertIn("Input/output error", result.stdout + result.stderr)

    def test_cve_2022_0485_errors_of_the_target(self):
        source = self.source()
        for error in ("error-pwrite=ENOSPC", "error-pwrite=EIO", "error=EPERM"):
            uri = self.faulty(error, "error-rate=100%")
            for flags in ((), ("-W", "-m", "16")):
                result = img("convert", "-n", *flags, "-f", "raw", "-O", "raw", source, uri, check=False)
                with self.subTest(error=error, flags=flags):
                    self.assert_ended(result, "error while")

    def test_cve_2022_0485_an_error_of_the_last_flush(self):
        def on_request(send, kind, cookie, offset, length):
            error = struct.pack(">IH", 5, 0)
            send(chunk(cookie, *((0x8001, error) if kind == nbd_raw.FLUSH else (0, b""))))

        path = self.path("h")
        server = Hostile(path, on_request=on_request, info=[export_info(flags=1 | 4)])
        self.addCleanup(server.close)
        uri = f"nbd+unix:///?socket={path}"
        result = img("convert", "-n", "-f", "raw", "-O", "raw", self.source(), uri, check=False)
        self.assert_ended(result)
        self.assertTrue(any(kind == nbd_raw.FLUSH for kind, _ in server.flags_seen))

    def test_cve_2022_0485_errors_of_block_status_are_no_holes(self):
        uri = self.faulty("error-extents=EIO", "error-rate=100%")
        out = self.path("out")
        result = img("convert", "-f", "raw", "-O", "raw", uri, out, check=False)
        if result.returncode == 0:
            with open(out, "rb") as file:
                self.assertEqual(file.read(), b"f" * SIZE)


if __name__ == "__main__":
    unittest.main()
