# SPDX-License-Identifier: Apache-2.0
"""Images with the legacy encryption, made and used by Tidemark and by QEMU in turns. A model is the
judge.
"""

import json
import os
import random
import unittest

from qcow2_edit import Image
from tidemark import TestCase, img, io, qemu_img, qemu_io

SECRET = ("--object", "secret,id=pass,data=correct horse")
ENCRYPTED = ("-o", "encrypt.format=aes,encrypt.key-secret=pass")
SIZE = 4 << 20
KINDS = (
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,compat=0.10",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=2M",
    "cluster_size=16k,data_file={dir}/data",
)


def opened(path, more=""):
    return f"driver=qcow2,encrypt.key-secret=pass,file.driver=file,file.filename={path}{more}"


def run_io(program, path, *commands, secret=SECRET, more="", **rest):
    options = (*secret, "--image-opts")
    return program(opened(path, more), *commands, options=options, **rest)


class Encryption(TestCase):
    def new(self, name="disk.qcow2", program=img, options=ENCRYPTED, size=SIZE, more=""):
        path = self.path(name)
        words = (*options, "-o", more) if more else options
        program("create", "-q", "-f", "qcow2", *SECRET, *words, path, str(size))
        return path

    def contents(self, program, path):
        """The disk, read whole with `convert`."""
        raw = self.path("raw")
        words = ("convert", *SECRET, "--image-opts", "-O", "raw", opened(path), raw)
        program(*words)
        with open(raw, "rb") as disk:
            return disk.read()

    def test_both_read_and_write_what_either_made(self):
        for seed, kind in enumerate(KINDS):
            rng = random.Random(seed)
            maker = (img, qemu_img)[seed % 2]
            path = self.new(program=maker, more=kind.format(dir=self.dir))
            model = bytearray(SIZE)
            for step in range(12):
                program = rng.choice((io, qemu_io))
                commands = []
                for _ in range(rng.randrange(1, 5)):
                    unit = rng.choice((1, 512, 4096, 65536))
                    start = rng.randrange(SIZE // unit) * unit
                    length = min(rng.randrange(1, 40) * unit, SIZE - start)
                    byte = rng.randrange(1, 256)
                    if rng.random() < 0.3:
                        byte = 0
                        commands.append(f"write -z {start} {length}")
                    else:
                        commands.append(f"write -P {byte} {start} {length}")
                    model[start : start + length] = bytes([byte]) * length
                run_io(program, path, *commands)
                reader = (img, qemu_img)[step % 2]
                self.assertEqual(self.contents(reader, path), model, f"{kind}, step {step}")
            img("check", path)
            qemu_img("check", *SECRET, "--image-opts", opened(path))
            os.unlink(path)

    def test_what_is_stored_is_encrypted(self):
        path = self.new()
        run_io(io, path, f"write -P 0x5a 0 {SIZE}")
        with open(path, "rb") as file:
            self.assertNotIn(b"\x5a" * 32, file.read())
        plain = self.path("plain.raw")
        img("convert", *SECRET, "--image-opts", "-O", "raw", opened(path), plain)
        again = self.path("again.qcow2")
        img("convert", *SECRET, "-O", "qcow2", *ENCRYPTED, plain, again)
        with open(again, "rb") as file:
            self.assertNotIn(b"\x5a" * 32, file.read())
        self.assertEqual(self.contents(qemu_img, again), b"\x5a" * SIZE)

    def test_backing_files_snapshots_resize_and_versions(self):
        base = self.new("base.qcow2")
        run_io(io, base, "write -P 1 0 1M")
        top = self.new("top.qcow2")
        node = {
            "driver": "qcow2",
            "encrypt": {"key-secret": "pass"},
            "file": {"driver": "file", "filename": base},
        }
        img("rebase", "-u", "-b", "json:" + json.dumps(node), "-F", "qcow2", *SECRET,
            "--image-opts", opened(top))  # fmt: skip
        run_io(io, top, "write -P 2 1000 100")
        img("amend", *SECRET, "-o", "compat=0.10", "--image-opts", opened(top))
        img("amend", *SECRET, "-o", "compat=1.1", "--image-opts", opened(top))
        img("snapshot", *SECRET, "-c", "one", "--image-opts", opened(top))
        run_io(io, top, "write -P 3 1000 100", "write -P 4 2M 64k")
        img("resize", *SECRET, "--image-opts", opened(top), str(2 * SIZE))
        expected = bytearray(b"\1" * (1 << 20) + bytes(2 * SIZE - (1 << 20)))
        expected[1000:1100] = b"\3" * 100
        expected[2 << 20 : (2 << 20) + 65536] = b"\4" * 65536
        for program in (img, qemu_img):
            self.assertEqual(self.contents(program, top), expected)
        img("snapshot", *SECRET, "-a", "one", "--image-opts", opened(top))
        self.assertEqual(self.contents(qemu_img, top)[1000:1100], b"\2" * 100)
        img("check", top)

    def test_what_is_told_of_it(self):
        path = self.new()
        for words in (("info",), ("info", "--output=json")):
            ours, theirs = img(*words, path).stdout, qemu_img(*words, path).stdout
            for word in ("encrypted", "aes"):
                self.assertEqual(word in ours, word in theirs)
                self.assertIn(word, ours)
        self.assertTrue(json.loads(img("info", "--output=json", path).stdout)["encrypted"])
        run_io(io, path, "write 0 64k")
        (data, *_) = json.loads(
            img("map", "--output=json", *SECRET, "--image-opts", opened(path)).stdout
        )
        self.assertNotIn("offset", data, "the place in the file does not hold the data")

    def test_what_has_no_key_is_not_read(self):
        path = self.new()
        needed = "Parameter 'encrypt.key-secret' is required for cipher"
        for program in (io, qemu_io):
            result = program(path, "read 0 4k", fmt="qcow2", check=False)
            self.assertIn(needed, result.stderr)
            self.assertEqual(result.returncode, 1)
        cases = (
            (img("convert", "-O", "raw", path, self.path("b"), check=False), needed),
            (img("create", "-f", "qcow2", "-o", "encryption=on", self.path("b"), "1M",
                 check=False), needed),
            (img("create", "-f", "qcow2", *ENCRYPTED, self.path("b"), "1M", check=False),
             "No secret with id 'pass'"),
            (run_io(io, path, "read 0 4k", secret=(), check=False), "No secret with id 'pass'"),
            (run_io(io, path, "read 0 4k", more=",encrypt.format=luks", check=False),
             "Header reported 'aes' encryption format but options specify 'luks'"),
            (run_io(io, path, "read 0 4k", more=",encrypt.colour=red", check=False), "colour"),
        )  # fmt: skip
        for result, message in cases:
            self.assertEqual(result.returncode, 1)
            self.assertIn(message, result.stderr)
        self.assertFalse(os.path.exists(self.path("b")))
        img("check", path)
        Image(path).put32(32, 3)
        self.assertIn("method unknown", img("info", path, check=False).stderr)

    def test_what_would_be_stored_in_the_clear_or_read_as_noise_is_refused(self):
        path = self.new()
        run_io(io, path, "write -P 9 0 1M")
        both = "Compression and encryption not supported at the same time"
        plain = self.create("plain.qcow2", str(SIZE))
        result = img("convert", "-c", *SECRET, "-O", "qcow2", *ENCRYPTED, plain, self.path("b"),
                     check=False)  # fmt: skip
        self.assertIn(both, result.stderr)
        self.assertFalse(os.path.exists(self.path("b")))
        result = img("convert", "-c", "-n", *SECRET, "--target-image-opts", plain, opened(path),
                     check=False)  # fmt: skip
        self.assertIn(both, result.stderr)
        self.assertNotEqual(run_io(io, path, "write -c 0 64k", check=False).returncode, 0)
        old = self.new("old.qcow2", more="compat=0.10")
        for prealloc in ("metadata", "falloc", "full"):
            result = img("create", "-f", "qcow2", *SECRET, *ENCRYPTED, "-o",
                         f"compat=0.10,preallocation={prealloc}", self.path("b"), "1M",
                         check=False)  # fmt: skip
            self.assertIn("Encryption cannot be used", result.stderr)
            result = img("resize", f"--preallocation={prealloc}", *SECRET, "--image-opts",
                         opened(old), "8M", check=False)  # fmt: skip
            self.assertIn("can't be preallocated", result.stderr)
        self.assertEqual(self.contents(qemu_img, path), b"\x09" * (1 << 20) + bytes(SIZE - (1 << 20)))

    def test_preallocated_clusters_read_as_zeroes(self):
        for prealloc in ("metadata", "full"):
            path = self.new(f"{prealloc}.qcow2", more=f"preallocation={prealloc}", size=1 << 20)
            run_io(io, path, "write -P 9 1000 1000")
            expected = bytes(1000) + b"\x09" * 1000 + bytes((1 << 20) - 2000)
            self.assertEqual(self.contents(qemu_img, path), expected)
            self.assertEqual(self.contents(img, path), expected)
            img("check", "-q", path)

    def test_compressed_clusters_of_others_are_read(self):
        path = self.new()
        run_io(qemu_io, path, "write -c -P 7 0 64k", "write -P 8 64k 64k")
        self.assertEqual(self.contents(img, path)[:131072], b"\7" * 65536 + b"\10" * 65536)
        run_io(io, path, "write -P 9 100 100")
        expected = bytearray(b"\7" * 65536 + b"\10" * 65536)
        expected[100:200] = b"\11" * 100
        self.assertEqual(self.contents(qemu_img, path)[:131072], expected)

    def test_passwords_from_files_and_of_any_length(self):
        for password in ("x", "exactly sixteen!", "longer than sixteen bytes", "\u00e4\u00f6\u00fc"):
            with open(self.path("password"), "w", encoding="utf-8") as file:
                file.write(password)
            secret = ("--object", f"secret,id=pass,file={self.path('password')}")
            path = self.path("disk.qcow2")
            img("create", "-q", "-f", "qcow2", *secret, *ENCRYPTED, path, "1M")
            run_io(io, path, "write -P 7 0 1M", secret=secret)
            run_io(qemu_io, path, "read -P 7 0 1M", secret=secret)
            wrong = run_io(io, path, "read -P 7 0 512", check=False)
            self.assertIn("Pattern verification failed", wrong.stdout)

    def test_an_export_serves_the_plain_disk(self):
        path = self.new()
        run_io(io, path, "write -P 7 64k 64k")
        # The commands of a virtual machine's owner: the daemon takes the secret as the tools do.
        sock = self.path("nbd.sock")
        server = self.daemon(
            *SECRET,
            "--blockdev", f"node-name=disk,encrypt.format=aes,{opened(path)}",
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "type=nbd,id=e,node-name=disk,writable=on",
        )  # fmt: skip
        del server
        uri = f"nbd+unix:///disk?socket={sock}"
        qemu_io(uri, "read -P 0 0 64k", "read -P 7 64k 64k", "write -P 8 100000 1000", fmt="raw")
        qemu_io(uri, "read -P 8 100000 1000", fmt="raw")
        with open(path, "rb") as file:
            self.assertNotIn(b"\10" * 32, file.read())


if __name__ == "__main__":
    unittest.main()
