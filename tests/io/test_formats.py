# SPDX-License-Identifier: Apache-2.0
"""Images of VMware, Virtual PC, Hyper-V and VirtualBox from strangers: which other files they may
open, parents of VHD images, logs of VHDX images, and damage.
"""

import hashlib
import json
import os
import random
import struct
import threading
import unittest
import uuid
import zlib

import nbd

from qmp import QmpError
from tidemark import TestCase, compat, img, nbd_uri, qemu, run, tool

MIB = 1 << 20


def vhd_sum(data, field):
    data = bytearray(data)
    data[field : field + 4] = bytes(4)
    data[field : field + 4] = struct.pack(">I", ~sum(data) & 0xFFFFFFFF)
    return bytes(data)


def vhd_footer(kind, size, uid, header=512):
    data = b"conectix" + struct.pack(">IIQI4sII", 2, 0x10000, header, 0, b"win ", 0x50003, 0x5769326B)
    data += struct.pack(">QQHBBII", size, size, 1, 16, 63, kind, 0) + uid
    return vhd_sum(data.ljust(512, b"\0"), 64)


def differencing(size, parent_uid, parent, written):
    """A VHD image with blocks of 4 KiB, whose sectors in `written` are 0xcc."""
    blocks = size // 4096
    name = parent.encode("utf-16-le")
    head = b"cxsparse" + struct.pack(">QQIIII", 2**64 - 1, 1536, 0x10000, blocks, 4096, 0)
    head += parent_uid + bytes(8) + parent.encode("utf-16-be").ljust(512, b"\0")
    head += struct.pack(">4sIIIQ", b"W2ru", 512, len(name), 0, 2048)
    footer = vhd_footer(4, size, b"child" * 3 + b"!")
    data = footer + vhd_sum(head.ljust(1024, b"\0"), 36)
    present = sorted({sector // 8 for sector in written})
    place = {block: 5 + 9 * i for i, block in enumerate(present)}
    data += b"".join(struct.pack(">I", place.get(i, 0xFFFFFFFF)) for i in range(blocks)).ljust(512, b"\xff")
    data += name.ljust(512, b"\0")
    for block in present:
        bits = sum(0x80 >> i for i in range(8) if block * 8 + i in written)
        data += bytes([bits]).ljust(512, b"\0")
        data += b"".join((b"\xcc" if block * 8 + i in written else b"\xee") * 512 for i in range(8))
    return data + footer


class FormatCase(TestCase):
    def write(self, name, data):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(data)
        return path

    def read(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def options(self, fmt, path, allowed):
        return ("--image-opts", f"driver={fmt},x-other-files={allowed},file.driver=file,file.filename={path}")

    def converted(self, *source):
        img("convert", "-O", "raw", *source, self.path("out.raw"))
        return self.read("out.raw")


class OtherFiles(FormatCase):
    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.vmdk")
        img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", self.disk, "1M")

    def refused(self, source, sentence, program=None):
        command = [*(program or tool("img")), "convert", "-O", "raw", *source, self.path("no.raw")]
        result = run(*command, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(sentence, result.stderr)
        self.assertFalse(os.path.exists(self.path("no.raw")))

    def name_extent(self, name):
        text = self.read("disk.vmdk").replace(b"disk-flat.vmdk", name.encode())
        return self.write("other.vmdk", text)

    def test_extents_are_not_opened_by_default(self):
        self.refused(["-f", "vmdk", self.disk], "which it may not open")
        self.assertEqual(self.converted(*self.options("vmdk", self.disk, "directory")), bytes(MIB))

    def test_a_target_of_several_files(self):
        data = random.Random(2).randbytes(MIB)
        source = self.write("src.raw", data)
        for kind in ("monolithicFlat", "twoGbMaxExtentSparse"):
            img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=" + kind, source, self.path("new.vmdk"))
            new = self.options("vmdk", self.path("new.vmdk"), "directory")
            self.assertTrue(self.converted(*new) == data, kind)

    def test_under_the_names_of_qemu_the_directory_is_allowed(self):
        program = [compat("qemu-img")]
        run(*program, "convert", "-O", "raw", self.disk, self.path("out.raw"))
        secret = self.write("secret", bytes(MIB))
        os.makedirs(self.path("sub"))
        os.rename(secret, self.path("sub/secret"))
        for name in ("sub/secret", self.path("sub/secret"), "../" + os.path.basename(self.path("")) + "/sub/secret"):
            self.refused([self.name_extent(name)], "is not in the directory of the image", program)

    def test_a_link_out_of_the_directory(self):
        os.makedirs(self.path("sub"))
        os.symlink(self.path("disk-flat.vmdk"), self.path("sub/link"))
        other = self.name_extent("link")
        os.rename(other, self.path("sub/other.vmdk"))
        self.refused(self.options("vmdk", self.path("sub/other.vmdk"), "directory"), "is not in the directory")
        self.assertEqual(self.converted(*self.options("vmdk", self.path("sub/other.vmdk"), "any")), bytes(MIB))

    def test_names_that_are_no_paths(self):
        for name in ("nbd://localhost/x", "json:{'driver':'null-co','size':1048576}", "file:disk-flat.vmdk"):
            for allowed in ("none", "directory"):
                self.refused(self.options("vmdk", self.name_extent(name), allowed), name.split(":")[0])

    def test_a_parent_whose_name_is_json(self):
        """In the current directory, where it is no path either."""
        name = "json:{'driver':'null-co','size':1048576}"
        text = self.read("disk.vmdk").replace(b"parentCID=ffffffff", b"parentCID=0")
        self.write("disk.vmdk", text + f'parentFileNameHint="{name}"\n'.encode())
        for allowed in ("directory", "any"):
            source = self.options("vmdk", "disk.vmdk", allowed)
            result = run(*tool("img"), "map", *source, check=False, cwd=self.path(""))
            self.assertEqual(result.returncode, 1)
            self.assertIn("is not a path of a file", result.stderr)

    def test_an_extent_is_data_whatever_it_contains(self):
        """Not an image, which could lead to other files."""
        img("create", "-q", "-f", "qcow2", self.path("inner"), "1M")
        inner = self.read("inner").ljust(MIB, b"\0")
        self.write("disk-flat.vmdk", inner)
        self.assertTrue(self.converted(*self.options("vmdk", self.disk, "directory")) == inner)

    def test_parents(self):
        img("create", "-q", "-f", "vmdk", self.path("base.vmdk"), "1M")
        top = self.path("top.vmdk")
        img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", top)
        self.refused(["-f", "vmdk", top], "which it may not open")
        self.assertEqual(self.converted(*self.options("vmdk", top, "directory")), bytes(MIB))
        self.assertIn("base.vmdk", img("info", top).stdout)

    def test_another_image_given_as_the_parent(self):
        base, other, top = (self.path(name) for name in ("base.vmdk", "other.vmdk", "top.vmdk"))
        img("create", "-q", "-f", "vmdk", base, "1M")
        img("create", "-q", "-f", "vmdk", other, "1M")
        img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", top)

        def given(image, driver, parent):
            node = {"driver": driver, "file": {"driver": "file", "filename": parent}}
            image = {"driver": "file", "filename": image}
            return ["json:" + json.dumps({"driver": "vmdk", "file": image, "backing": node})]

        self.assertEqual(self.converted(*given(top, "vmdk", base)), bytes(MIB))
        self.assertEqual(self.converted(*given(top, "raw", other)), self.read("other.vmdk").ljust(MIB, b"\0")[:MIB])
        os.remove(self.path("out.raw"))
        self.refused(given(top, "vmdk", other), "was changed after the image was made")
        self.refused(given(other, "vmdk", base), "has no parent")

    def test_a_parent_without_a_name(self):
        img("create", "-q", "-f", "vmdk", self.path("top.vmdk"), "1M")
        text = self.read("top.vmdk").replace(b"parentCID=ffffffff", b"parentCID=12345678")
        self.refused(["-f", "vmdk", self.write("top.vmdk", text)], "does not name it")

    def test_a_descriptor_that_names_itself(self):
        self.refused(self.options("vmdk", self.name_extent("other.vmdk"), "any"), "")
        text = self.read("disk.vmdk").replace(b"parentCID=ffffffff", b'parentCID=0\nparentFileNameHint="disk.vmdk"')
        self.write("disk.vmdk", text)
        self.refused(self.options("vmdk", self.disk, "any"), "")


class Differencing(FormatCase):
    def test_sectors_of_the_parent_and_of_the_child(self):
        uid, size = bytes(range(16)), 64 << 10
        parent = random.Random(1).randbytes(size)
        self.write("base.vhd", parent + vhd_footer(2, size, uid, 2**64 - 1))
        written = {0, 3, 4, 9, 15, 40, 127}
        top = self.write("top.vhd", differencing(size, uid, ".\\base.vhd", written))
        expected = bytearray(parent)
        for sector in written:
            expected[sector * 512 : sector * 512 + 512] = b"\xcc" * 512
        self.assertTrue(self.converted(*self.options("vpc", top, "directory")) == expected)
        result = img("info", "-f", "vpc", "-U", top)
        self.assertIn("64 KiB", result.stdout)
        result = run(*tool("io"), "-c", "write 0 512", *self.options("vpc", top, "directory"), check=False)
        self.assertIn("is a differencing disk", result.stdout + result.stderr)

    def test_another_parent_of_that_name(self):
        size = 64 << 10
        self.write("base.vhd", bytes(size) + vhd_footer(2, size, b"x" * 16, 2**64 - 1))
        top = self.write("top.vhd", differencing(size, bytes(16), "base.vhd", {1}))
        result = img("map", *self.options("vpc", top, "directory"), check=False)
        self.assertIn("has another UUID", result.stderr)


class DifferencingVhdx(FormatCase):
    """Blocks of 1 MiB: the parent's, ours, zeroes, and one of which every third sector is ours."""

    def setUp(self):
        super().setUp()
        base, top = self.path("base.vhdx"), self.path("top.vhdx")
        for path, byte in ((base, 1), (top, 2)):
            img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "4M")
            run(*tool("io"), "-f", "vhdx", "-c", f"write -P {byte} 0 4M", path)
        self.top, self.parent_guid = top, self.guid_of_data(self.read("base.vhdx"))
        self.make("{" + self.parent_guid + "}", ".\\base.vhdx")

    @staticmethod
    def guid_of_data(data):
        newest = max((struct.unpack_from("<Q", data, at + 8)[0], at) for at in (65536, 131072))[1]
        return str(uuid.UUID(bytes_le=bytes(data[newest + 32 : newest + 48])))

    @staticmethod
    def region(data, guid):
        for at in range(192 * 1024 + 16, 192 * 1024 + 80, 32):
            if bytes(data[at : at + 16]) == uuid.UUID(guid).bytes_le:
                return struct.unpack_from("<Q", data, at + 16)[0]
        raise AssertionError(guid)

    def make(self, linkage, path, locators=1):
        data = bytearray(self.read("top.vhdx"))
        bat = self.region(data, "2dc27766-f623-4200-9d64-115e9bfd4a08")
        meta = self.region(data, "8b7ca206-4790-4b9a-b8fe-575f050f886e")
        texts = [t.encode("utf-16-le") for t in ("parent_linkage", linkage, "relative_path", path)]
        head = uuid.UUID("b04aefb7-d19e-4a81-b789-25b8e9445913").bytes_le + struct.pack("<HH", 0, 2)
        at, places = 44, []
        for text in texts:
            places.append(at)
            at += len(text)
        for i in (0, 2):
            head += struct.pack("<IIHH", places[i], places[i + 1], len(texts[i]), len(texts[i + 1]))
        locator = head + b"".join(texts)
        count = struct.unpack_from("<H", data, meta + 10)[0]
        for entry in range(meta + 32, meta + 32 + 32 * count, 32):
            if bytes(data[entry : entry + 16]) == uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le:
                data[meta + struct.unpack_from("<I", data, entry + 16)[0] + 4] |= 2
        entry = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
        entry += struct.pack("<IIII", 128 * 1024, len(locator), 4, 0)
        data[meta + 32 + 32 * count : meta + 32 + 32 * (count + locators)] = entry * locators
        struct.pack_into("<H", data, meta + 10, count + locators)
        data[meta + 128 * 1024 : meta + 128 * 1024 + len(locator)] = locator
        data += bytes(-len(data) % MIB)
        struct.pack_into("<Q", data, bat + 8 * 4096, len(data) | 6)
        bits = bytearray(MIB)
        for sector in range(0, 2048, 3):
            bits[(3 * 2048 + sector) // 8] |= 1 << (3 * 2048 + sector) % 8
        for block, state in ((0, 0), (2, 2), (3, 7)):
            at = bat + 8 * block
            struct.pack_into("<Q", data, at, struct.unpack_from("<Q", data, at)[0] & ~7 | state)
        self.write("top.vhdx", data + bits)

    def test_sectors_of_the_parent_and_of_the_child(self):
        expected = b"\1" * MIB + b"\2" * MIB + bytes(MIB)
        expected += b"".join((b"\1" if i % 3 else b"\2") * 512 for i in range(2048))
        self.assertTrue(self.converted(*self.options("vhdx", self.top, "directory")) == expected)
        for allowed, message in (("none", "the parent"), ("any", "")):
            result = img("map", *self.options("vhdx", self.top, allowed), check=False)
            self.assertIn(message, result.stderr)
            self.assertEqual(result.returncode, allowed == "none")
        result = run(*tool("io"), "-c", "write 0 512", *self.options("vhdx", self.top, "directory"), check=False)
        self.assertIn("is a differencing disk", result.stdout + result.stderr)
        self.assertIn("4 MiB", img("info", "-f", "vhdx", self.top).stdout)

    def test_two_locators(self):
        """Of thousands of long ones an open would take minutes."""
        self.make("{" + self.parent_guid + "}", ".\\base.vhdx", locators=2)
        result = img("info", self.top, check=False)
        self.assertIn("has a metadata item twice", result.stderr)

    def test_a_parent_that_was_written_since(self):
        run(*tool("io"), "-f", "vhdx", "-c", "write -P 3 0 4k", self.path("base.vhdx"))
        self.assertNotEqual(self.guid_of_data(self.read("base.vhdx")), self.parent_guid)
        result = img("map", *self.options("vhdx", self.top, "directory"), check=False)
        self.assertIn("was changed since", result.stderr)


class DifferencingVdi(FormatCase):
    """The user names the parent, as the image does not."""

    def setUp(self):
        super().setUp()
        base, top = self.path("base.vdi"), self.path("top.vdi")
        img("create", "-q", "-f", "vdi", base, "4M")
        run(*tool("io"), "-f", "vdi", "-c", "write -P 1 0 4M", base)
        img("create", "-q", "-f", "vdi", top, "4M")
        run(*tool("io"), "-f", "vdi", "-c", "write -P 2 1M 1M", top)
        data = bytearray(self.read("top.vdi"))
        data[0x4C] = 4
        data[0x1A8:0x1B8] = self.read("base.vdi")[0x188:0x198]
        data[0x208:0x20C] = b"\xfe\xff\xff\xff"
        self.top = self.write("top.vdi", data)
        self.node = f"driver=vdi,file.driver=file,file.filename={top}"
        self.parent = f",backing.driver=vdi,backing.file.filename={base}"

    def test_blocks_of_the_parent_and_of_the_child(self):
        expected = b"\1" * MIB + b"\2" * MIB + bytes(MIB) + b"\1" * MIB
        self.assertTrue(self.converted("--image-opts", self.node + self.parent) == expected)
        self.assertIn("4 MiB", img("info", "-f", "vdi", self.top).stdout)
        result = img("convert", "-f", "vdi", "-O", "raw", self.top, self.path("out.raw"), check=False)
        self.assertIn("give it with the option 'backing'", result.stderr)
        opened = ("--image-opts", self.node + self.parent)
        result = run(*tool("io"), "-c", "write 0 512", *opened, check=False)
        self.assertIn("is a differencing disk", result.stdout + result.stderr)

    def test_another_parent(self):
        img("create", "-q", "-f", "vdi", self.path("base.vdi"), "4M")
        result = img("map", "--image-opts", self.node + self.parent, check=False)
        self.assertIn("has another UUID", result.stderr)


class Counter(FormatCase):
    def test_the_table_of_a_vdi_image_counts(self):
        """The number of blocks in the header may be behind after a crash."""
        path = self.path("disk.vdi")
        img("create", "-q", "-f", "vdi", path, "8M")
        run(*tool("io"), "-f", "vdi", "-c", "write -P 1 0 2M", path)
        data = bytearray(self.read("disk.vdi"))
        data[0x184:0x188] = bytes(4)
        self.write("disk.vdi", data)
        self.assertEqual(img("check", "-f", "vdi", path, check=False).returncode, 2)
        run(*tool("io"), "-f", "vdi", "-c", "write -P 2 4M 1M", path)
        expected = b"\1" * (2 * MIB) + bytes(2 * MIB) + b"\2" * MIB + bytes(3 * MIB)
        self.assertTrue(self.converted("-f", "vdi", path) == expected)


class Device(FormatCase):
    """A block device as the file of an image: it has other data, and keeps its size."""

    def setUp(self):
        super().setUp()
        back = self.write("back", random.Random(7).randbytes(6 * MIB))
        as_root = () if os.geteuid() == 0 else ("sudo", "-n")
        self.device = run(*as_root, "losetup", "-f", "--show", back).stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", self.device)
        if as_root:
            run(*as_root, "chown", str(os.geteuid()), self.device)

    def test_made_and_written(self):
        for fmt in ("vdi", "vpc"):
            img("create", "-q", "-f", fmt, self.device, "32M")
            commands = ("read -P 0 0 20M", "write -P 3 9M 1000k", "write -P 4 20M 512")
            text = [word for command in commands for word in ("-c", command)]
            run(*tool("io"), "-f", fmt, *text, self.device)
            commands = ("read -P 3 9M 1000k", "read -P 0 0 9M", "read -P 4 20M 512", "read -P 0 21M 1M")
            text = [word for command in commands for word in ("-c", command)]
            run(qemu("qemu-io"), "-r", "-f", fmt, *text, self.device)
            full = run(*tool("io"), "-f", fmt, "-c", "write 1M 8M", self.device, check=False)
            self.assertIn("No space left on device", full.stdout + full.stderr)
            text = ("-c", "read -P 3 9M 1000k", "-c", "read -P 4 20M 512")
            run(qemu("qemu-io"), "-r", "-f", fmt, *text, self.device)

    def test_too_short(self):
        result = img("create", "-q", "-f", "vdi", "-o", "static=on", self.device, "32M", check=False)
        self.assertIn("Cannot resize device", result.stderr)
        self.assertEqual(result.returncode, 1)


class Empty(FormatCase):
    def test_a_disk_of_size_0_is_read_by_qemu(self):
        for fmt in "vhdx", "vdi", "vpc", "qed":
            with self.subTest(fmt):
                path = self.create(f"empty.{fmt}", "0", fmt)
                out = run(qemu("qemu-img"), "info", "-f", fmt, path).stdout
                self.assertIn("virtual size: 0 B", out)
                self.assertLess(os.stat(path).st_blocks * 512, 1 << 20)


class Log(FormatCase):
    """The log of VHDX images: a killed writer leaves it; what it changed in place is taken back."""

    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.vhdx")
        img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", self.disk, "16M")
        run(
            *tool("io"), "-f", "vhdx", "-c", "write -P 5 3M 64k", "-c", "write -P 6 9M 64k", "-c", "flush",
            "-c", "sigraise 9", self.disk, check=False,
        )
        data = bytearray(self.read("disk.vhdx"))
        data[2 * MIB : 2 * MIB + 4096] = struct.pack("<Q", 2) * 512
        self.write("disk.vhdx", data)
        self.expected = bytearray(16 * MIB)
        self.expected[3 * MIB : 3 * MIB + 65536] = b"\5" * 65536
        self.expected[9 * MIB : 9 * MIB + 65536] = b"\6" * 65536

    def test_replayed_in_memory_for_reading(self):
        before = hashlib.sha256(self.read("disk.vhdx")).digest()
        self.assertTrue(self.converted("-f", "vhdx", self.disk) == self.expected)
        img("check", "-f", "vhdx", self.disk)
        self.assertEqual(hashlib.sha256(self.read("disk.vhdx")).digest(), before)

    def test_replayed_in_the_file_for_writing(self):
        run(*tool("io"), "-f", "vhdx", "-c", "write -P 7 0 4k", self.disk)
        self.expected[:4096] = b"\7" * 4096
        self.assertTrue(self.converted("-f", "vhdx", self.disk) == self.expected)
        data = self.read("disk.vhdx")
        newest = max((struct.unpack_from("<Q", data, at + 8)[0], at) for at in (65536, 131072))[1]
        self.assertEqual(data[newest + 48 : newest + 64], bytes(16), "the log GUID of the header")

    def test_replayed_by_a_repair(self):
        result = img("check", "-f", "vhdx", "-r", "all", self.disk)
        self.assertIn("    1 corruptions\n", result.stdout)
        self.assertIn("No errors were found", result.stdout)
        result = img("check", "-f", "vhdx", "-r", "all", self.disk)
        self.assertNotIn("repaired", result.stdout)
        self.assertTrue(self.converted("-f", "vhdx", self.disk) == self.expected)

    def test_a_damaged_entry_ends_the_log(self):
        data = bytearray(self.read("disk.vhdx"))
        data[MIB + 100] ^= 1
        self.write("disk.vhdx", data)
        found = self.converted("-f", "vhdx", self.disk)
        self.assertIn(found, (bytes(16 * MIB), bytes(self.expected)))


class Streams(FormatCase):
    """As VMware exports disks: markers before all parts; a footer says where the directory is."""

    GRAIN, TABLE = 65536, 512 * 65536

    def header(self, directory, sectors):
        data = struct.pack("<4sIIQQQQIQQQB", b"KDMV", 3, 0x30001, sectors, 128, 1, 1, 512, 0, directory, 2, 0)
        return (data + b"\n \r\n" + struct.pack("<H", 1)).ljust(512, b"\0")

    def marker(self, kind, length):
        return struct.pack("<QII", length, 0, kind).ljust(512, b"\0")

    def stream(self, size, grains):
        """Grains by number; each grain table follows its grains, and empty ones are left out."""
        text = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="streamOptimized"\n'
        data = bytearray(self.header(2**64 - 1, size // 512) + text.ljust(512, b"\0"))
        directory = [0] * -(-size // self.TABLE)
        for number in range(len(directory)):
            table = [0] * 512
            for grain, contents in sorted(grains.items()):
                if grain // 512 == number:
                    table[grain % 512] = len(data) // 512
                    packed = zlib.compress(contents)
                    data += struct.pack("<QI", grain * 128, len(packed)) + packed
                    data += bytes(-len(data) % 512)
            if any(table):
                data += self.marker(1, 4)
                directory[number] = len(data) // 512
                data += struct.pack("<512I", *table)
        data += self.marker(2, 1)
        at = len(data) // 512
        data += struct.pack(f"<{len(directory)}I", *directory).ljust(512, b"\0")
        return data + self.marker(3, 1) + self.header(at, size // 512) + self.marker(0, 0)

    def test_tables_at_the_end(self):
        """Several, one of them missing, and a last grain that is cut by the end of the disk."""
        rng, size = random.Random(4), 3 * self.TABLE + 70144
        grains = {i: rng.randbytes(32768) * 2 for i in (1, 2, 511, 1024, 1200, 3 * 512)}
        grains[3 * 512 + 1] = rng.randbytes(size % self.GRAIN)
        path = self.write("disk.vmdk", self.stream(size, grains))
        expected = bytearray(size)
        for number, contents in grains.items():
            expected[number * self.GRAIN : number * self.GRAIN + len(contents)] = contents
        self.assertTrue(self.converted(path) == expected)
        self.assertIn("No errors were found", img("check", "-f", "vmdk", path).stdout)
        run(qemu("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", path, self.path("out.qemu"))
        self.assertTrue(self.read("out.qemu") == expected)

    def test_a_transfer_that_ended_early(self):
        data = self.stream(MIB, {i: random.Random(i).randbytes(self.GRAIN) for i in range(16)})
        for changed in (data[: len(data) // 2], data[:-512], data + bytes(65536)):
            result = img("info", "-f", "vmdk", self.write("disk.vmdk", changed), check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Invalid footer: ", result.stderr)
            self.assertIn(" is incomplete, or something was appended", result.stderr)


class Esx(FormatCase):
    """What VMware's servers have: flat extents are read, the others refused in one sentence."""

    def descriptor(self, kind, extent, name="esx.vmdk"):
        text = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        text += f'createType="{kind}"\n\nRW 128 {extent}\n\nddb.adapterType = "lsilogic"\n'
        return self.write(name, text.encode())

    def said(self, path, lines=1):
        result = img("info", "-f", "vmdk", path, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr.count("\n"), lines)
        return result.stderr

    def test_a_flat_extent(self):
        data = random.Random(5).randbytes(65536)
        self.write("esx-flat.vmdk", data)
        path = self.descriptor("vmfs", 'VMFS "esx-flat.vmdk"')
        self.assertTrue(self.converted(*self.options("vmdk", path, "directory")) == data)

    def test_others(self):
        for kind, extent in (
            ("vmfsSparse", "VMFSSPARSE"),
            ("seSparse", "SESPARSE"),
            ("vmfsRawDeviceMap", "VMFSRDM"),
        ):
            said = self.said(self.descriptor(kind, f'{extent} "esx-flat.vmdk"'))
            self.assertIn(f"Unsupported extent type '{extent}'", said)
        image = self.write("x", b"COWD".ljust(65536, b"\0"))
        self.assertIn("Extents of ESX ('COWD') are not supported", self.said(image))

    def test_control_characters_are_not_printed(self):
        for kind, extent, lines in (
            ("monolithicFlat", 'FLAT\x1b[31m\x9b "a" 0', 1),
            ("mono\x1b[31m\x07", 'FLAT "a" 0', 1),
            ("monolithicFlat", 'FLAT "a\x1b[31m\r\x7f" 0', 2),  # and a hint
        ):
            text = self.said(self.descriptor(kind, extent), lines)
            self.assertRegex(text, r"^[ -~]*\?[ -~]*\n([ -~]*\n)?$")


class Qed(FormatCase):
    """Clusters of 4 KiB, tables of two: an L2 table is for 4 MiB of the disk."""

    OPTIONS = ("-o", "cluster_size=4k,table_size=2")
    FEATURES, NEED_CHECK, AUTOCLEAR, FIRST_TABLE = 16, 2, 32, 12288

    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.qed", "8M", "qed", options=self.OPTIONS)

    def io(self, path, *commands, program=None, check=True):
        words = [word for command in commands for word in ("-c", command)]
        return run(*(program or tool("io")), "-f", "qed", *words, path, check=check)

    def by_qemu(self, path, *commands):
        return self.io(path, *commands, program=(qemu("qemu-io"),))

    def edit(self, *changes):
        with open(self.disk, "r+b") as file:
            for offset, value in changes:
                file.seek(offset)
                file.write(struct.pack("<Q", value))

    def number(self, offset):
        return struct.unpack_from("<Q", self.read("disk.qed"), offset)[0]

    def overlay(self, name, size="8M", backing=("disk.qed", "qed")):
        options = ("-b", backing[0], "-F", backing[1], *self.OPTIONS)
        return self.create(name, size, "qed", options=options)

    def test_overlays(self):
        self.io(self.disk, "write -P 1 0 1M")
        top = self.overlay("top.qed")
        self.io(top, "write -P 2 6000 100", "write -z 64k 64k", "write -P 3 5M 5000")
        for program in (self.io, self.by_qemu):
            program(top, "read -P 1 0 6000", "read -P 2 6000 100", "read -P 1 6100 59436")
            program(top, "read -P 0 64k 64k", "read -P 1 128k 896k", "read -P 3 5M 5000", "read -P 0 6M 2M")
        self.assertLess(os.path.getsize(top), 64 << 10)  # zeroes are marks
        self.by_qemu(top, "write -P 4 64k 4k", "write -P 5 7M 4k")
        self.io(top, "read -P 4 64k 4k", "read -P 0 68k 60k", "read -P 5 7M 4k", "write -P 6 72k 512")
        self.by_qemu(top, "read -P 0 68k 4k", "read -P 6 72k 512", "read -P 0 74240 1k")
        run(qemu("qemu-img"), "check", "-f", "qed", top)

    def test_another_backing_file(self):
        """The names take turns in the header, and only the format raw is recorded."""
        self.io(self.disk, "write -P 1 0 1M")
        other = self.create("other.raw", "8M", "raw")
        top = self.overlay("top.qed")
        for n, (name, fmt) in enumerate((("other.raw", "raw"), ("disk.qed", "qed"), ("other.raw", "raw"))):
            run(*tool("img"), "rebase", "-u", "-f", "qed", "-b", name, "-F", fmt, top)
            found = json.loads(run(qemu("qemu-img"), "info", "--output=json", top).stdout)
            self.assertEqual(found["backing-filename"], name)
            features, place = struct.unpack_from("<Q32xI", self.read("top.qed"), self.FEATURES)
            self.assertEqual(features, 5 if fmt == "raw" else 1)
            self.assertEqual(place, (2048, 64)[n % 2])
            self.by_qemu(top, f"read -P {0 if fmt == 'raw' else 1} 0 1M")
        run(*tool("img"), "rebase", "-f", "qed", "-b", "disk.qed", "-F", "qed", top)
        self.by_qemu(top, "read -P 0 0 8M")
        run(*tool("img"), "rebase", "-u", "-f", "qed", "-b", "", top)
        self.assertNotIn("backing", run(qemu("qemu-img"), "info", top).stdout)
        self.assertIn("1023 are allowed", self.refused_name(top, "x" * 1024))
        self.assertTrue(other)

    def test_names_of_another_program(self):
        """One of 0 bytes is none; QEMU records long ones."""
        self.edit((self.FEATURES, 1), (56, 64))
        self.assertNotIn("backing", img("info", self.disk).stdout)
        self.io(self.disk, "read -P 0 0 8M")
        path = self.create("long.qed", "1M", "qed")
        with open(path, "r+b") as file:
            file.seek(self.FEATURES)
            file.write(struct.pack("<Q", 5))
            file.seek(56)
            file.write(struct.pack("<II", 64, 3000) + b"x" * 3000)
        self.assertIn(f"backing file: {'x' * 3000} ", img("info", path).stdout)
        run(*tool("img"), "rebase", "-u", "-f", "qed", "-b", "disk.qed", "-F", "qed", path)
        self.assertEqual(self.read("long.qed")[56:64], struct.pack("<II", 3064, 8))
        self.by_qemu(path, "read -P 0 0 1M")

    def test_sizes_that_nothing_can_open_are_refused(self):
        for options, size, what in (
            ("cluster_size=4M", "1G", "clusters and tables are too large"),
            ("cluster_size=2M,table_size=8", str((1 << 63) - 1), "less than 9223372036854775296 bytes"),
            ("cluster_size=4k,table_size=2", str((4 << 30) + 1), "less than 4294967296 bytes"),
        ):
            result = img("create", "-f", "qed", "-o", options, self.path("large.qed"), size, check=False)
            self.assertIn(what, result.stderr)
            self.assertFalse(os.path.exists(self.path("large.qed")))

    def refused_name(self, top, name):
        return img("rebase", "-u", "-f", "qed", "-b", name, "-F", "raw", top, check=False).stderr

    def test_a_longer_disk(self):
        self.io(self.disk, "write -P 1 7M 1M")
        img("resize", "-f", "qed", self.disk, "64M")
        self.io(self.disk, "read -P 1 7M 1M", "read -P 0 8M 56M", "write -P 2 63M 1M")
        self.by_qemu(self.disk, "read -P 1 7M 1M", "read -P 0 8M 55M", "read -P 2 63M 1M")
        result = img("resize", "--shrink", "-f", "qed", self.disk, "8M", check=False)
        self.assertIn("Shrinking images is currently not supported", result.stderr)
        result = img("resize", "-f", "qed", self.disk, "5G", check=False)
        self.assertIn("Invalid image size", result.stderr)
        short = self.overlay("short.qed", "1M")
        result = img("resize", "-f", "qed", short, "2M", check=False)
        self.assertIn("its backing file is longer", result.stderr)
        self.assertIn("virtual size: 1 MiB", img("info", short).stdout)

    def test_what_is_past_the_end_of_a_disk_does_not_appear(self):
        """QEMU fills a last cluster with what a longer backing file has."""
        self.io(self.disk, "write -P 1 0 8M")
        top = self.overlay("top.qed", str((1 << 20) + 512))
        self.by_qemu(top, "write -P 2 1M 512")
        run(*tool("img"), "rebase", "-u", "-f", "qed", "-b", "", top)
        img("resize", "-q", "-f", "qed", top, "2M")
        for program in self.io, self.by_qemu:
            program(top, "read -P 2 1M 512", f"read -P 0 {(1 << 20) + 512} {(1 << 20) - 512}")

    def leave_damage(self):
        """As a crash of another program leaves it: two entries that lead out of the file."""
        self.io(self.disk, "write -P 1 0 16k", "write -P 2 4M 4k")
        self.edit(
            (self.FIRST_TABLE + 8, 1 << 40), (self.FIRST_TABLE + 16, 4097),
            (self.FEATURES, self.NEED_CHECK), (self.AUTOCLEAR, 1),
        )

    def assert_repaired(self):
        self.by_qemu(self.disk, "read -P 1 0 4k", "read -P 1 12k 4k", "read -P 2 4M 4k")
        self.assertEqual((self.number(self.FEATURES), self.number(self.AUTOCLEAR)), (0, 0))
        self.assertEqual(self.number(self.FIRST_TABLE + 8), 0)

    def test_entries_that_lead_nowhere_are_repaired(self):
        self.leave_damage()
        self.assertIn("Input/output error", self.io(self.disk, "read 4k 4k", check=False).stdout)
        self.io(self.disk, "read -P 1 0 4k", "read -P 2 4M 4k")
        self.assertIn('"dirty-flag": true', img("info", "--output=json", self.disk).stdout)
        result = img("check", "-f", "qed", "--output=json", self.disk, check=False)
        found = json.loads(result.stdout)
        self.assertEqual((found["corruptions"], found["leaks"]), (2, 2))
        img("check", "-f", "qed", "-r", "all", self.disk, check=False)
        self.io(self.disk, "read -P 0 4k 8k")
        self.assert_repaired()

    def test_the_first_write_repairs(self):
        self.leave_damage()
        self.io(self.disk, "write -P 3 4k 4k", "read -P 0 8k 4k")
        self.by_qemu(self.disk, "read -P 3 4k 4k", "read -P 0 8k 4k")
        self.assertEqual((self.number(self.FEATURES), self.number(self.AUTOCLEAR)), (0, 0))

    def test_a_last_cluster_that_is_cut_is_made_whole(self):
        """QEMU takes it for a place outside the file, also when the image is not marked."""
        self.io(self.disk, "write -P 1 0 8k")
        os.truncate(self.disk, os.path.getsize(self.disk) - 3000)
        self.edit((self.FEATURES, self.NEED_CHECK))
        head = self.read("disk.qed")
        for command in ("check", "write"):
            with self.subTest(command):
                with open(self.disk, "wb") as file:
                    file.write(head)
                if command == "check":
                    img("check", "-f", "qed", "-r", "all", self.disk)
                else:
                    self.io(self.disk, "write -P 1 0 512")
                self.assertEqual(os.path.getsize(self.disk) % 4096, 0)
                self.by_qemu(self.disk, "read -P 1 0 5192", "read -P 0 5192 3000")

    def test_many_owners_of_a_table_are_counted_in_no_time(self):
        path = self.create("many.qed", str(1 << 50), "qed", options=("-o", "table_size=16"))
        table = (1 << 20) + (64 << 10)
        with open(path, "r+b") as file:
            file.seek(64 << 10)
            file.write(struct.pack("<Q", table) * (1 << 17))
            file.truncate(table + (1 << 20))
        result = img("check", "-f", "qed", "--output=json", path, check=False)
        self.assertEqual(json.loads(result.stdout)["corruptions"], (1 << 17) - 1)

    def test_a_cluster_of_two_owners_is_not_written(self):
        self.io(self.disk, "write -P 1 0 8k")
        self.edit((self.FIRST_TABLE + 8, self.number(self.FIRST_TABLE)), (self.FEATURES, self.NEED_CHECK))
        result = img("check", "-f", "qed", "-r", "all", self.disk, check=False)
        self.assertIn("1 errors were found", result.stdout)
        before = self.read("disk.qed")
        result = self.io(self.disk, "write -P 3 1M 4k", check=False)
        self.assertIn("Input/output error", result.stdout)
        self.assertIn("has clusters with two owners", result.stderr)
        self.assertEqual(self.read("disk.qed")[: len(before)], before)

    def test_unknown_features(self):
        self.edit((self.AUTOCLEAR, 8))
        self.io(self.disk, "read 0 4k")
        self.assertEqual(self.number(self.AUTOCLEAR), 8)
        self.io(self.disk, "write 0 4k")
        self.assertEqual(self.number(self.AUTOCLEAR), 0)
        for command in (("resize", "-q", "-f", "qed", self.disk, "9M"),
                        ("rebase", "-u", "-f", "qed", "-b", "other", "-F", "raw", self.disk)):  # fmt: skip
            self.edit((self.AUTOCLEAR, 8))
            img(*command)
            self.assertEqual(self.number(self.AUTOCLEAR), 0)
        self.edit((self.FEATURES, 8))
        result = img("info", self.disk, check=False)
        self.assertIn("Unsupported QED features: 8", result.stderr)

    def test_errors_can_be_injected_where_data_are_written(self):
        rule = "inject-error.0.event=write_aio,inject-error.0.errno=28,inject-error.0.once=on"
        options = f"driver=qed,file.driver=blkdebug,file.{rule},file.image.driver=file"
        options = options.replace("inject-error.0.", "file.inject-error.0.").replace("file.file.", "file.")
        words = ("-c", "write -P 1 0 4k", "-c", "write -P 2 0 4k")
        result = run(
            *tool("io"), *words, "--image-opts", f"{options},file.image.filename={self.disk}", check=False
        )
        self.assertEqual(result.stdout.count("No space left on device"), 1)
        self.by_qemu(self.disk, "read -P 2 0 4k")


class QedCheck(FormatCase):
    TABLES = 1024  # of 1 MiB each

    def setUp(self):
        super().setUp()
        path, first = self.create("disk.qed", "32T", "qed", options=("-o", "table_size=16")), (1 << 20) + 65536
        with open(path, "r+b") as file:
            file.seek(16)
            file.write(struct.pack("<Q", 2))  # to be checked
            file.seek(65536)
            file.write(struct.pack(f"<{self.TABLES}Q", *(first + (n << 20) for n in range(self.TABLES))))
            file.truncate(first + (self.TABLES << 20))
        good, self.socket = self.create("good.raw", "1M", "raw"), self.path("nbd.sock")
        self.daemon(
            "--blockdev", f"qed,node-name=disk,file.driver=file,file.filename={path}",
            "--blockdev", f"raw,node-name=good,file.driver=file,file.filename={good}",
            "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
            "--export", "nbd,id=a,node-name=disk,name=disk,writable=on",
            "--export", "nbd,id=b,node-name=good,name=good,writable=on",
        )  # fmt: skip

    def connect(self, name):
        client = nbd.NBD()
        client.connect_uri(nbd_uri(self.socket, name))
        return client

    def test_guests_of_other_disks_go_on_meanwhile(self):
        """The first write checks the image. Clients of the other disk are on all I/O threads."""
        others, rounds = [self.connect("good") for _ in range(6)], 0
        disk = self.connect("disk")
        checked = threading.Thread(target=lambda: disk.pwrite(bytes(512), 0))
        checked.start()
        while checked.is_alive():
            for other in others:
                other.pwrite(bytes(512), 0)
            rounds += checked.is_alive()
        self.assertGreaterEqual(rounds, 5)


class TakenOver(FormatCase):
    def test_a_disk_that_is_not_taken_over_keeps_its_size(self):
        """Another program has put another image there: its tables stay as they were."""
        other = self.create("other.vdi", "4G", "vdi")
        with open(other, "r+b") as file:
            file.seek(0x154)
            table = struct.unpack("<I", file.read(4))[0]
            file.seek(table)
            file.write(struct.pack("<I", 5))
        self.create("other.qed", "4G", "qed", options=("-o", "cluster_size=8k"))
        for fmt, what in ("vdi", "is not within the file"), ("qed", "another cluster size"):
            with self.subTest(fmt):
                path = self.create(f"disk.{fmt}", "4M", fmt)
                node = f"driver={fmt},node-name=disk,file.driver=file,file.filename={path}"
                qmp = self.daemon("--blockdev", node, name=fmt).qmp
                qmp.command("blockdev-set-active", node_name="disk", active=False)
                with open(path, "wb") as file:
                    file.write(self.read(f"other.{fmt}"))
                with self.assertRaisesRegex(QmpError, what):
                    qmp.command("blockdev-set-active", node_name="disk", active=True)
                sizes = {
                    n["node-name"]: n["image"]["virtual-size"]
                    for n in qmp.command("query-named-block-nodes")
                }
                self.assertEqual(sizes["disk"], 4 << 20)


class Damaged(FormatCase):
    def test_damaged_metadata_are_refused_or_read(self):
        """Never a crash, a hang, or much memory."""
        for fmt, options, size in (
            ("vmdk", "subformat=streamOptimized", 2048), ("vpc", "force_size=on", 2048), ("vdi", "static=off", 1024),
            ("qed", "cluster_size=4k,table_size=1", 14000),
        ):
            rng = random.Random(fmt)
            path = self.path("disk." + fmt)
            img("create", "-q", "-f", fmt, "-o", options, path, "4M")
            run(*tool("io"), "-f", fmt, "-c", "write 1M 64k", path)
            good = self.read("disk." + fmt)
            for _ in range(25):
                data = bytearray(good)
                for _ in range(rng.choice((1, 2, 8))):
                    at = rng.choice((rng.randrange(size), rng.randrange(128)))
                    data[at : at + 4] = rng.choice((rng.randbytes(4), b"\xff" * 4, bytes(4)))
                self.write("disk." + fmt, data)
                result = run(*tool("img"), "map", "-f", fmt, path, check=False, timeout=20)
                self.assertIn(result.returncode, (0, 1), (fmt, result.stderr))

    def test_a_bomb_of_zeroes_stays_within_its_grain(self):
        img("create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", self.path("disk.vmdk"), "1M")
        run(*tool("io"), "-f", "vmdk", "-c", "write -P 1 0 64k", self.path("disk.vmdk"))
        data = self.read("disk.vmdk")
        at = data.index(struct.pack("<Q", 0), 64 << 10)
        packed = zlib.compress(bytes(8 * MIB))
        self.write("disk.vmdk", data[:at] + struct.pack("<QI", 0, len(packed)) + packed.ljust(65536, b"\0"))
        result = run(*tool("io"), "-r", "-f", "vmdk", "-c", "read 0 64k", self.path("disk.vmdk"), check=False)
        self.assertIn("Input/output error", result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main()
