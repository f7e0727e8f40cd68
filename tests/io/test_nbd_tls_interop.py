# SPDX-License-Identifier: Apache-2.0
"""Our NBD server and client in TLS with other people's: QEMU, libnbd, nbdkit."""

import random
import socket
import tempfile
import unittest

from nbd_server import Nbdkit, NbdServer, QemuNbd
from tidemark import Process, TestCase, img, qemu, qemu_img, run, tool
from tls_creds import Authority, make_psk, psk, x509

SIZE = 8 << 20
KEY = "00112233445566778899aabbccddeeff"
NAME = "unit = 'a, b+c'\nlocality = R'lyeh\ncountry = GB\n"


class Credentials:
    """Made once for all tests: keys take time."""

    @classmethod
    def get(cls):
        if not hasattr(cls, "directory"):
            cls.directory = tempfile.TemporaryDirectory(prefix="tm-tls-")
            where = cls.directory.name
            cls.ca = Authority(where, "ca")
            cls.server = cls.ca.make("server", "server")
            cls.client = cls.ca.make("client", "client")
            cls.named = cls.ca.make("named", "client", NAME)
            cls.psk = make_psk(where, "psk", alice=KEY)
        return cls


class TlsInteropTest(TestCase):
    def setUp(self):
        super().setUp()
        self.creds = Credentials.get()
        self.server_x509 = x509("server", self.creds.server)
        self.client_x509 = x509("client", self.creds.client)
        self.server_psk = psk("server", self.creds.psk)
        self.client_psk = psk("client", self.creds.psk, "alice")
        self.disk = self.path("disk.raw")
        self.data = random.Random(5).randbytes(SIZE)
        with open(self.disk, "wb") as disk:
            disk.write(self.data)

    def options(self, server, hostname="disk.example"):
        name = f",tls-hostname={hostname}" if hostname else ""
        return f"driver=nbd,path={server.socket},tls-creds=tls0{name}"

    def assert_same(self, path):
        with open(path, "rb") as copy:
            self.assertTrue(copy.read() == self.data, f"{path} differs")

    def read_and_write(self, tool, server, obj, hostname="disk.example"):
        """`tool` is our img or QEMU's: copy the disk out, and other data to it."""
        options = self.options(server, hostname)
        out = self.path("out.raw")
        tool("convert", "--object", obj, "--image-opts", "-O", "raw", options, out)
        self.assert_same(out)
        self.data = random.Random(6).randbytes(SIZE)
        with open(out, "wb") as f:
            f.write(self.data)
        words = ("-n", "-f", "raw", "--object", obj, "--target-image-opts")
        tool("convert", *words, out, f"driver=raw,file.{options.replace(',', ',file.')}")
        server.stop(expect=None)
        self.assert_same(self.disk)

    # --- our server

    def serve(self, obj, *arguments):
        words = ("--object", obj, "--tls-creds", "tls0", *arguments)
        return self.own(NbdServer(self.dir, "-f", "raw", *words, self.disk))

    def test_qemu_img_with_certificates(self):
        self.read_and_write(qemu_img, self.serve(self.server_x509), self.client_x509)

    def test_qemu_img_with_psk(self):
        self.read_and_write(qemu_img, self.serve(self.server_psk), self.client_psk, None)

    def test_nbdcopy_with_psk(self):
        server = self.serve(self.server_psk)
        uri = (
            f"nbds+unix://alice@/?socket={server.socket}"
            f"&tls-psk-file={self.creds.psk}/keys.psk"
        )
        run(qemu("nbdcopy"), uri, self.path("out.raw"))
        self.assert_same(self.path("out.raw"))
        self.assertIn("TLS", run(qemu("nbdinfo"), uri).stdout)

    def can_connect_tcp(self, port):
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    def test_nbdcopy_with_certificates_over_tcp(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ("-b", "127.0.0.1", "-p", str(port), "--object", self.server_x509)
        command = (*tool("nbd"), "-t", "-f", "raw", *words, "--tls-creds", "tls0", self.disk)
        server = self.own(Process(command, self.path("tcp.log")))
        server.wait_for(lambda: self.can_connect_tcp(port), "the NBD server")
        uri = f"nbds://127.0.0.1:{port}/?tls-certificates={self.creds.client}"
        run(qemu("nbdcopy"), uri, self.path("out.raw"))
        self.assert_same(self.path("out.raw"))
        plain = run(qemu("nbdinfo"), f"nbd://127.0.0.1:{port}/", check=False)
        self.assertNotEqual(plain.returncode, 0)
        self.assertIn("nbd_opt_go", plain.stderr)
        server.stop()

    def test_nbdcopy_writes_with_many_requests(self):
        server = self.serve(self.server_psk)
        source = self.path("source.raw")
        self.data = random.Random(8).randbytes(SIZE)
        with open(source, "wb") as f:
            f.write(self.data)
        uri = (
            f"nbds+unix://alice@/?socket={server.socket}"
            f"&tls-psk-file={self.creds.psk}/keys.psk"
        )
        run(qemu("nbdcopy"), "--requests=64", "--request-size=16384", source, uri)
        server.stop()
        self.assert_same(self.disk)

    # --- our client

    def test_qemu_nbd_with_certificates(self):
        server = self.own(
            QemuNbd(self.dir, "-f", "raw", "--object", self.server_x509, "--tls-creds", "tls0",
                    self.disk)
        )  # fmt: skip
        self.read_and_write(img, server, self.client_x509)

    def test_qemu_nbd_with_psk(self):
        server = self.own(
            QemuNbd(self.dir, "-f", "raw", "--object", self.server_psk, "--tls-creds", "tls0",
                    self.disk)
        )  # fmt: skip
        self.read_and_write(img, server, self.client_psk, None)

    def test_nbdkit_with_certificates(self):
        words = ("--tls=require", f"--tls-certificates={self.creds.server}", "--tls-verify-peer")
        server = self.own(Nbdkit(self.dir, *words, "file", self.disk))
        self.read_and_write(img, server, self.client_x509)

    def test_nbdkit_with_psk(self):
        words = ("--tls=require", f"--tls-psk={self.creds.psk}/keys.psk")
        server = self.own(Nbdkit(self.dir, *words, "file", self.disk))
        self.read_and_write(img, server, self.client_psk, None)

    def test_nbdkit_without_tls(self):
        server = self.own(Nbdkit(self.dir, "--tls=off", "file", self.disk))
        words = ("--object", self.client_psk, "--image-opts", self.options(server, None))
        result = img("info", *words, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("starttls", result.stderr.lower())

    def test_qemu_nbd_and_ours_let_in_the_same_names(self):
        """What authz-simple compares is the name in the same form."""
        obj = x509("client", self.creds.named)
        for identity, wanted in (
            ("C=GB,L=R'lyeh,O=Tests,OU=a\\, b\\+c,CN=named", 0),
            ("CN=named,OU=a\\, b\\+c,O=Tests,L=R'lyeh,C=GB", 1),
            ("CN=named", 1),
        ):
            words = (
                "-f", "raw", "--object", self.server_x509, "--tls-creds", "tls0", "--object",
                f"authz-simple,id=a,identity={identity.replace(',', ',,')}", "--tls-authz", "a",
            )  # fmt: skip
            for server in (NbdServer, QemuNbd):
                s = self.own(server(self.dir, *words, self.disk))
                more = ("--object", obj, "--image-opts", self.options(s))
                with self.subTest(identity, server=server.__name__):
                    self.assertEqual(qemu_img("info", *more, check=False).returncode, wanted)
                s.stop(expect=None)


if __name__ == "__main__":
    unittest.main()
