# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: what lies behind the disk, what others store about them, and how many there
may be.
"""

import json
import os
import struct
import unittest

from qcow2_build import Snapshot, build
from qcow2_edit import Image
from tidemark import TestCase, img, io, qemu_img, qemu_io

M = 1 << 20
MOST = 65536
CLUSTER = 4096
SPAN = CLUSTER * CLUSTER // 8  # of an L2 table: the VM state begins at a multiple


class Snapshots(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.image = self.path("a.qcow2")

    def snapshot(self, *words, tool=img, **more):
        how = ("-f", "qcow2") if tool is img else ()
        return tool("snapshot", *how, *words, self.image, **more)

    def sound(self):
        for tool in (img, qemu_img):
            tool("check", "-q", "-f", "qcow2", self.image)

    def entries(self):
        """(place in the file, extra data, id, name) of each."""
        image = Image(self.image)
        table, at, found = image.u64(64), 0, []
        data = image.read(table, 256 * image.u32(60))
        for _ in range(image.u32(60)):
            id_size, name_size = struct.unpack_from(">HH", data, at + 12)
            extra_size = struct.unpack_from(">I", data, at + 36)[0]
            rest = data[at + 40 : at + 40 + extra_size + id_size + name_size]
            ends = (extra_size, extra_size + id_size)
            found.append((table + at, rest[: ends[0]], rest[ends[0] : ends[1]], rest[ends[1] :]))
            at += (40 + len(rest) + 7) // 8 * 8
        return found

    # --- one of several --------------------------------------------------------------------

    def test_reading_one(self):
        img("create", "-q", "-f", "qcow2", self.image, "1M")
        for n in range(1, 4):
            io(self.image, f"write -P {n} 0 1M", fmt="qcow2")
            self.snapshot("-c", f"s{n}", tool=(img, qemu_img)[n % 2])
        io(self.image, "write -P 9 0 1M", fmt="qcow2")
        out = self.path("out.raw")
        for n in range(1, 4):
            for chosen in (f"s{n}", f"snapshot.id={n}", f"snapshot.name=s{n}",
                           f"snapshot.id={n},snapshot.name=s{n}"):  # fmt: skip
                img("convert", "-f", "qcow2", "-l", chosen, "-O", "raw", self.image, out)
                qemu_io(out, f"read -P {n} 0 1M", fmt="raw")
        for chosen in ("s4", "snapshot.id=7", "snapshot.name=1", "snapshot.id=1,snapshot.name=s2"):
            result = img("convert", "-f", "qcow2", "-l", chosen, "-O", "raw", self.image, out, check=False)
            self.assertEqual(result.returncode, 1, chosen)
        self.assertEqual(self.listed(img), self.listed(qemu_img))

    def listed(self, tool):
        return json.loads(tool("info", "-f", "qcow2", "--output=json", self.image).stdout)["snapshots"]

    def test_an_id_is_not_given_twice(self):
        img("create", "-q", "-f", "qcow2", self.image, "1M")
        for name in ("a", "b", "c"):
            self.snapshot("-c", name)
        self.snapshot("-d", "b")
        self.snapshot("-c", "d")
        self.snapshot("-c", "e", tool=qemu_img)
        self.assertEqual([(e[2], e[3]) for e in self.entries()],
                         [(b"1", b"a"), (b"3", b"c"), (b"4", b"d"), (b"5", b"e")])  # fmt: skip

    def test_several_with_one_name(self):
        """As QEMU makes them; one is taken, and it is the same one."""
        img("create", "-q", "-f", "qcow2", self.image, "1M")
        for n in range(2):
            io(self.image, f"write -P {n + 1} 0 1M", fmt="qcow2")
            self.snapshot("-c", "s")
        self.snapshot("-a", "s")
        io(self.image, "read -P 1 0 1M", fmt="qcow2")
        self.snapshot("-a", "s", tool=qemu_img)
        io(self.image, "read -P 1 0 1M", fmt="qcow2")
        self.snapshot("-d", "s")
        self.snapshot("-a", "s")
        io(self.image, "read -P 2 0 1M", fmt="qcow2")
        self.sound()

    # --- state of a machine ----------------------------------------------------------------

    def make_with_vm_state(self, size=M, state=100_000):
        """Snapshot "vm" has `state` bytes of value 7 behind a disk of value 1."""
        img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", self.image, str(SPAN + M))
        io(self.image, f"write -P 1 0 {size}", f"write -P 7 {SPAN} {state}", fmt="qcow2")
        Image(self.image).put64(24, size)
        self.snapshot("-c", "vm", tool=qemu_img)
        image = Image(self.image)
        place = self.entries()[0][0]
        image.put32(place + 32, state)
        image.put64(place + 40, state)

    def state_of_current(self):
        """What lies behind the disk, read as a part of it from a copy."""
        copy = self.path("copy.qcow2")
        with open(self.image, "rb") as source, open(copy, "wb") as target:
            target.write(source.read())
        Image(copy).put64(24, SPAN + M)
        return qemu_io(copy, f"read -P 7 {SPAN} 100000", fmt="qcow2", check=False).returncode == 0

    def test_vm_state_is_kept(self):
        for who in (img, qemu_img):
            self.make_with_vm_state()
            self.assertEqual(self.listed(img)[0]["vm-state-size"], 100_000)
            self.assertEqual(self.listed(img), self.listed(qemu_img))
            # A new snapshot of the disk has none; what is not used may go from the current state.
            self.snapshot("-c", "other", tool=who)
            self.assertEqual([s["vm-state-size"] for s in self.listed(img)], [100_000, 0])
            io(self.image, f"write -P 2 0 {M}", fmt="qcow2")
            self.snapshot("-d", "other", tool=who)
            self.snapshot("-a", "vm", tool=who)
            io(self.image, f"read -P 1 0 {M}", fmt="qcow2")
            self.assertTrue(self.state_of_current(), who.__name__)
            self.sound()
            io(self.image, "write -P 3 0 64k", "discard 64k 64k", fmt="qcow2")
            self.snapshot("-a", "vm", tool=who)
            self.assertTrue(self.state_of_current(), who.__name__)
            self.sound()

    def test_vm_state_survives_amend_and_resize(self):
        self.make_with_vm_state()
        img("amend", "-f", "qcow2", "-o", "refcount_bits=64", self.image)
        img("resize", "-q", "-f", "qcow2", self.image, "12M")
        io(self.image, f"read -P 0 {M} 11M", "write -P 5 8M 1M", fmt="qcow2")
        self.sound()
        self.assertEqual(self.listed(img)[0]["vm-state-size"], 100_000)
        self.snapshot("-a", "vm")
        self.assertEqual(Image(self.image).size, M)
        self.assertTrue(self.state_of_current())
        self.sound()

    # --- what others store -----------------------------------------------------------------

    def test_extra_data_is_kept(self):
        extra = struct.pack(">QQQ", 0, M, 2**64 - 1) + b"of a newer program"
        names = [Snapshot("1", "a", M, extra=extra), Snapshot("2", "b", M)]
        build(self.image, M, snapshots=names)
        self.sound()
        changes = (
            lambda: self.snapshot("-c", "new"),
            lambda: self.snapshot("-d", "b"),
            lambda: io(self.image, "write -P 1 0 64k", fmt="qcow2"),
            lambda: self.snapshot("-a", "a"),
            lambda: img("amend", "-f", "qcow2", "-o", "refcount_bits=32", self.image),
            lambda: self.snapshot("-d", "new"),
            lambda: self.snapshot("-c", "newer", tool=qemu_img),
        )
        for number, change in enumerate(changes):
            change()
            self.assertEqual(self.entries()[0][1:], (extra, b"1", b"a"), number)
            self.sound()

    def test_version_2_needs_no_extra_data(self):
        build(self.image, M, snapshots=[Snapshot("1", "a", M, extra=b"")])
        image = Image(self.image)
        image.put32(4, 2)
        # Where the header of version 2 ends, the extensions begin.
        image.write(72, bytes(40))
        self.assertEqual(self.listed(img), self.listed(qemu_img))
        self.snapshot("-c", "b")
        io(self.image, "write -P 1 0 64k", fmt="qcow2")
        self.snapshot("-a", "a")
        io(self.image, "read -P 0 0 1M", fmt="qcow2")
        self.sound()

    # --- as many as there may be -----------------------------------------------------------

    def test_the_greatest_number(self):
        build(self.image, M, 9, snapshots=[Snapshot(str(n + 1), f"s{n}", M) for n in range(MOST)])
        self.assertEqual(len(self.listed(img)), MOST)
        img("check", "-q", "-f", "qcow2", self.image)
        result = self.snapshot("-c", "one-more", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, "65536|[Tt]oo many|File too large")
        self.snapshot("-d", "s7")
        self.snapshot("-c", "one-more")
        self.snapshot("-a", "one-more")
        entries = self.entries()
        self.assertEqual((len(entries), entries[-1][3]), (MOST, b"one-more"))
        img("check", "-q", "-f", "qcow2", self.image)

    def test_more_than_that_is_refused(self):
        build(self.image, M, snapshots=[Snapshot("1", "s", M)])
        Image(self.image).put32(60, MOST + 1)
        for tool in (img, qemu_img):
            result = tool("info", self.image, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, "(?i)snapshot")

    # --- counts that are full --------------------------------------------------------------

    def test_full_counts_lose_nothing(self):
        for width in (1, 2, 4):
            most = (1 << width) - 1
            options = f"cluster_size={CLUSTER},refcount_bits={width}"
            img("create", "-q", "-f", "qcow2", "-o", options, self.image, "2M")
            io(self.image, "write -P 1 0 1M", "write -z 1M 64k", fmt="qcow2")
            for n in range(most - 1):
                self.snapshot("-c", f"s{n}")
            size = os.path.getsize(self.image)
            for _ in range(3):
                result = self.snapshot("-c", "one-more", check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn("refcount", result.stderr.lower())
                self.sound()
            self.assertLessEqual(os.path.getsize(self.image), size + 64 * CLUSTER)
            self.assertEqual(len(self.entries()), most - 1)
            io(self.image, "read -P 1 0 1M", "write -P 2 0 512k", fmt="qcow2")
            for n in range(most - 1):
                out = self.path("out.raw")
                img("convert", "-f", "qcow2", "-l", f"s{n}", "-O", "raw", self.image, out)
                qemu_io(out, "read -P 1 0 1M", "read -P 0 1M 1M", fmt="raw")
            self.sound()


if __name__ == "__main__":
    unittest.main()
