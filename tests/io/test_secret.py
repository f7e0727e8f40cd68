# SPDX-License-Identifier: Apache-2.0
"""Secrets that are encrypted with a master key, as libvirt passes them, and keys of the kernel."""

import base64
import ctypes
import subprocess

import tidemark
from qmp import QmpError

PASSWORD = "correct horse battery staple"
KEY, IV = bytes(range(32)), bytes(range(100, 116))


def encode(data):
    return base64.b64encode(data).decode()


def openssl(data, *options):
    """What `openssl enc` makes of it."""
    return subprocess.run(
        ["openssl", "enc", "-aes-256-cbc", "-K", KEY.hex(), "-iv", IV.hex(), *options],
        input=data,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


class SecretTest(tidemark.TestCase):
    MASTER = f"secret,id=master,format=base64,data={encode(KEY)}"

    def image(self):
        """An image that QEMU has encrypted with the password."""
        path = self.path("disk.qcow2")
        secret = ("--object", f"secret,id=s,data={PASSWORD}")
        options = "encrypt.format=aes,encrypt.key-secret=s"
        tidemark.qemu_img("create", "-q", "-f", "qcow2", *secret, "-o", options, path, "1M")
        how = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
        tidemark.qemu_io(how, "write -P 9 0 64k", options=(*secret, "--image-opts"))
        return path

    def read(self, path, *objects, check=True):
        words = [word for o in objects for word in ("--object", o)]
        how = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
        return tidemark.io(how, "read -P 9 0 64k", options=(*words, "--image-opts"), check=check)

    def test_an_image_is_read_with_an_encrypted_password(self):
        path = self.image()
        encrypted = openssl(PASSWORD.encode())
        with open(self.path("password"), "wb") as f:
            f.write(encrypted)
        for data in (
            f"format=base64,data={encode(encrypted)}",
            f"file={self.path('password')}",
        ):
            with self.subTest(data=data):
                secret = f"secret,id=s,keyid=master,iv={encode(IV)},{data}"
                self.assertNotIn("verification", self.read(path, self.MASTER, secret).stdout)
        other = openssl(b"another password")
        secret = f"secret,id=s,keyid=master,iv={encode(IV)},format=base64,data={encode(other)}"
        wrong = self.read(path, self.MASTER, secret, check=False)
        self.assertIn("Pattern verification failed", wrong.stdout + wrong.stderr)

    def test_every_length_of_a_password(self):
        daemon = self.daemon("--object", self.MASTER)
        for length in (0, 1, 15, 16, 17, 31, 32, 4096):
            daemon.qmp.command(
                "object-add",
                qom_type="secret",
                id=f"s{length}",
                keyid="master",
                iv=encode(IV),
                format="base64",
                data=encode(openssl(b"x" * length)),
            )
        daemon.stop()

    def refused(self, daemon, sentence, **options):
        with self.assertRaisesRegex(QmpError, sentence):
            daemon.qmp.command("object-add", qom_type="secret", id="s", **options)

    def test_what_makes_no_sense_is_refused(self):
        daemon = self.daemon("--object", self.MASTER, "--object", "secret,id=short,data=short")
        good = {
            "keyid": "master",
            "iv": encode(IV),
            "format": "base64",
            "data": encode(openssl(b"x")),
        }
        cases = [
            ("IV is required to decrypt secret", {"iv": None}),
            ("'iv' is of no use without 'keyid'", {"keyid": None}),
            ("IV should be 16 bytes in length not 3", {"iv": "abcd"}),
            ("Base64 data contains invalid characters", {"iv": "%%"}),
            ("No secret with id 'other'", {"keyid": "other"}),
            ("Key should be 32 bytes in length", {"keyid": "short"}),
            ("Length 24 must be a multiple of block size 16", {"format": "raw"}),
            ("Length 3 must be a multiple of block size 16", {"data": "abcd"}),
            (r"padding bytes \(17\)", {"data": encode(openssl(b"x" * 15 + b"\x11", "-nopad"))}),
            (r"padding bytes \(0\)", {"data": encode(openssl(bytes(16), "-nopad"))}),
        ]
        for sentence, change in cases:
            options = {k: v for k, v in {**good, **change}.items() if v is not None}
            with self.subTest(sentence=sentence):
                self.refused(daemon, sentence, **options)
        daemon.qmp.command("object-add", qom_type="secret", id="s", **good)
        daemon.stop()

    def test_errors_do_not_show_the_secret(self):
        for value, shown in (
            ("secret,id=s,data=hush,,hush,bogus=1", "secret,id=s,data=...,bogus=1"),
            ("secret,id=s,bogus=1,data=hush", "secret,id=s,bogus=1,data=..."),
            ('{"qom-type":"secret","id":"s","data":"hush","bogus":1}', "{...}"),
        ):
            result = tidemark.run(*tidemark.tool("daemon"), "--object", value, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(f"--object {shown}: Parameter 'bogus' is unexpected", result.stderr)
            self.assertNotIn("hush", result.stdout + result.stderr)

    def test_a_key_of_the_kernel(self):
        add_key, user_session_keyring = 248, ctypes.c_long(-5)
        serial = ctypes.CDLL(None).syscall(
            add_key, b"user", b"tidemark", PASSWORD.encode(), len(PASSWORD), user_session_keyring
        )
        if serial > 0:
            self.read(self.image(), f"secret_keyring,id=s,serial={serial}")
        else:  # not permitted here
            result = self.read(self.image(), "secret_keyring,id=s,serial=12345", check=False)
            self.assertIn("get key from keyring failed", result.stderr)

    def test_a_number_of_a_key(self):
        daemon = self.daemon()
        for text, sentence in (("x", "expected: integer"), (99999999999, "expects int32_t")):
            with self.assertRaisesRegex(QmpError, sentence):
                daemon.qmp.command("object-add", qom_type="secret_keyring", id="k", serial=text)
        with self.assertRaisesRegex(QmpError, "get key from keyring failed"):
            daemon.qmp.command("object-add", qom_type="secret_keyring", id="k", serial=2**31 - 1)
        daemon.stop()


if __name__ == "__main__":
    tidemark.unittest.main()
