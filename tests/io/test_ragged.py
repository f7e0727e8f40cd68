# SPDX-License-Identifier: Apache-2.0
"""Disks in files whose size is no multiple of a sector: nothing is lost, here and with QEMU's
tools.
"""

import json
import os
import unittest

from tidemark import TestCase, compat, img, io, nbd_uri, qemu_img, qemu_io, run

SIZES = (1, 511, 513, 1000, 65537, 1048575)


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def padded(data):
    return data + bytes(-len(data) % 512)


class Ragged(TestCase):
    def file(self, size, name="a.raw"):
        path = self.path(name)
        with open(path, "wb") as f:
            # No byte is zero, so that one that is lost is seen.
            f.write(bytes(i * 31 % 255 + 1 for i in range(size)))
        return path

    def test_the_disk_has_whole_sectors(self):
        for size in SIZES:
            path = self.file(size)
            words = ("--output=json", path)
            ours = json.loads(img("info", "-f", "raw", *words).stdout)
            theirs = json.loads(qemu_img("info", "-f", "raw", *words).stdout)
            self.assertEqual(ours["virtual-size"], theirs["virtual-size"])
            self.assertEqual(
                json.loads(img("map", "-f", "raw", *words).stdout)[-1]["length"],
                json.loads(qemu_img("map", "-f", "raw", *words).stdout)[-1]["length"],
            )

    def test_beyond_the_end_of_the_file_is_zeroes(self):
        path = self.file(1000)
        io(path, "read -P 0 1000 24", fmt="raw")
        self.assertIn("failed", io(path, "read 1000 25", fmt="raw", check=False).stdout)
        self.assertEqual(os.path.getsize(path), 1000)

    def test_a_write_there_makes_the_file_longer(self):
        for command, size in (
            ("write -P 5 1010 2", 1012),
            ("write -P 5 1000 24", 1024),
            ("write -z 1000 24", 1024),
            ("write -P 5 998 2", 1000),
            ("discard 0 1024", 1000),
        ):
            path = self.file(1000)
            other = self.file(1000, "b.raw")
            io(path, command, fmt="raw")
            qemu_io(other, command, fmt="raw")
            self.assertEqual(padded(contents(path)), padded(contents(other)), command)
            self.assertLessEqual(os.path.getsize(path), size, command)

    def test_a_write_behind_the_last_sector_is_refused(self):
        path = self.file(1000)
        self.assertIn("failed", io(path, "write 1020 10", fmt="raw", check=False).stdout)
        self.assertEqual(len(contents(path)), 1000)

    def test_direct_io_keeps_to_the_sector(self):
        path = self.file(70001)
        data = contents(path)
        how = ("-t", "none")
        io(path, "write -P 7 70000 100", fmt="raw", options=how)
        expected = data[:70000] + b"\x07" * 100
        self.assertEqual(padded(contents(path)), padded(expected))
        self.assertLessEqual(os.path.getsize(path), len(padded(expected)))

    def test_convert_loses_nothing(self):
        for size in SIZES:
            source = self.file(size)
            expected = padded(contents(source))
            for there, back in ((img, img), (img, qemu_img), (qemu_img, img)):
                for fmt in ("raw", "qcow2"):
                    image, result = self.path("i." + fmt), self.path("r.raw")
                    there("convert", "-f", "raw", "-O", fmt, source, image)
                    back("convert", "-f", fmt, "-O", "raw", image, result)
                    self.assertEqual(contents(result), expected, (size, fmt))
                    for compare in (img, qemu_img):
                        compare("compare", "-f", "raw", "-F", fmt, source, image)

    def test_convert_into_a_file_that_is_there(self):
        source = self.path("a.qcow2")
        img("create", "-q", "-f", "qcow2", source, "1024")
        io(source, "write -P 9 0 1024", fmt="qcow2")
        target = self.file(1000)
        img("convert", "-n", "-f", "qcow2", "-O", "raw", source, target)
        self.assertEqual(contents(target), b"\x09" * 1024)

    def test_a_backing_file(self):
        base = self.file(1000)
        data = contents(base)
        top = self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top)
        io(top, "write -P 7 1000 10", fmt="qcow2")
        qemu_io(top, "read -P 7 1000 10", "read -P 0 1010 14")
        img("commit", "-q", "-f", "qcow2", top)
        self.assertEqual(padded(contents(base)), padded(data + b"\x07" * 10))

    def test_exports(self):
        base = self.file(1000)
        for driver in ("raw", "file"):
            socket = self.path(driver + ".sock")
            disk = f"driver=file,node-name=disk,filename={base}"
            if driver == "raw":
                disk = f"driver=raw,node-name=disk,file.driver=file,file.filename={base}"
            daemon = self.daemon(
                "--blockdev",
                disk,
                "--nbd-server",
                f"addr.type=unix,addr.path={socket}",
                "--export",
                "nbd,id=e,node-name=disk,name=,writable=on",
                name=driver,
            )
            uri = nbd_uri(socket)
            info = json.loads(run("nbdinfo", "--json", uri).stdout)
            self.assertEqual(info["exports"][0]["export-size"], 1024)
            qemu_io(uri, "read -P 0 1000 24", "write -P 3 1000 24", fmt="raw")
            daemon.quit()
            self.assertEqual(contents(base)[1000:], b"\x03" * 24)
            base = self.file(1000)


class Sizes(TestCase):
    def test_sizes_that_are_asked_for(self):
        for fmt in ("raw", "qcow2"):
            path = self.create("a." + fmt, "1000", fmt)
            info = json.loads(qemu_img("info", "--output=json", path).stdout)
            self.assertEqual(info["virtual-size"], 1024)

    def test_resize_of_a_raw_file_is_to_the_byte(self):
        path = self.create("a.raw", "1000", "raw")
        for size, file_size, disk_size in (("3001", 3001, 3072), ("+1", 3073, 3584)):
            img("resize", "-q", "-f", "raw", path, size)
            self.assertEqual(os.path.getsize(path), file_size)
            info = json.loads(img("info", "-f", "raw", "--output=json", path).stdout)
            self.assertEqual(info["virtual-size"], disk_size)

    def test_measure(self):
        path = self.path("a.raw")
        with open(path, "wb") as f:
            f.write(b"x" * 1000)
        words = ("measure", "-f", "raw", "-O", "raw", path)
        self.assertEqual(img(*words).stdout, qemu_img(*words).stdout)

    def test_the_head_of_a_new_file_has_its_place(self):
        for options in ((), ("-o", "preallocation=falloc")):
            path = self.create("a.raw", "1M", "raw", options=options)
            words = ("map", "--output=json", "-f", "raw", path)
            self.assertEqual(
                [(e["length"], e["data"]) for e in json.loads(img(*words).stdout)],
                [(e["length"], e["data"]) for e in json.loads(qemu_img(*words).stdout)],
            )
        path = self.path("empty.raw")
        img("create", "-q", "-f", "raw", path, "0")
        self.assertEqual(os.stat(path).st_blocks, 0)

    def test_direct_io_sees_whole_blocks(self):
        path = self.path("a.raw")
        with open(path, "wb") as f:
            f.truncate((1 << 20) - 1)
            f.seek((1 << 20) - 65536)
            f.write(b"x" * 65535)
        options = f"driver=raw,file.driver=file,file.filename={path},cache.direct=on"
        words = ("map", "--output=json", "--image-opts", options)
        found = json.loads(run(compat("qemu-img"), *words).stdout)
        self.assertEqual([e["length"] for e in found], [983040, 65536])


if __name__ == "__main__":
    unittest.main()
