# SPDX-License-Identifier: Apache-2.0
"""Secrets that are encrypted with a master key, as libvirt passes them, and keys of the kernel."""

import base64
import ctypes
import json
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

    @staticmethod
    def dumpable_memory(pid):
        """What a core dump would have of a process."""
        areas, found = [], []
        with open(f"/proc/{pid}/smaps", encoding="ascii") as maps:
            for line in maps:
                words = line.split()
                if "-" in words[0] and not words[0].endswith(":"):
                    areas.append([int(part, 16) for part in words[0].split("-")] + [words[1]])
                elif words[0] == "VmFlags:" and ("dd" in words or "rd" not in words):
                    areas.pop()
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for begin, end, rights in areas:
                if "w" in rights:
                    memory.seek(begin)
                    found.append(memory.read(end - begin))
        return b"".join(found)

    def test_a_core_dump_has_no_passphrase_of_a_file(self):
        path, file = self.path("disk.luks"), self.path("passphrase")
        with open(file, "w", encoding="ascii") as f:
            f.write(PASSWORD)
        secret = ("--object", f"secret,id=s,file={file}")
        tidemark.img("create", "-q", "-f", "luks", *secret, "-o", "key-secret=s,iter-time=10", path, "1M")
        daemon = self.daemon(*secret)
        node = {"driver": "luks", "node-name": "n", "key-secret": "s"}
        answer = daemon.qmp.execute("blockdev-add", {**node, "file": {"driver": "file", "filename": path}})
        self.assertNotIn("error", answer)
        memory = self.dumpable_memory(daemon.pid)
        self.assertIn(path.encode(), memory)
        self.assertNotIn(PASSWORD.encode(), memory)

    def dumpable_secrets(self, pid, secrets):
        memory = self.dumpable_memory(pid)
        return [name for name, secret in secrets.items() if secret in memory]

    def volume_key(self, path):
        """Its two halves, as cryptsetup knows them."""
        file = self.path("for cryptsetup")
        with open(file, "w", encoding="ascii") as f:
            f.write(PASSWORD)
        words = ("-q", "luksDump", "--dump-volume-key", f"--key-file={file}", path)
        lines = tidemark.run("cryptsetup", *words).stdout.split("MK dump:")[1]
        key = bytes.fromhex("".join(lines.split()))
        return key[: len(key) // 2], key[len(key) // 2 :]

    def use(self, daemon, path):
        """Add the disk, read and write, change a key, remove it."""
        file = {"driver": "file", "filename": path}
        node = {"driver": "luks", "node-name": "n", "key-secret": "s", "file": file}
        export = {"id": "e", "type": "nbd", "node-name": "n", "writable": True}
        change = {"driver": "luks", "state": "active", "new-secret": "s", "iter-time": 10}
        qmp = daemon.qmp
        qmp.command("blockdev-add", **node)
        qmp.command("block-export-add", **export)
        uri = tidemark.nbd_uri(self.path("nbd"), "n")
        tidemark.io(uri, "write -P 7 1k 600k", "read -P 7 1k 4k", "read -P 7 8k 512k", fmt="raw")
        yield "in use"
        qmp.command("block-export-del", id="e")
        tidemark.wait_until(lambda: not qmp.command("query-block-exports"), "the export to end")
        qmp.command("x-blockdev-amend", job_id="j", node_name="n", options=change)
        tidemark.wait_until(
            lambda: qmp.command("query-jobs")[0]["status"] == "concluded", "the job to end"
        )
        qmp.command("job-dismiss", id="j")
        qmp.command("blockdev-del", node_name="n")
        qmp.command("object-del", id="s")
        yield "removed"

    def start_with_password(self, how):
        """A daemon that gets the password in this way."""
        text = f"secret,id=s,data={PASSWORD}"
        object_ = {"qom-type": "secret", "id": "s", "data": PASSWORD}
        server = f"addr.type=unix,addr.path={self.path('nbd')}"
        given = {"keyval": text, "json": json.dumps(object_)}.get(how)
        objects = ("--object", given) if given else ()
        daemon = self.daemon(*objects, "--nbd-server", server, name=how)
        if how == "errors":
            for wrong in ({"bogus": 1}, {"qom-type": "secre"}, {"data": [PASSWORD]}, {"id": "%"}):
                self.assertIn("error", daemon.qmp.execute("object-add", {**object_, **wrong}))
            daemon.qmp.send_raw(f'{{"execute": "object-add", {PASSWORD}'.encode() + b"\xff\n")
            self.assertIn("error", daemon.qmp.receive())
        if not given:
            daemon.qmp.command("object-add", **{k.replace("-", "_"): v for k, v in object_.items()})
        return daemon

    def test_memory_keeps_nothing_of_passwords_and_keys(self):
        path = self.path("disk.luks")
        words = ("create", "-q", "-f", "luks", "--object", f"secret,id=s,data={PASSWORD}")
        for how, kind in (
            ("keyval", "cipher-mode=cbc,ivgen-alg=essiv"),
            ("json", "cipher-alg=aes-128"),
            ("qmp", "cipher-alg=aes-256"),
            ("errors", "cipher-alg=aes-192,cipher-mode=cbc"),
        ):
            tidemark.img(*words, "-o", f"key-secret=s,iter-time=10,{kind}", path, "1M")
            key = self.volume_key(path)
            secrets = {"password": PASSWORD.encode(), "key": key[0], "second half": key[1]}
            daemon = self.start_with_password(how)
            for when in self.use(daemon, path):
                with self.subTest(how=how, when=when):
                    self.assertEqual(self.dumpable_secrets(daemon.pid, secrets), [])
            daemon.stop()

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
