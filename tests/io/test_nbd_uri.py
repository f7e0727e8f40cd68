# SPDX-License-Identifier: Apache-2.0
"""URIs of NBD exports: TLS with credentials in the URI, abstract sockets, what is refused."""

import json
import os
import unittest

from nbd_server import NbdServer
from tidemark import Process, TestCase, img, io, qemu, run, tool
from tls_creds import Authority, make_psk, psk, x509

SIZE = 1 << 20
KEY = "00112233445566778899aabbccddeeff"


class UriTest(TestCase):
    def serve(self, *arguments):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.truncate(SIZE)
        return self.own(NbdServer(self.dir, "-f", "raw", "-x", "disk", *arguments, disk))

    def serve_tls(self, obj):
        return self.serve("--object", obj, "--tls-creds", "tls0")

    def size(self, uri, **more):
        result = img("info", "-f", "raw", "--output=json", uri, **more)
        return json.loads(result.stdout)["virtual-size"]

    def assert_refused(self, sentence, uri):
        result = img("info", "-f", "raw", uri, check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn(sentence, result.stderr)

    def test_certificates(self):
        ca = Authority(self.dir)
        server = self.serve_tls(x509("server", ca.make("server", "server")))
        me, anybody = ca.make("client", "client"), ca.trust_only("anybody")
        base = f"nbds+unix:///disk?socket={server.socket}"
        good = f"{base}&tls-certificates={me}&tls-hostname=disk.example"
        self.assertEqual(self.size(good), SIZE)
        io(good, "write -P 5 0 64k", fmt="raw")
        io(good, "read -P 5 0 64k", fmt="raw")
        self.assertIn("export: 'disk'", run(*tool("nbd"), "-L", good).stdout)
        self.assertIn("local", img("map", "--layers", good).stdout)
        unchecked = f"{base}&tls-certificates={me}&tls-verify-peer=false"
        self.assertEqual(self.size(unchecked), SIZE)
        self.assert_refused("No hostname", f"{base}&tls-certificates={me}")
        self.assert_refused(
            "TLS", f"{base}&tls-certificates={anybody}&tls-hostname=disk.example"
        )
        self.assert_refused(
            "hostname", f"{base}&tls-certificates={me}&tls-hostname=other.example"
        )
        # The authorities of the system do not know this one.
        self.assert_refused("certificate", base + "&tls-hostname=disk.example")
        self.assert_refused("TLS", f"nbd+unix:///disk?socket={server.socket}")
        # An object instead.
        self.assertIn("local", img("map", "--layers", "--object", x509("client", me),
                                   f"{base}&tls-creds=tls0&tls-hostname=disk.example").stdout)  # fmt: skip

    def test_pre_shared_keys(self):
        where = make_psk(self.dir, "psk", alice=KEY)
        server = self.serve_tls(psk("server", where))
        rest = f"/disk?socket={server.socket}&tls-psk-file={where}/keys.psk"
        self.assertEqual(self.size("nbds+unix://alice@" + rest), SIZE)
        self.assertEqual(run(qemu("nbdinfo"), "--size", "nbds+unix://alice@" + rest).stdout.strip(),
                         str(SIZE))  # fmt: skip
        self.assertEqual(self.size("nbds+unix://" + rest + "&tls-username=alice"), SIZE)
        self.assert_refused("Username eve not found", "nbds+unix://eve@" + rest)
        base = f"nbds+unix:///disk?socket={server.socket}"
        self.assertEqual(self.size(f"nbds+unix://alice@/disk?socket={server.socket}"
                                   f"&tls-type=psk&tls-certificates={where}"), SIZE)  # fmt: skip
        self.assert_refused("needs the file of the key", base + "&tls-type=psk")

    def test_an_overlay_finds_its_backing_file_over_tls(self):
        where = make_psk(self.dir, "psk", alice=KEY)
        server = self.serve_tls(psk("server", where))
        uri = f"nbds+unix://alice@/disk?socket={server.socket}&tls-psk-file={where}/keys.psk"
        io(uri, "write -P 9 0 64k", fmt="raw")
        img("create", "-q", "-f", "qcow2", "-b", uri, "-F", "raw", self.path("top.qcow2"))
        io(self.path("top.qcow2"), "read -P 9 0 64k", fmt="qcow2")
        name = json.loads(img("info", "-f", "raw", "--output=json", uri).stdout)["filename"]
        self.assertTrue(name.startswith("json:"), name)
        self.assertIn('"x-tls.username": "alice"', name)

    def test_a_server_without_tls_is_not_used(self):
        where = make_psk(self.dir, "psk", alice=KEY)
        server = self.serve()
        self.assert_refused(
            "TLS", f"nbds+unix://alice@/disk?socket={server.socket}&tls-psk-file={where}/keys.psk"
        )

    def test_abstract_socket(self):
        name = f"tidemark-{os.getpid()}"
        daemon = Process(
            [*tool("daemon"), "--blockdev", f"null-co,node-name=n,size={SIZE},read-zeroes=on",
             "--nbd-server", f"addr.type=unix,addr.path={name},addr.abstract=on",
             "--export", "nbd,id=e,node-name=n,name=disk"],
            self.path("daemon.log"),
        )  # fmt: skip
        self.own(daemon)
        uri = f"nbd+unix:///disk?socket=%00{name}"
        daemon.wait_for(
            lambda: img("info", "-f", "raw", uri, check=False).returncode == 0, "the server"
        )
        self.assertEqual(self.size(uri), SIZE)

    def test_what_is_refused(self):
        for sentence, uri in (
            ("there are no parameters", "nbd://h/x?tls-type=psk"),
            ("a user needs TLS", "nbd://me@h/x"),
            ("parameters are", "nbds://h/x?tls-foo=1"),
            ("given twice", "nbds://h/x?tls-hostname=a&tls-hostname=b"),
            ("tls-verify-peer is", "nbds://h/x?tls-verify-peer=maybe"),
            ("unknown: x509", "nbds://h/x?tls-type=foo"),
            ("has no pre-shared key", "nbds://h/x?tls-type=x509&tls-psk-file=/x"),
            ("names credentials", "nbds://h/x?tls-creds=a&tls-type=psk"),
            ("No TLS credentials with id 'a'", "nbds://h/x?tls-creds=a"),
            ("has a number", "nbd+vsock://host/x"),
        ):
            with self.subTest(uri=uri):
                self.assert_refused(sentence, uri)

    def test_a_list_has_one_address(self):
        result = run(*tool("nbd"), "-L", "-p", "1", "nbd://h/", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("given twice", result.stderr)


if __name__ == "__main__":
    unittest.main()
