# SPDX-License-Identifier: Apache-2.0
"""TLS of the NBD server and client: who gets in, what the others are answered, and peers that don't
behave.
"""

import os
import random
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import unittest

import nbd_raw
from gnutls_client import GnutlsClient
from nbd_raw import (
    ABORT, ACK, ERR_INVALID, ERR_POLICY, EXPORT_NAME, GO, INFO, LIST, LIST_META, SET_META,
    STARTTLS, STRUCTURED, RawClient, go_data, meta_data,
)  # fmt: skip
from nbd_server import NbdServer
from qmp import QmpError
from tidemark import TestCase, img, io, run, tool
from tls_creds import Authority, make_psk, psk, x509

SIZE = 1 << 20
ERR_TLS_REQD = 0x80000005
HELLO = b"NBDMAGICIHAVEOPT\0\3"
KEY, OTHER_KEY = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"


class Credentials:
    """Made once for all tests: keys take time."""

    @classmethod
    def get(cls):
        if not hasattr(cls, "directory"):
            cls.directory = tempfile.TemporaryDirectory(prefix="tm-tls-")
            where = cls.directory.name
            cls.ca = Authority(where, "ca")
            cls.other_ca = Authority(where, "other-ca")
            cls.server = cls.ca.make("server", "server")
            cls.client = cls.ca.make("client", "client")
            cls.client2 = cls.ca.make("client2", "client")
            cls.stranger = cls.other_ca.make("stranger", "client")
            cls.impostor = cls.other_ca.make("impostor", "client", trusts=cls.ca)
            cls.anybody = cls.ca.trust_only("anybody")
            cls.psk = make_psk(where, "psk", alice=KEY, bob=OTHER_KEY)
            cls.wrong_psk = make_psk(where, "wrong-psk", alice=OTHER_KEY, eve=KEY)
        return cls


class TlsTest(TestCase):
    def setUp(self):
        super().setUp()
        self.creds = Credentials.get()
        self.data = random.Random(7).randbytes(SIZE)
        self.disk = self.path("disk.raw")
        with open(self.disk, "wb") as disk:
            disk.write(self.data)

    def serve(self, obj, *arguments, **more):
        return self.own(
            NbdServer(
                self.dir, "-f", "raw", "--object", obj, "--tls-creds", "tls0", *arguments,
                self.disk, **more,
            )
        )  # fmt: skip

    def image(self, server, hostname="disk.example", more=""):
        name = f",tls-hostname={hostname}" if hostname else ""
        return f"driver=nbd,path={server.socket},tls-creds=tls0{name}{more}"

    def info(self, server, obj, hostname="disk.example", **more):
        return img(
            "info", "--object", obj, "--image-opts", self.image(server, hostname), check=False,
            **more,
        )  # fmt: skip

    def assert_refused(self, sentence, result):
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn(sentence, result.stderr)

    def assert_let_in(self, server, obj, hostname="disk.example"):
        result = self.info(server, obj, hostname)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("1 MiB", result.stdout)

    def client(self):
        return x509("client", self.creds.client)

    def context(self):
        """A TLS context of the client for Python's own TLS."""
        context = ssl.create_default_context(cafile=self.creds.ca.cert)
        context.load_cert_chain(
            os.path.join(self.creds.client, "client-cert.pem"),
            os.path.join(self.creds.client, "client-key.pem"),
        )
        return context

    def start_tls(self, client):
        """Make a raw client go on in TLS."""
        self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
        client.sock = self.context().wrap_socket(client.sock, server_hostname="disk.example")
        return client


class ServerTest(TlsTest):
    def x509_server(self, *arguments, **more):
        return self.serve(x509("server", self.creds.server), *arguments, **more)

    def test_nothing_is_taken_in_the_clear(self):
        server = self.x509_server()
        with RawClient(server.socket) as client:
            for option, data in (
                (LIST, b""), (INFO, go_data(b"")), (GO, go_data(b"")), (STRUCTURED, b""),
                (LIST_META, meta_data(b"")), (SET_META, meta_data(b"", b"base:allocation")),
                (4711, b"x"),
            ):  # fmt: skip
                with self.subTest(option=option):
                    text = b"Option 0x%x not permitted before TLS" % option
                    self.assertEqual(client.ask(option, data), [(ERR_TLS_REQD, text)])
            self.assertEqual(client.ask(STARTTLS, b"x")[0][0], ERR_INVALID)
            self.assertEqual(client.ask(ABORT), [(ACK, b"")])
            self.assertEqual(client.sock.recv(1), b"")
        with RawClient(server.socket) as client:
            client.option(EXPORT_NAME, b"")
            self.assertTrue(client.is_closed())
        with RawClient(server.socket, flags=2) as client:
            client.option(EXPORT_NAME, b"")
            self.assertTrue(client.is_closed())

    def test_all_is_as_ever_in_tls(self):
        server = self.x509_server()
        with self.start_tls(RawClient(server.socket)) as client:
            self.assertEqual(client.ask(STARTTLS)[0][0], ERR_INVALID)
            self.assertEqual(client.ask(LIST)[-1], (ACK, b""))
            client.go(b"", contexts=[b"base:allocation"])
            for offset in (0, 5000, SIZE - 70000):
                client.request(nbd_raw.READ, offset, 70000)
                chunk = client.chunks()[0]
                self.assertEqual(chunk[1], struct.pack(">Q", offset) + self.data[offset:][:70000])
            client.request(nbd_raw.WRITE, 10, 100000, payload=b"w" * 100000)
            self.assertEqual(client.error(), 0)
            client.request(nbd_raw.READ, 9, 100002)
            self.assertEqual(
                client.chunks()[0][1][8:], self.data[9:10] + b"w" * 100000 + self.data[100010:][:1]
            )

    def test_requests_in_many_tiny_records_and_many_in_one(self):
        server = self.x509_server()
        with self.start_tls(RawClient(server.socket)) as client:
            client.go(structured=False)
            whole = struct.pack(">IHHQQI", nbd_raw.REQUEST_MAGIC, 0, nbd_raw.READ, 7, 512, 16)
            for i in range(len(whole)):
                client.send(whole[i : i + 1])
            self.assertEqual(client.simple_reply(), (7, 0))
            self.assertEqual(client.receive(16), self.data[512:528])
            client.send(whole * 100)
            for _ in range(100):
                self.assertEqual(client.simple_reply(), (7, 0))
                self.assertEqual(client.receive(16), self.data[512:528])

    def test_client_that_takes_small_records_only(self):
        server = self.serve(psk("server", self.creds.psk))
        for version in ("TLS1.2", "TLS1.3"):
            for limit in (512, 5000):
                with self.subTest(version, limit=limit), RawClient(server.socket) as client:
                    self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
                    client.sock = GnutlsClient(client.sock, KEY, version, record_limit=limit)
                    client.go(structured=False)
                    for size in (700, 70000, SIZE):
                        client.request(nbd_raw.READ, 0, size)
                        self.assertEqual(client.simple_reply(), (1, 0))
                        self.assertEqual(client.receive(size), self.data[:size])

    def test_what_was_said_in_the_clear_after_starttls_is_never_used(self):
        server = self.x509_server()
        option = struct.pack(">QII", nbd_raw.IHAVEOPT, GO, 6) + go_data(b"")
        with RawClient(server.socket) as client:
            client.send(struct.pack(">QII", nbd_raw.IHAVEOPT, STARTTLS, 0) + option)
            self.assertEqual(client.reply(), (ACK, b""))
            self.assertEqual(client.sock.recv(1), b"")
        # An attacker's option before the client's own handshake makes that fail, too.
        with RawClient(server.socket) as client:
            client.send(struct.pack(">QII", nbd_raw.IHAVEOPT, STARTTLS, 0) + option)
            self.assertEqual(client.reply(), (ACK, b""))
            with self.assertRaises(OSError):
                self.context().wrap_socket(client.sock, server_hostname="disk.example")
        self.assert_let_in(server, self.client())

    def cipher(self, server):
        """What a client gets that has ChaCha20 and then AES-128."""
        context = self.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256")
        with RawClient(server.socket) as client:
            self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
            client.sock = context.wrap_socket(client.sock, server_hostname="disk.example")
            return client.sock.cipher()[0]

    def test_a_processor_with_aes_prefers_it(self):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            has_aes = "aes" in file.read().split()
        server = self.x509_server()
        self.assertIn("AES128" if has_aes else "CHACHA20", self.cipher(server))
        server.stop()
        # What the user says counts.
        server = self.serve(x509("server", self.creds.server, ",priority=NORMAL"))
        self.assertIn("CHACHA20", self.cipher(server))

    def hello(self):
        """The first flight of a client's handshake."""
        out = ssl.MemoryBIO()
        tls = self.context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="disk.example")
        with self.assertRaises(ssl.SSLWantReadError):
            tls.do_handshake()
        return out.read()

    def test_disconnection_at_every_byte_of_the_handshake_does_no_harm(self):
        server = self.x509_server()
        hello = self.hello()
        for size in (*range(0, 80), *range(80, len(hello) + 1, 7)):
            with RawClient(server.socket) as client:
                self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
                client.send(hello[:size])
                if size % 3 == 0:
                    client.sock.shutdown(socket.SHUT_WR)
                    client.is_closed()
        self.assert_let_in(server, self.client())
        server.stop()

    def test_disconnection_within_the_second_flight_does_no_harm(self):
        server = self.x509_server()
        for size in range(0, 900, 23):
            with RawClient(server.socket) as client:
                self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
                incoming, out = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = self.context().wrap_bio(incoming, out, server_hostname="disk.example")
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        client.send(out.read())
                        incoming.write(client.sock.recv(65536))
                client.send(out.read()[:size])
        self.assert_let_in(server, self.client())
        server.stop()

    def test_garbage_instead_of_a_handshake_ends_the_session(self):
        server = self.x509_server()
        generator = random.Random(3)
        hello = bytearray(self.hello())
        for i in range(60):
            with RawClient(server.socket) as client:
                self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
                garbage = generator.randbytes(3000)
                if i % 2:
                    garbage = bytes(hello)
                    for _ in range(3):
                        at = generator.randrange(len(hello))
                        garbage = garbage[:at] + generator.randbytes(1) + garbage[at + 1 :]
                client.send(garbage)
                client.sock.shutdown(socket.SHUT_WR)
                self.assertTrue(client.is_closed())
        self.assert_let_in(server, self.client())
        server.stop()

    def test_handshake_that_hangs_is_cut(self):
        server = self.x509_server()
        with RawClient(server.socket, timeout=15) as client:
            start = time.monotonic()
            self.assertEqual(client.ask(STARTTLS), [(ACK, b"")])
            client.send(self.hello()[:100])
            self.assert_let_in(server, self.client())
            self.assertTrue(client.is_closed())
            self.assertAlmostEqual(time.monotonic() - start, 10, delta=2)

    def test_damaged_record_in_transmission_ends_the_session(self):
        server = self.x509_server()
        with RawClient(server.socket) as client:
            raw = client.sock
            copy = socket.socket(fileno=os.dup(raw.fileno()))
            self.start_tls(client).go(structured=False)
            client.request(nbd_raw.READ, 0, 4)
            self.assertEqual(client.simple_reply(), (1, 0))
            copy.sendall(b"\x17\x03\x03\x00\x40" + b"r" * 64)
            copy.settimeout(20)
            while copy.recv(65536):
                pass
            copy.close()
        self.assert_let_in(server, self.client())

    def test_server_stops_while_clients_are_in_every_phase(self):
        server = self.x509_server()
        with RawClient(server.socket) as silent, RawClient(server.socket) as half:
            self.assertEqual(silent.ask(STARTTLS), [(ACK, b"")])
            self.assertEqual(half.ask(STARTTLS), [(ACK, b"")])
            half.send(self.hello()[:50])
            with self.start_tls(RawClient(server.socket)) as served:
                served.go()
                server.stop()
                for client in (silent, half):
                    self.assertTrue(client.is_closed())

    def test_client_that_does_not_read_blocks_nobody(self):
        server = self.x509_server()
        with self.start_tls(RawClient(server.socket)) as client:
            client.go(structured=False)
            for i in range(64):
                client.request(nbd_raw.READ, 0, SIZE, cookie=i)
            time.sleep(0.2)
            self.assert_let_in(server, self.client())
            for i in range(64):
                self.assertEqual(client.simple_reply()[1], 0)
                self.assertEqual(client.receive(SIZE), self.data)


class WhoGetsInTest(TlsTest):
    def test_plain_client_is_told_that_it_needs_tls(self):
        server = self.serve(x509("server", self.creds.server))
        result = img("info", server.uri(), check=False)
        self.assertEqual(
            result.stderr.split(": ", 2)[2],
            "TLS negotiation required before option 7 (go)\nDid you forget a valid tls-creds?\n"
            "server reported: Option 0x7 not permitted before TLS\n",
        )
        result = run(*tool("nbd"), "-L", "-k", server.socket, check=False)
        self.assert_refused("TLS negotiation required before option 3 (list)", result)

    def test_tls_client_is_told_that_the_server_has_none(self):
        server = self.own(NbdServer(self.dir, "-f", "raw", self.disk))
        result = self.info(server, self.client())
        self.assert_refused(
            "Denied by server for option 5 (starttls)\nserver reported: TLS not configured", result
        )
        with RawClient(server.socket) as client:
            self.assertEqual(client.ask(STARTTLS), [(ERR_POLICY, b"TLS not configured")])
            client.go()

    def test_certificates_of_strangers(self):
        server = self.serve(x509("server", self.creds.server))
        self.assert_let_in(server, self.client())
        self.assert_refused(
            "The certificate hasn't got a known issuer",
            self.info(server, x509("client", self.creds.stranger)),
        )
        unknown = x509("client", self.creds.impostor, ",sanity-check=off")
        self.assert_refused("non-properly terminated", self.info(server, unknown))
        self.assert_refused(
            "non-properly terminated", self.info(server, x509("client", self.creds.anybody))
        )
        self.assertIn("Verify failed: No certificate was found.", server.log())

    def test_tls12_is_taken_and_older_ones_are_not(self):
        server = self.serve(x509("server", self.creds.server))
        for versions, wanted in (("+VERS-TLS1.2", 0), ("+VERS-TLS1.3", 0), ("+VERS-TLS1.1", 1)):
            with self.subTest(versions):
                more = f",priority=NORMAL:-VERS-ALL:{versions}"
                result = self.info(server, x509("client", self.creds.client, more))
                self.assertEqual(result.returncode, wanted, result.stderr)

    def test_server_that_verifies_nobody_lets_anybody_in(self):
        server = self.serve(x509("server", self.creds.server, ",verify-peer=off"))
        self.assert_let_in(server, x509("client", self.creds.anybody))

    def test_name_of_the_server(self):
        server = self.serve(x509("server", self.creds.server))
        self.assert_let_in(server, self.client(), "127.0.0.1")
        self.assert_refused(
            "Certificate does not match the hostname localhost",
            self.info(server, self.client(), "localhost"),
        )
        self.assert_refused(
            "No hostname for certificate validation", self.info(server, self.client(), None)
        )
        careless = x509("client", self.creds.client, ",verify-peer=off")
        self.assert_let_in(server, careless, "localhost")

    def test_expired_certificates(self):
        past = 'activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2021-01-01 00:00:00"\n'
        old_server = self.creds.ca.make("old-server", "server", past)
        old_client = self.creds.ca.make("old-client", "client", past)
        result = run(
            *tool("nbd"), "--object", x509("server", old_server), "--tls-creds", "tls0", "-f",
            "raw", self.disk, check=False,
        )  # fmt: skip
        self.assert_refused(
            f"The server certificate {old_server}/server-cert.pem has expired", result
        )
        server = self.serve(x509("server", old_server, ",sanity-check=off"), name="old")
        self.assert_refused("The certificate has expired", self.info(server, self.client()))
        server.stop()
        server = self.serve(x509("server", self.creds.server))
        result = self.info(server, x509("client", old_client, ",sanity-check=off"))
        self.assert_refused("non-properly terminated", result)
        self.assertIn("The certificate has expired", server.log())

    def test_certificate_for_another_purpose(self):
        actor = self.creds.ca.make(
            "actor", "client", "dns_name = disk.example\n", file_role="server"
        )
        result = run(
            *tool("nbd"), "--object", x509("server", actor), "--tls-creds", "tls0", "-f", "raw",
            self.disk, check=False,
        )  # fmt: skip
        self.assert_refused("purpose does not allow use with a TLS server", result)
        server = self.serve(x509("server", actor, ",sanity-check=off"))
        self.assert_refused(
            "The certificate is for another purpose", self.info(server, self.client())
        )

    def test_psk(self):
        server = self.serve(psk("server", self.creds.psk))
        for user in ("alice", "bob"):
            self.assert_let_in(server, psk("client", self.creds.psk, user), None)
        for user in ("alice", "eve"):
            with self.subTest(user):
                result = self.info(server, psk("client", self.creds.wrong_psk, user), None)
                self.assert_refused("TLS handshake failed", result)
        self.assert_refused("TLS handshake failed", self.info(server, self.client()))
        self.assert_let_in(server, psk("client", self.creds.psk, "alice"), None)

    def test_anonymous(self):
        server = self.serve("tls-creds-anon,id=tls0,endpoint=server")
        self.assert_let_in(server, "tls-creds-anon,id=tls0,endpoint=client", None)
        self.assert_refused("TLS handshake failed", self.info(server, self.client()))

    # --- authorization

    def test_authorization_by_distinguished_name(self):
        server = self.serve(
            x509("server", self.creds.server), "--object",
            "authz-simple,id=authz0,identity=O=Tests,,CN=client", "--tls-authz", "authz0",
        )  # fmt: skip
        self.assert_let_in(server, self.client())
        result = self.info(server, x509("client", self.creds.client2))
        self.assert_refused(
            "Failed to read option reply: Cannot read from TLS channel: "
            "The TLS connection was non-properly terminated.",
            result,
        )
        self.assertIn(
            "option negotiation failed: TLS x509 authz check for O=Tests,CN=client2 is denied",
            server.log(),
        )

    def test_authorization_by_rules(self):
        server = self.serve(
            x509("server", self.creds.server), "--object",
            '{"qom-type": "authz-list", "id": "authz0", "policy": "deny", "rules": ['
            '{"match": "*,CN=client2", "policy": "deny", "format": "glob"},'
            '{"match": "*CN=clie?t*", "policy": "allow", "format": "glob"}]}',
            "--tls-authz", "authz0",
        )  # fmt: skip
        self.assert_let_in(server, self.client())
        result = self.info(server, x509("client", self.creds.client2))
        self.assert_refused("non-properly terminated", result)

    def test_authorization_by_a_file_that_changes(self):
        rules = self.path("rules.json")

        def write(text):
            with open(rules, "w", encoding="ascii") as f:
                f.write(text)

        allow = '{"rules": [{"match": "O=Tests,CN=client", "policy": "allow"}]}'
        write(allow)
        server = self.serve(
            x509("server", self.creds.server), "--object",
            f"authz-list-file,id=authz0,filename={rules}", "--tls-authz", "authz0",
        )  # fmt: skip
        self.assert_let_in(server, self.client())
        for text in ('{"policy": "deny"}', '{"rules": ', ""):
            write(text)
            self.assert_refused("non-properly terminated", self.info(server, self.client()))
        write(allow)
        self.assert_let_in(server, self.client())

    def test_authorization_of_psk_users(self):
        server = self.serve(
            psk("server", self.creds.psk), "--object", "authz-simple,id=authz0,identity=bob",
            "--tls-authz", "authz0",
        )  # fmt: skip
        self.assert_let_in(server, psk("client", self.creds.psk, "bob"), None)
        result = self.info(server, psk("client", self.creds.psk, "alice"), None)
        self.assert_refused("non-properly terminated", result)
        self.assertIn("TLS PSK authz check for alice is denied", server.log())

    def test_authorization_without_identity_is_refused(self):
        for obj in (
            x509("server", self.creds.server, ",verify-peer=off"),
            "tls-creds-anon,id=tls0,endpoint=server",
        ):
            result = run(
                *tool("nbd"), "--object", obj, "--tls-creds", "tls0", "--object",
                "authz-simple,id=a,identity=x", "--tls-authz", "a", "-f", "raw", self.disk,
                "-k", self.path("x.sock"), check=False,
            )  # fmt: skip
            self.assert_refused("by which clients identify themselves", result)


class ObjectsTest(TlsTest):
    def test_objects_that_cannot_be_made_are_refused_by_name(self):
        where = self.creds.server
        for wanted, obj in (
            ("Parameter 'qom-type' does not accept value 'foo'", "foo,id=x"),
            ("Parameter 'id' is missing", "tls-creds-anon"),
            ("Parameter 'id' expects an identifier\nIdentifiers", "tls-creds-anon,id=1x"),
            ("Parameter 'bogus' is unexpected", "tls-creds-anon,id=x,bogus=1"),
            ("'endpoint'", "tls-creds-anon,id=x,endpoint=both"),
            ("Missing 'dir' property value", "tls-creds-x509,id=x"),
            ("Unable to access credentials /nowhere/ca-cert.pem", "tls-creds-x509,id=x,dir=/nowhere"),
            ("Unable to access credentials /nowhere/keys.psk", "tls-creds-psk,id=x,dir=/nowhere"),
            ("Username qemu not found", f"tls-creds-psk,id=x,dir={self.creds.psk}"),
            ("Unable to set TLS session priority NONSENSE",
             f"tls-creds-x509,id=x,dir={where},endpoint=server,priority=NONSENSE"),
            ("No secret with id 's'", f"tls-creds-x509,id=x,dir={where},passwordid=s"),
            ("Parameter 'identity' is missing", "authz-simple,id=x"),
            ("'policy'", "authz-list,id=x,policy=maybe"),
            ("Parameter 'rules.0.match' is missing", "authz-list,id=x,rules.0.policy=allow"),
            ("Parameter 'filename' is missing", "authz-list-file,id=x"),
            ("/nowhere", "authz-list-file,id=x,filename=/nowhere"),
            ("Either 'file' or 'data' must be provided", "secret,id=x"),
            ("'file' and 'data' are mutually exclusive", "secret,id=x,data=a,file=b"),
            ("Base64 data contains invalid characters", "secret,id=x,data=.,format=base64"),
            ("Unable to read /nowhere", "secret,id=x,file=/nowhere"),
        ):  # fmt: skip
            with self.subTest(obj):
                result = img("info", "--object", obj, "-f", "raw", self.disk, check=False)
                self.assert_refused(wanted, result)
        twice = ("--object", "secret,id=x,data=a")
        result = img("info", *twice, *twice, "-f", "raw", self.disk, check=False)
        self.assert_refused("duplicate property 'x'", result)

    def test_credentials_that_are_none_or_for_the_other_end(self):
        for wanted, *arguments in (
            ("No TLS credentials with id 'x'", "--tls-creds", "x"),
            ("is not TLS credentials", "--object", "secret,id=x,data=a", "--tls-creds", "x"),
            ("Expected TLS credentials for a server endpoint", "--object",
             "tls-creds-anon,id=x", "--tls-creds", "x"),
            ("--tls-authz is not permitted without --tls-creds", "--tls-authz", "x"),
            ("--tls-hostname is not permitted without --tls-creds", "--tls-hostname", "x"),
            ("Cannot find QAuthZ object ID y", "--object", "tls-creds-psk,endpoint=server,id=x,"
             f"dir={self.creds.psk}", "--tls-creds", "x", "--tls-authz", "y"),
        ):  # fmt: skip
            with self.subTest(wanted):
                where = ("-k", self.path("n.sock"), "-f", "raw", self.disk)
                self.assert_refused(wanted, run(*tool("nbd"), *arguments, *where, check=False))
        for wanted, *arguments in (
            ("No TLS credentials with id 'x'", "driver=nbd,host=h,tls-creds=x"),
            ("Expected TLS credentials for a client endpoint", "--object",
             "tls-creds-anon,id=x,endpoint=server", "driver=nbd,host=h,tls-creds=x"),
        ):  # fmt: skip
            result = img("info", "--image-opts", *arguments, check=False)
            self.assert_refused(wanted, result)

    def test_encrypted_key_needs_its_password(self):
        where = self.creds.ca.make(self.id().rsplit(".", 1)[1][:8], "server")
        key = os.path.join(where, "server-key.pem")
        run(
            "certtool", "--to-p8", "--load-privkey", key, "--password", "open sesame",
            "--pkcs-cipher", "aes-256", "--outfile", key + ".new",
        )  # fmt: skip
        os.rename(key + ".new", key)
        secret = "secret,id=s,format=base64,data=b3BlbiBzZXNhbWU="
        obj = x509("server", where)
        for objects in ((obj,), ("secret,id=s,data=wrong", obj + ",passwordid=s")):
            words = [word for o in objects for word in ("--object", o)]
            result = img("info", *words, "-f", "raw", self.disk, check=False)
            self.assert_refused("Cannot load certificate", result)
        words = ("--object", secret, "--object", obj + ",passwordid=s")
        self.assertEqual(img("info", *words, "-f", "raw", self.disk).returncode, 0)


class ClientTest(TlsTest):
    """Our client and servers that don't behave."""

    def hostile(self, after_ack, reply=None, hello=HELLO):
        """A server that acknowledges STARTTLS (or answers `reply`), sends `after_ack` and hangs up.
        """
        path = self.path("hostile.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        self.addCleanup(listener.close)
        ack = struct.pack(">QIII", nbd_raw.REPLY_MAGIC, STARTTLS, ACK, 0)
        seen = []

        def serve():
            sock, _ = listener.accept()
            with sock:
                sock.sendall(hello)
                seen.append(sock.recv(4))
                seen.append(sock.recv(16))
                if not seen[1]:
                    return
                sock.sendall((reply or ack) + after_ack)
                seen.append(sock.recv(65536))
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(10)
                while sock.recv(65536):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        result = img(
            "info", "--object", self.client(), "--image-opts",
            f"driver=nbd,path={path},tls-creds=tls0,tls-hostname=disk.example", check=False,
        )  # fmt: skip
        thread.join(10)
        return result, seen

    def test_bytes_in_the_clear_after_the_acknowledgement_are_never_used(self):
        info = struct.pack(">QIII", nbd_raw.REPLY_MAGIC, GO, nbd_raw.REP_INFO, 12) + struct.pack(
            ">HQH", 0, SIZE, 1
        )
        injected = info + struct.pack(">QIII", nbd_raw.REPLY_MAGIC, GO, ACK, 0)
        result, seen = self.hostile(injected)
        self.assert_refused("TLS handshake failed", result)
        # It has sent nothing but the beginning of a handshake.
        self.assertEqual(seen[1], struct.pack(">QII", nbd_raw.IHAVEOPT, STARTTLS, 0))
        self.assertEqual(seen[2][:1], b"\x16")

    def test_server_that_hangs_up_within_the_handshake(self):
        result, _ = self.hostile(b"")
        self.assert_refused("TLS handshake failed", result)

    def test_acknowledgement_with_data_is_refused(self):
        reply = struct.pack(">QIII", nbd_raw.REPLY_MAGIC, STARTTLS, ACK, 1) + b"x"
        result, _ = self.hostile(b"", reply=reply)
        self.assert_refused("Unexpected answer of the NBD server to NBD_OPT_STARTTLS", result)

    def test_server_without_options_is_refused(self):
        result, seen = self.hostile(b"", hello=b"NBDMAGICIHAVEOPT\0\0")
        self.assert_refused("does not support STARTTLS", result)
        self.assertEqual(seen[1], b"")

    def test_data_of_all_sizes_arrive(self):
        server = self.serve(x509("server", self.creds.server))
        image = self.image(server)
        commands = []
        for i, size in enumerate((1, 511, 4096, 16384, 16385, 65536, 300000, 1 << 20)):
            commands += [f"aio_write -P {i + 1} {(SIZE - size) // 3} {size}", "aio_flush",
                         f"aio_read -P {i + 1} {(SIZE - size) // 3} {size}", "aio_flush",
                         f"write -P {i + 100} 0 {size}", f"read -P {i + 100} 0 {size}"]  # fmt: skip
        result = io(image, *commands, options=("--object", self.client(), "--image-opts"))
        self.assertNotIn("failed", result.stdout + result.stderr)

    def test_convert_there_and_back(self):
        server = self.serve(x509("server", self.creds.server))
        source = self.path("source.raw")
        data = random.Random(9).randbytes(SIZE)
        with open(source, "wb") as f:
            f.write(data)
        target = self.image(server)
        img(
            "convert", "-n", "-f", "raw", "--object", self.client(), "--target-image-opts", source,
            target,
        )  # fmt: skip
        out = self.path("out.raw")
        img("convert", "--object", self.client(), "--image-opts", "-O", "raw", target, out)
        with open(out, "rb") as f:
            self.assertTrue(f.read() == data)

    def test_list(self):
        server = self.serve(x509("server", self.creds.server), "-x", "disk")
        arguments = ("-L", "-k", server.socket, "--object", self.client(), "--tls-creds", "tls0")
        result = run(*tool("nbd"), *arguments, "--tls-hostname", "disk.example")
        self.assertIn("export: 'disk'", result.stdout)
        self.assert_refused("No hostname", run(*tool("nbd"), *arguments, check=False))


class DaemonTest(TlsTest):
    def test_clients_see_what_they_may_use(self):
        """Two exports, of which one is for one client only."""
        path = self.path("s")
        daemon = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={self.disk}",
            "--object", x509("server", self.creds.server),
            "--object", "authz-simple,id=mine,identity=O=Tests,,CN=client",
        )  # fmt: skip
        command = daemon.qmp.command
        export = {"type": "nbd", "node-name": "disk"}
        command("nbd-server-start", addr={"type": "unix", "data": {"path": path}}, tls_creds="tls0")
        command("block-export-add", id="a", name="all", **export)
        command("block-export-add", id="m", name="mine", x_tls_authz="mine", x_default=True, **export)
        for who, shown in ((self.creds.client, {"all", "mine"}), (self.creds.client2, {"all"})):
            me = x509("client", who)
            listed = run(
                *tool("nbd"), "-L", "-k", path, "--object", me, "--tls-creds", "tls0",
                "--tls-hostname", "disk.example",
            ).stdout  # fmt: skip
            self.assertEqual({n for n in ("all", "mine") if f"export: '{n}'" in listed}, shown)
            for name in ("all", "mine", ""):
                image = f"driver=nbd,path={path},export={name},tls-creds=tls0,tls-hostname=disk.example"
                result = img("info", "--object", me, "--image-opts", image, check=False)
                with self.subTest(who=who, name=name):
                    self.assertEqual(result.returncode == 0, (name or "mine") in shown)
                    if result.returncode:
                        self.assertIn("not present", result.stderr)
        with self.assertRaisesRegex(QmpError, "in use"):
            command("object-del", id="mine")
        command("block-export-del", id="m")
        command("object-del", id="mine")
        command("nbd-server-stop")

    def listed(self, path, who):
        me = x509("client", who)
        return [
            *tool("nbd"), "-L", "-k", path, "--object", me, "--tls-creds", "tls0", "--tls-hostname",
            "disk.example",
        ]  # fmt: skip

    def test_rules_on_a_file_system_that_hangs_hold_up_nobody_else(self):
        path, rules = self.path("s"), self.path("rules.json")
        allow = '{"rules": [{"match": "O=Tests,CN=client", "policy": "allow"}]}'

        def write_rules():
            with open(rules, "w", encoding="ascii") as file:
                file.write(allow)

        write_rules()
        daemon = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={self.disk}",
            "--object", x509("server", self.creds.server),
            "--object", f"authz-list-file,id=some,filename={rules}",
        )  # fmt: skip
        command = daemon.qmp.command
        export = {"type": "nbd", "node-name": "disk"}
        command("nbd-server-start", addr={"type": "unix", "data": {"path": path}}, tls_creds="tls0")
        command("block-export-add", id="a", name="all", **export)
        command("block-export-add", id="m", name="mine", x_tls_authz="some", **export)
        for who, shown in ((self.creds.client, True), (self.creds.client2, False)):
            self.assertEqual("export: 'mine'" in run(*self.listed(path, who)).stdout, shown)
        # A file whose open hangs until somebody writes it.
        os.unlink(rules)
        os.mkfifo(rules)
        waiting = subprocess.Popen(
            self.listed(path, self.creds.client), stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(waiting.kill)
        writer = os.open(rules, os.O_WRONLY)  # returns when the server reads
        self.assertEqual(len(command("query-block-exports")), 2)
        image = f"driver=nbd,path={path},export=all,tls-creds=tls0,tls-hostname=disk.example"
        img("info", "--object", x509("client", self.creds.client2), "--image-opts", image)
        self.assertIsNone(waiting.poll())
        os.unlink(rules)
        write_rules()
        os.write(writer, allow.encode())
        os.close(writer)
        self.assertIn("export: 'mine'", waiting.communicate(timeout=60)[0])

    def test_an_export_for_some_needs_clients_that_are_known(self):
        path = self.path("s")
        daemon = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={self.disk}",
            "--object", "authz-simple,id=mine,identity=x",
            "--object", x509("server", self.creds.server, ",verify-peer=off"),
        )  # fmt: skip
        command = daemon.qmp.command
        for more in ({}, {"tls-creds": "tls0"}):
            command("nbd-server-start", addr={"type": "unix", "data": {"path": path}}, **more)
            for authz, why in (("mine", "identify themselves"), ("none", "identify|Cannot find")):
                with self.assertRaisesRegex(QmpError, why):
                    command("block-export-add", type="nbd", id="m",
                            **{"node-name": "disk", "x-tls-authz": authz})  # fmt: skip
            command("nbd-server-stop")

    def test_objects_servers_and_nodes_of_a_daemon(self):
        nbd = self.path("d.sock")
        addr = {"type": "unix", "data": {"path": nbd}}
        qmp = self.daemon(
            "--blockdev", f"driver=file,node-name=disk,filename={self.disk}",
            "--object", x509("server", self.creds.server),
        ).qmp  # fmt: skip

        def fails(wanted, command, **arguments):
            with self.assertRaisesRegex(Exception, wanted):
                qmp.command(command, **arguments)

        fails("No TLS credentials", "nbd-server-start", addr=addr, **{"tls-creds": "no"})
        fails("without tls-creds", "nbd-server-start", addr=addr, **{"tls-authz": "no"})
        self.assertFalse(os.path.exists(nbd))
        qmp.command("object-add", **{"qom-type": "authz-simple", "id": "who",
                                     "identity": "O=Tests,CN=client"})  # fmt: skip
        qmp.command(
            "nbd-server-start", addr=addr, **{"tls-creds": "tls0", "tls-authz": "who"}
        )
        qmp.command("block-export-add", type="nbd", id="e", **{"node-name": "disk"})
        for name in ("tls0", "who"):
            fails(f"object '{name}' is in use, can not be deleted", "object-del", id=name)

        qmp.command("object-add", **{"qom-type": "tls-creds-x509", "id": "mine", "endpoint":
                                     "client", "dir": self.creds.client})  # fmt: skip
        node = {
            "driver": "nbd", "node-name": "remote", "export": "disk", "tls-creds": "mine",
            "tls-hostname": "disk.example", "read-only": True,
            "server": {"type": "unix", "path": nbd},
        }  # fmt: skip
        qmp.command("blockdev-add", **node)
        fails("in use", "object-del", id="mine")
        qmp.command("blockdev-del", **{"node-name": "remote"})
        qmp.command("object-del", id="mine")
        fails("No TLS credentials with id 'mine'", "blockdev-add", **node)
        fails("object 'mine' not found", "object-del", id="mine")

        qmp.command("nbd-server-stop")
        for name in ("tls0", "who"):
            qmp.command("object-del", id=name)
        fails("No TLS credentials", "nbd-server-start", addr=addr, **{"tls-creds": "tls0"})


if __name__ == "__main__":
    unittest.main()
