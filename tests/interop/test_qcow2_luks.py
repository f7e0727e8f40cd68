# SPDX-License-Identifier: Apache-2.0
"""qcow2 images encrypted with LUKS, made and used by Tidemark and by QEMU in turns."""

import json
import random
import struct
import unittest

from qcow2_edit import Image
from tidemark import TestCase, img, io, qemu_img, qemu_io

SECRETS = tuple(
    word
    for name, text in (("a", "alpha"), ("b", "beta"))
    for word in ("--object", f"secret,id={name},data={text}")
)
SIZE = 2 << 20
KINDS = (
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,compat=0.10",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=2M",
    "cluster_size=16k,data_file={dir}/data",
)


def opened(path, secret="a", more=""):
    return f"driver=qcow2,encrypt.key-secret={secret},file.driver=file,file.filename={path}{more}"


def run_io(program, path, *commands, secret="a", more="", **rest):
    options = (*SECRETS, "--image-opts")
    return program(opened(path, secret, more), *commands, options=options, **rest)


class Luks(TestCase):
    def new(self, name="disk.qcow2", program=img, more="", size=SIZE):
        path = self.path(name)
        options = "encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=10"
        options += f",{more}" if more else ""
        words = ("create", "-q", "-f", "qcow2", *SECRETS, "-o", options, path, str(size))
        for _ in range(9):  # QEMU fails to measure on a machine that is busy
            if program(*words, check=program is img).returncode == 0:
                break
        return path

    def contents(self, program, path):
        raw = self.path("raw")
        program("convert", *SECRETS, "--image-opts", "-O", "raw", opened(path), raw)
        with open(raw, "rb") as disk:
            return disk.read()

    def test_both_read_and_write_what_either_made(self):
        for seed, kind in enumerate(KINDS):
            rng = random.Random(seed)
            path = self.new(program=(img, qemu_img)[seed % 2], more=kind.format(dir=self.dir))
            model = bytearray(SIZE)
            for step in range(3):
                commands = []
                for _ in range(8):
                    at, byte = rng.randrange(SIZE), rng.randrange(256)
                    size = min(rng.choice((1, 512, 4096, 70000)), SIZE - at)
                    commands.append(f"write -P {byte} {at} {size}")
                    model[at : at + size] = bytes([byte]) * size
                run_io((io, qemu_io)[(seed + step) % 2], path, *commands)
            with self.subTest(kind=kind):
                self.assertEqual(self.contents(img, path), model)
                self.assertEqual(self.contents(qemu_img, path), model)
                img("check", "-q", path)
                qemu_img("check", "-q", *SECRETS, "--image-opts", opened(path))

    def test_contents_move_within_the_file(self):
        """The place in the file is part of the encryption."""
        for more in ("", "extended_l2=on,cluster_size=16k"):
            path = self.new(more=more)
            run_io(io, path, "write -P 7 0 1M")
            img("snapshot", *SECRETS, "-c", "s", "--image-opts", opened(path))
            run_io(io, path, "write -P 8 5000 1000")
            expected = bytearray(b"\7" * (1 << 20) + bytes(SIZE - (1 << 20)))
            self.assertEqual(self.contents(qemu_img, path)[5000:6000], b"\10" * 1000)
            img("snapshot", *SECRETS, "-a", "s", "--image-opts", opened(path))
            self.assertEqual(self.contents(qemu_img, path), expected)

    def test_the_ciphertext_is_nowhere_the_text(self):
        path = self.new()
        run_io(io, path, "write -P 65 0 256k")
        with open(path, "rb") as file:
            self.assertNotIn(b"A" * 64, file.read())

    def test_backing_files_and_commit(self):
        base = self.new("base.qcow2")
        run_io(io, base, f"write -P 1 0 {SIZE}")
        top = self.path("top.qcow2")
        options = "encrypt.format=luks,encrypt.key-secret=b,encrypt.iter-time=10"
        img("create", "-q", "-f", "qcow2", *SECRETS, "-o", options, "-u", "-b", base, "-F", "qcow2",
            top, str(SIZE))  # fmt: skip
        below = ",backing.encrypt.key-secret=a,backing.driver=qcow2,backing.file.filename=" + base
        run_io(io, top, "write -P 2 100k 50k", secret="b", more=below)
        run_io(qemu_io, top, "read -P 1 0 100k", "read -P 2 100k 50k", secret="b", more=below)
        img("commit", *SECRETS, "--image-opts", opened(top, "b", below))
        run_io(qemu_io, base, "read -P 1 0 100k", "read -P 2 100k 50k", "read -P 1 150k 1M")
        img("check", "-q", top)
        run_io(io, top, "read -P 2 100k 50k", secret="b", more=below)

    def test_preallocated_clusters_read_as_zeroes(self):
        path = self.new(more="preallocation=metadata", size=1 << 20)
        run_io(io, path, "write -P 9 1000 1000")
        expected = bytes(1000) + b"\x09" * 1000 + bytes((1 << 20) - 2000)
        self.assertEqual(self.contents(qemu_img, path), expected)
        img("check", "-q", path)

    def test_info_and_measure(self):
        path = self.new()
        ours, theirs = (
            json.loads(program("info", "--output=json", path).stdout)["format-specific"]["data"]
            for program in (img, qemu_img)
        )
        self.assertIs(ours["encrypt"].pop("detached-header"), False)
        self.assertEqual(ours, theirs)
        words = ("measure", "-O", "qcow2", *SECRETS, "-o",
                 "encrypt.format=luks,encrypt.key-secret=a", "--size", "1G")  # fmt: skip
        self.assertEqual(img(*words).stdout, qemu_img(*words).stdout)

    def test_keys_are_changed_and_checked(self):
        path = self.new()
        run_io(io, path, "write -P 5 0 64k")
        words = ("amend", *SECRETS, "--image-opts", opened(path), "-o")
        img(*words, "encrypt.state=active,encrypt.new-secret=b,encrypt.iter-time=10")
        run_io(qemu_io, path, "read -P 5 0 64k", secret="b")
        img(*words, "encrypt.state=inactive,encrypt.old-secret=a")
        result = run_io(io, path, "read 0 512", check=False)
        self.assertIn("Invalid password, cannot unlock any keyslot", result.stderr)
        run_io(io, path, "read -P 5 0 64k", secret="b")
        plain = self.create("plain.qcow2", "1M")
        result = img("amend", "-f", "qcow2", "-o", "encrypt.state=inactive", plain, check=False)
        self.assertIn("encryption not present", result.stderr)

    def test_guests_cannot_reach_the_keys(self):
        """An entry that leads to the header of LUKS is found when it is written to."""
        path = self.new()
        run_io(io, path, "write 0 64k")
        image = Image(path)
        with open(path, "rb") as file:
            head = file.read(65536)
        place = struct.unpack(">Q", head[120:128])[0]
        l1 = struct.unpack(">Q", head[40:48])[0]
        l2 = image.u64(l1) & 0x00FFFFFFFFFFFE00
        image.put64(l2, place | 1 << 63)
        result = run_io(io, path, "write 0 64k", check=False)
        self.assertIn("overlaps with", result.stderr + result.stdout)
        self.assertIn("Preventing invalid write", result.stderr + result.stdout)

    def test_wrong_header_extensions(self):
        good = self.new(size=65536)
        with open(good, "rb") as file:
            image = file.read()
        self.assertEqual(image[112:120], struct.pack(">II", 0x0537BE77, 16))
        for message, offset, new in (
            ("CRYPTO header extension size 8, but expected size 16", 116, struct.pack(">I", 8)),
            ("is not a multiple of cluster size", 120, struct.pack(">Q", 1000)),
            ("Encryption header", 128, struct.pack(">Q", 1 << 40)),
            ("CRYPTO header extension only expected", 32, struct.pack(">I", 0)),
            ("Missing CRYPTO header", 112, struct.pack(">I", 0x12345678)),
            ("Unable to read LUKS header", 128, struct.pack(">Q", 100)),
            ("Encryption header offset invalid", 120, struct.pack(">Q", 0)),
            ("Volume is not in LUKS format", 120, struct.pack(">Q", 65536)),
        ):
            with self.subTest(message=message):
                bad = self.path("bad.qcow2")
                with open(bad, "wb") as file:
                    file.write(image[:offset] + new + image[offset + len(new) :])
                result = img("info", bad, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn(message, result.stderr)


if __name__ == "__main__":
    unittest.main()
