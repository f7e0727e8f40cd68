# SPDX-License-Identifier: Apache-2.0
"""Images of VMware, Virtual PC, Hyper-V and VirtualBox: what QEMU makes is read, what is made and
written here is read and checked by QEMU, and by 7-Zip where it can.
"""

import json
import os
import random
import shutil
import unittest

from tidemark import TestCase, compat, qemu, run

MIB = 1 << 20
SIZE = 12 * MIB

# Format, options, and whether 7-Zip reads it. It wants whole blocks.
KINDS = (
    ("vmdk", "subformat=monolithicSparse", "VMDK"),
    ("vmdk", "subformat=monolithicFlat", "VMDK"),
    ("vmdk", "subformat=twoGbMaxExtentSparse", None),
    ("vmdk", "subformat=twoGbMaxExtentFlat", None),
    ("vmdk", "subformat=streamOptimized", None),
    ("vmdk", "zeroed_grain=on", None),
    ("vpc", "subformat=dynamic,force_size=on", "VHD"),
    ("vpc", "subformat=fixed,force_size=on", "VHD"),
    ("vpc", "subformat=dynamic", None),
    ("vdi", "static=off", "VDI"),
    ("vdi", "static=on", "VDI"),
    ("vhdx", "block_size=4M", "VHDX"),
    ("vhdx", "subformat=fixed,block_size=4M", "VHDX"),
    ("vhdx", "block_size=1M,block_state_zero=off", "VHDX"),
    ("qed", "cluster_size=64k", None),
    ("qed", "cluster_size=4k,table_size=2", None),
    ("parallels", "cluster_size=1M", None),
    ("parallels", "cluster_size=64k", None),
    ("qcow", "nocow=off", None),
)
# One for each way to allocate, and one of several files.
SOME_KINDS = tuple(KINDS[i] for i in (0, 2, 5, 6, 9, 13, 14, 16, 17, 18))
# Formats that QEMU's check refuses.
NO_CHECK = ("vpc", "qcow")


def ours(*arguments, **more):
    return run(compat("qemu-img"), *arguments, **more)


def theirs(*arguments, **more):
    return run(qemu("qemu-img"), *arguments, **more)


def disk(seed):
    """A disk with some data, which compresses and which does not, at sectors of any alignment."""
    rng, data = random.Random(seed), bytearray(SIZE)
    for i in range(30):
        length = rng.randrange(1, 200) * 512
        at = rng.randrange(0, SIZE - length) & ~511
        data[at : at + length] = rng.randbytes(length) if i % 2 else bytes([i + 1]) * length
    return data


class FormatCase(TestCase):
    def setUp(self):
        super().setUp()
        self.old = os.getcwd()
        os.makedirs(self.path("d"))
        os.chdir(self.path("d"))
        self.addCleanup(os.chdir, self.old)

    def write(self, name, data):
        with open(name, "wb") as f:
            f.write(data)

    def contents(self, program, fmt, image):
        program("convert", "-f", fmt, "-O", "raw", image, "out.raw")
        with open("out.raw", "rb") as f:
            return f.read()

    def check_reads(self, program, fmt, image, expected):
        found = self.contents(program, fmt, image)
        self.assertTrue(found[: len(expected)] == expected and not any(found[len(expected) :]), (program, fmt))
        if fmt not in NO_CHECK:
            program("check", "-f", fmt, image)

    def clear(self):
        for name in os.listdir("."):
            os.unlink(name)


class Matrix(FormatCase):
    def test_what_one_makes_the_other_reads(self):
        for seed, (fmt, options, _) in enumerate(KINDS):
            for maker, reader in ((theirs, ours), (ours, theirs)):
                with self.subTest(fmt=fmt, options=options, maker=maker.__name__):
                    self.clear()
                    data = disk(seed)
                    self.write("src.raw", data)
                    maker("convert", "-f", "raw", "-O", fmt, "-o", options, "src.raw", "disk." + fmt)
                    self.check_reads(reader, fmt, "disk." + fmt, data)

    def test_seven_zip_reads_what_is_made_here(self):
        for fmt, options, kind in KINDS:
            if kind:
                with self.subTest(fmt=fmt, options=options):
                    self.clear()
                    data = disk(7)
                    self.write("src.raw", data)
                    ours("convert", "-f", "raw", "-O", fmt, "-o", options, "src.raw", "disk.image")
                    os.makedirs("x", exist_ok=True)
                    run("7z", "x", "-ox", "-t" + kind, "disk.image")
                    [name] = os.listdir("x")
                    with open("x/" + name, "rb") as f:
                        self.assertTrue(f.read() == data, "contents by 7-Zip")
                    shutil.rmtree("x")

    def test_info_and_map_are_those_of_qemu(self):
        for fmt, options, _ in SOME_KINDS + KINDS[3:5]:
            with self.subTest(fmt=fmt, options=options):
                self.clear()
                self.write("src.raw", disk(3))
                ours("convert", "-f", "raw", "-O", fmt, "-o", options, "src.raw", "disk." + fmt)
                found = json.loads(ours("info", "-f", fmt, "--output=json", "disk." + fmt).stdout)
                expected = json.loads(theirs("info", "-f", fmt, "--output=json", "disk." + fmt).stdout)
                found.pop("children", None)
                expected.pop("children", None)
                self.assertEqual(found, expected)
                if fmt == "vhdx":
                    continue  # QEMU shows all of it as data
                found = json.loads(ours("map", "-f", fmt, "--output=json", "disk." + fmt).stdout)
                for extent in found:
                    extent.pop("compressed")
                self.assertEqual(found, json.loads(theirs("map", "-f", fmt, "--output=json", "disk." + fmt).stdout))

    def test_sizes_of_vhd_disks_by_any_rule(self):
        for size, options in (("4G", "force_size=off"), ("4G", "force_size=on"), ("140G", "force_size=on")):
            for rule in ("current_size", "chs"):
                with self.subTest(size=size, options=options, rule=rule):
                    theirs("create", "-q", "-f", "vpc", "-o", options, "disk.vhd", size)
                    image = ("--image-opts", f"driver=vpc,force_size_calc={rule},file.filename=disk.vhd")
                    found, expected = (
                        json.loads(program("info", "--output=json", *image).stdout)["virtual-size"]
                        for program in (ours, theirs)
                    )
                    self.assertEqual(found, expected)

    def test_the_line_about_a_new_image_is_that_of_qemu(self):
        cases = [("vmdk", ()), ("vhdx", ()), ("vdi", ()), ("vpc", ()), ("qed", ()), ("parallels", ()), ("qcow", ())]
        stream = ("subformat=streamOptimized", "zeroed_grain=off", "toolsversion=5", "adapter_type=lsilogic")
        cases += [("vmdk", stream)]
        cases += [("vmdk", ("backing_file=disk0.vmdk", "backing_fmt=vmdk", "hwversion=9"))]
        cases += [("vhdx", ("block_size=2M", "subformat=fixed", "log_size=2M", "block_state_zero=off", "nocow=on"))]
        cases += [("vdi", ("static=on",)), ("vpc", ("force_size=on", "subformat=fixed"))]
        cases += [("qed", ("table_size=2", "backing_fmt=vmdk", "backing_file=disk0.vmdk"))]
        cases += [("parallels", ("preallocation=falloc", "cluster_size=64k"))]
        cases += [("qcow", ("backing_fmt=raw", "backing_file=disk0.vmdk"))]
        cases += [("raw", ("preallocation=off", "nocow=on"))]
        cases += [("qcow2", ("preallocation=off", "nocow=on", "cluster_size=4k"))]
        for i, (fmt, options) in enumerate(cases):
            given = [word for option in options for word in ("-o", option)]
            command = ["create", "-f", fmt, *given, self.path(f"disk{i}.{fmt}"), "4M"]
            self.assertEqual(ours(*command).stdout, theirs(*command).stdout)

    def test_the_options_are_those_of_qemu(self):
        for fmt in ("vmdk", "vpc", "vdi", "vhdx", "qed", "parallels"):
            found = ours("create", "-f", fmt, "-o", "help").stdout
            self.assertEqual(found, theirs("create", "-f", fmt, "-o", "help").stdout)


class Headers(FormatCase):
    """What is wrong in a header is said in QEMU's words."""

    def check_same(self, fmt, data, what, at, value, arguments=("info",)):
        data = bytearray(data)
        data[at : at + len(value)] = value
        self.write("disk", data)
        found, expected = (
            program(*arguments, "-f", fmt, "disk", check=False) for program in (ours, theirs)
        )
        for part in ("returncode", "stdout", "stderr"):
            self.assertEqual(getattr(found, part), getattr(expected, part), (fmt, what))

    def test_vdi(self):
        ours("create", "-q", "-f", "vdi", "new", "64M")
        with open("new", "rb") as file:
            data = file.read()
        for what, at, size, value in (
            ("signature", 0x40, 4, 1),
            ("version", 0x44, 4, 0x20001),
            ("place of the table", 0x154, 4, 513),
            ("place of the data", 0x158, 4, 1025),
            ("sector size", 0x168, 4, 4096),
            ("disk size", 0x170, 8, 1 << 63),
            ("disk size beyond the table", 0x170, 8, (64 << 20) + 1),
            ("disk size, the largest", 0x170, 12, (1 << 20 << 64) + (0x1FFFFF80 << 20)),
            ("blocks, too few", 0x180, 4, 63),
            ("blocks, too many", 0x180, 4, 0x20000000),
            ("block size", 0x178, 4, (1 << 20) - 1),
            ("UUID of a parent", 0x1A8, 1, 1),
            ("UUID of a parent's change", 0x1B8, 1, 1),
        ):
            self.check_same("vdi", data, what, at, value.to_bytes(size, "little"))
        blocks = (0x1FFFFF80).to_bytes(4, "little")
        size = (0x1FFFFF80 << 20).to_bytes(8, "little")
        largest = data[:0x158] + (0x80000400).to_bytes(4, "little") + data[0x15C:0x170]
        largest += size + data[0x178:0x180] + blocks + data[0x184:]
        self.write("disk", largest)
        self.assertIn("512 TiB (562949819203584 bytes)", ours("info", "-f", "vdi", "disk").stdout)
        result = ours("map", "-f", "vdi", "disk", check=False)
        self.assertIn("at most 16777216 are supported", result.stderr)
        self.check_same("vdi", data, "count", 0x184, b"\5", ("check",))
        self.check_same("vdi", data, "repair", 0x184, b"\5", ("check", "-r", "all"))


class Writing(FormatCase):
    def test_random_writes(self):
        for seed, (fmt, options, _) in enumerate(SOME_KINDS):
            maker = (ours, theirs)[seed % 2]
            with self.subTest(fmt=fmt, options=options, maker=maker.__name__):
                self.clear()
                rng, data, commands = random.Random(seed), bytearray(SIZE), []
                maker("create", "-q", "-f", fmt, "-o", options, "disk." + fmt, str(SIZE))
                for i in range(40):
                    length = rng.choice((512, 3 * 512, 65536, MIB, 3 * MIB + 1024))
                    at = rng.randrange(0, SIZE - length + 1) & ~511
                    fill = 0 if i % 5 == 4 else i + 1
                    data[at : at + length] = bytes([fill]) * length
                    how = "write -z" if fill == 0 else f"write -P {fill}"
                    commands += ["-c", f"{'aio_' * (i % 3 == 0)}{how} {at} {length}", "-c", "aio_flush"]
                run(compat("qemu-io"), "-t", "unsafe", "-f", fmt, *commands, "disk." + fmt)
                self.check_reads(theirs, fmt, "disk." + fmt, data)
                self.check_reads(ours, fmt, "disk." + fmt, data)

    def test_concurrent_writes_of_new_blocks(self):
        for fmt, options, _ in SOME_KINDS:
            self.clear()
            ours("create", "-q", "-f", fmt, "-o", options, "disk." + fmt, str(SIZE))
            writes = [f"aio_write -P {i + 1} {i * 131072} 4096" for i in range(96)]
            commands = [word for write in writes for word in ("-c", write)]
            run(compat("qemu-io"), "-t", "unsafe", "-f", fmt, *commands, "-c", "aio_flush", "disk." + fmt)
            data = bytearray(SIZE)
            for i in range(96):
                data[i * 131072 : i * 131072 + 4096] = bytes([i + 1]) * 4096
            self.check_reads(theirs, fmt, "disk." + fmt, data)

    def test_a_killed_writer_loses_nothing_flushed(self):
        for fmt in ("vmdk", "vpc", "vdi", "vhdx"):
            self.clear()
            ours("create", "-q", "-f", fmt, "disk." + fmt, str(SIZE))
            run(
                compat("qemu-io"), "-f", fmt, "-c", "write -P 7 1M 5M", "-c", "flush", "-c", "write -P 8 9M 1k",
                "-c", "sigraise 9", "disk." + fmt, check=False,
            )
            data = bytearray(SIZE)
            data[MIB : 6 * MIB] = b"\7" * (5 * MIB)
            found = self.contents(ours, fmt, "disk." + fmt)
            self.assertTrue(found[: 9 * MIB] == data[: 9 * MIB], fmt)
            run(compat("qemu-io"), "-f", fmt, "-c", "read -P 7 1M 5M", "-c", "write -P 9 0 1M", "disk." + fmt)
            self.assertEqual(self.contents(theirs, fmt, "disk." + fmt)[:MIB], b"\t" * MIB)

    def test_a_compressed_grain_is_written_once(self):
        ours("create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", "disk.vmdk", str(SIZE))
        result = run(
            compat("qemu-io"), "-f", "vmdk", "-c", "write -P 1 100k 1k", "-c", "write -P 2 64k 64k", "disk.vmdk",
            check=False,
        )
        self.assertIn("Input/output error", result.stdout + result.stderr)
        data = bytearray(SIZE)
        data[100 << 10 : 101 << 10] = b"\1" * 1024
        self.check_reads(theirs, "vmdk", "disk.vmdk", data)


class Compressed(FormatCase):
    def test_what_is_not_compressed_in_vmdk(self):
        """Sparse extents take compressed writes as plain ones, flat extents refuse them."""
        source = self.path("src.raw")
        with open(source, "wb") as f:
            f.write(disk(3))
        for program in (ours, theirs):
            for kind in ("monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized", "monolithicFlat"):
                target = self.path("new.vmdk")
                command = ("convert", "-c", "-f", "raw", "-O", "vmdk", "-o", "subformat=" + kind, source, target)
                result = program(*command, check=False)
                self.assertEqual(result.returncode, kind == "monolithicFlat", (program, kind, result.stderr))
                if result.returncode == 0:
                    ours("compare", "-f", "raw", "-F", "vmdk", source, target)
                    theirs("compare", "-f", "raw", "-F", "vmdk", source, target)


class Chains(FormatCase):
    def test_an_overlay_of_vmdk(self):
        for base_maker, top_maker in ((ours, theirs), (theirs, ours)):
            self.clear()
            data = disk(5)
            self.write("src.raw", data)
            base_maker("convert", "-f", "raw", "-O", "vmdk", "src.raw", "base.vmdk")
            top_maker("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk")
            commands = ("-c", "write -P 3 100k 10k", "-c", "write -z 1M 1M")
            run(compat("qemu-io"), "-t", "unsafe", "-f", "vmdk", *commands, "top.vmdk")
            data[100 << 10 : 110 << 10] = b"\3" * 10240
            data[MIB : 2 * MIB] = bytes(MIB)
            self.check_reads(theirs, "vmdk", "top.vmdk", data)
            self.check_reads(ours, "vmdk", "top.vmdk", data)

    def test_a_parent_that_has_changed(self):
        ours("create", "-q", "-f", "vmdk", "base.vmdk", "1M")
        ours("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk")
        run(compat("qemu-io"), "-f", "vmdk", "-c", "write 0 1k", "base.vmdk")
        result = ours("map", "-f", "vmdk", "top.vmdk", check=False)
        self.assertIn("was changed after the image was made", result.stderr)


if __name__ == "__main__":
    unittest.main()
