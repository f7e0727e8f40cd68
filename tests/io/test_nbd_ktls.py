# SPDX-License-Identifier: Apache-2.0
"""Records of TLS that the kernel makes (kTLS), with a stand-in for the kernel: the records that it
makes by the keys that it was given are read by other people's TLS.
"""

import itertools
import os
import random
import re
import socket
import ssl

import nbd_raw
from gnutls_client import GnutlsClient
from nbd_raw import ACK, STARTTLS, RawClient
from tidemark import BUILD, Process, TestCase, img, qemu, run, tool
from tls_creds import Authority, make_psk, psk, x509

SIZE = 3 << 20
LARGE = 1 << 20
KEY = "00112233445566778899aabbccddeeff"
CIPHERS = ("AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305")
CONNECTED = "connected by TLS"
KERNEL = CONNECTED + " of the kernel (kTLS)"


class KernelTlsTest(TestCase):
    def setUp(self):
        super().setUp()
        self.psk = make_psk(self.dir, "psk", alice=KEY)
        self.disk = self.path("disk.raw")
        self.data = random.Random(11).randbytes(SIZE)
        with open(self.disk, "wb") as disk:
            disk.write(self.data)

    def kernel(self, refuses=""):
        library = os.path.join(BUILD, "tests", "tools", "libktls_stand_in.so")
        return {**os.environ, "LD_PRELOAD": library, "KTLS_STAND_IN": refuses}

    def serve(self, creds=None, more="", refuses=""):
        """The server, and its port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        creds = creds or psk("server", self.psk)
        more += "" if "x-ktls" in more else ",x-ktls=on"
        words = ("-b", "127.0.0.1", "-p", str(port), "-e", "0", "--log-level", "info", "--object",
                 creds + more, "--tls-creds", "tls0")  # fmt: skip
        command = (*tool("nbd"), "-t", "-f", "raw", *words, self.disk)
        server = self.own(Process(command, self.path("nbd.log"), env=self.kernel(refuses)))
        server.wait_for(lambda: f"TCP port {port}" in server.log(), "the NBD server")
        return server, port

    def uri(self, port):
        return f"nbds://alice@127.0.0.1:{port}/?tls-psk-file={self.psk}/keys.psk"

    def assert_same(self, path):
        with open(path, "rb") as copy:
            self.assertTrue(copy.read() == self.data, f"{path} differs")

    def client(self, port, **more):
        client = RawClient(port)
        self.addCleanup(client.sock.close)
        self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
        client.sock = GnutlsClient(client.sock, KEY, more.pop("version", "TLS1.3"), **more)
        return client

    def check_reads(self, client, structured=True):
        """Of every size and of several records at once, in one batch."""
        sizes = (1, 512, 16384, 16385, 70000, LARGE)
        for cookie, size in enumerate(sizes):
            client.request(nbd_raw.READ, 4096, size, cookie=cookie)
        waiting = set(range(len(sizes)))  # replies come in any order
        while waiting:
            if structured:
                cookie, flags, kind, payload = client.chunk()
                self.assertEqual((flags, kind), (1, 1))
                data = payload[8:]
            else:
                cookie, error = client.simple_reply()
                self.assertEqual(error, 0)
                data = client.receive(sizes[cookie])
            waiting.remove(cookie)
            self.assertTrue(data == self.data[4096 : 4096 + sizes[cookie]])

    def test_every_cipher_of_both_versions(self):
        server, port = self.serve()
        number = 0
        for version, cipher in itertools.product(("TLS1.2", "TLS1.3"), CIPHERS):
            if (version, cipher) == ("TLS1.3", "AES-256-GCM"):
                continue  # keys that are shared before go with SHA-256 there
            with self.subTest(version, cipher=cipher):
                client = self.client(port, version=version, cipher=cipher)
                client.go(structured=number % 2 == 0)
                self.check_reads(client, structured=number % 2 == 0)
                client.sock.close()
                number += 1
        server.stop()
        self.assertEqual(server.log().count(KERNEL), number)

    def test_aes_256_of_tls_13(self):
        ca = Authority(self.dir)
        directory = ca.make("server", "server")
        more = ",verify-peer=off,priority=NORMAL:-CIPHER-ALL:+AES-256-GCM:-VERS-ALL:+VERS-TLS1.3"
        server, port = self.serve(x509("server", directory), more)
        uri = f"nbds://127.0.0.1:{port}/?tls-certificates={ca.trust_only('anybody')}"
        run(qemu("nbdcopy"), uri, self.path("out.raw"))
        self.assert_same(self.path("out.raw"))
        self.assertIn(KERNEL, server.log())

    def test_pages_are_not_copied(self):
        server, port = self.serve()
        client = self.client(port)
        client.go()
        client.request(nbd_raw.READ, 0, LARGE)
        client.request(nbd_raw.READ, 4096, 4096)
        client.request(nbd_raw.READ, LARGE, LARGE)
        for offset, length in ((0, LARGE), (4096, 4096), (LARGE, LARGE)):
            ((_, payload),) = client.chunks()
            self.assertTrue(payload[8:] == self.data[offset : offset + length])
        client.sock.close()
        server.stop()
        (sent, spliced), *_ = re.findall(r"kTLS: (\d+) bytes sent, (\d+) spliced", server.log())
        self.assertEqual(int(spliced), 2 * LARGE)
        self.assertGreater(int(sent), 4096)

    def test_our_client_writes(self):
        _, port = self.serve(refuses="ulp")
        self.data = random.Random(12).randbytes(SIZE)
        with open(self.path("new.raw"), "wb") as new:
            new.write(self.data)
        creds = psk("client", self.psk, "alice", ",x-ktls=on")
        target = f"driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port={port},file.tls-creds=tls0"
        result = img("convert", "-n", "-f", "raw", "--object", creds, "--target-image-opts",
                     self.path("new.raw"), target, env=self.kernel())  # fmt: skip
        (sent, *_) = re.findall(r"kTLS: (\d+) bytes sent", result.stderr)
        self.assertGreater(int(sent), SIZE)
        self.assert_same(self.disk)

    def test_a_goodbye_is_a_record(self):
        server, port = self.serve()
        client = self.client(port)
        client.go()
        client.request(nbd_raw.DISC)
        self.assertEqual(client.sock.recv(1), b"")  # and no error, as without a goodbye
        client = self.client(port)
        client.option(nbd_raw.ABORT)
        self.assertEqual(client.reply(), (ACK, b""))
        self.assertEqual(client.sock.recv(1), b"")
        server.stop()

    def test_python_sees_the_end(self):
        ca = Authority(self.dir)
        server, port = self.serve(x509("server", ca.make("server", "server")), ",verify-peer=off")
        client = RawClient(port)
        self.addCleanup(client.sock.close)
        self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
        context = ssl.create_default_context(cafile=ca.cert)
        client.sock = context.wrap_socket(
            client.sock, server_hostname="disk.example", suppress_ragged_eofs=False
        )
        client.go()
        self.check_reads(client)
        server.stop()
        self.assertEqual(client.sock.recv(1), b"")
        client.sock.close()

    def test_new_keys_of_the_peer(self):
        server, port = self.serve()
        client = self.client(port)
        client.go()
        self.check_reads(client)
        client.sock.update_key(ask=False)
        self.check_reads(client)
        other = self.client(port)
        other.go()
        client.sock.update_key(ask=True)
        client.request(nbd_raw.READ, 0, 512)
        with self.assertRaises(EOFError):
            client.chunks()
        server.wait_for(lambda: "asks for new keys" in server.log(), "the reason")
        self.check_reads(other)

    def test_what_the_kernel_does_not_do_is_done_here(self):
        for name, arguments, options in (
            ("no kTLS", {"refuses": "ulp"}, {}),
            ("not this cipher", {"refuses": "tx"}, {}),
            ("off", {"more": ",x-ktls=off"}, {}),
            ("CCM", {}, {"cipher": "AES-128-CCM"}),
            ("small records", {}, {"record_limit": 4096}),
        ):
            with self.subTest(name):
                server, port = self.serve(**arguments)
                self.addCleanup(server.stop, expect=None)
                client = self.client(port, **options)
                client.go()
                self.check_reads(client)
                client.sock.update_key(ask=True)
                self.check_reads(client)
                client.sock.close()
                server.stop()
                self.assertIn(CONNECTED, server.log())
                self.assertNotIn(KERNEL, server.log())
