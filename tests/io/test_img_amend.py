# SPDX-License-Identifier: Apache-2.0
"""img amend, judged by qemu-img."""

import json
import os
import struct
import unittest

from qcow2_edit import Image
from tidemark import TestCase, compat, img, io, qemu_img, run


class Amend(TestCase):
    def data(self, path):
        info = json.loads(qemu_img("info", "--output=json", path).stdout)
        return info["format-specific"]["data"]

    def test_version_down_and_up(self):
        path = self.create("a.qcow2", "8M")
        io(path, "write -P 1 0 1M", "write -z 2M 64k", fmt="qcow2")
        img("amend", "-f", "qcow2", "-o", "compat=0.10", path)
        self.assertEqual(self.data(path)["compat"], "0.10")
        img("amend", "-f", "qcow2", "-o", "compat=1.1,lazy_refcounts=on", path)
        self.assertEqual(self.data(path)["compat"], "1.1")
        self.assertTrue(self.data(path)["lazy-refcounts"])
        io(path, "read -P 1 0 1M", "read -P 0 1M 7M", fmt="qcow2")
        qemu_img("check", path)

    def as_qemu_img(self, *words, **more):
        return run(compat("qemu-img"), "amend", "-f", "qcow2", *words, **more)

    def bytes_of(self, path, *words):
        out = self.path("out.raw")
        qemu_img("convert", "-O", "raw", *words, path, out)
        with open(out, "rb") as file:
            return file.read()

    def test_version_down_with_zero_clusters_of_snapshots(self):
        for base in ((), ("-b", self.create("base.raw", "1M", "raw"), "-F", "raw")):
            io(self.path("base.raw"), "write -P 9 0 1M", fmt="raw")
            path = self.path("a.qcow2")
            img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", *base, path, "1M")
            io(path, "write -P 1 0 64k", "write -z 16k 16k", "write -z 128k 64k", fmt="qcow2")
            img("snapshot", "-f", "qcow2", "-c", "s", path)
            img("snapshot", "-f", "qcow2", "-c", "t", path)  # has its tables in common with s
            io(path, "write -P 2 0 24k", "write -z 40k 8k", "write -P 3 128k 16k", fmt="qcow2")
            img("snapshot", "-f", "qcow2", "-c", "u", path)
            io(path, "write -P 4 16k 4k", "write -z 132k 60k", fmt="qcow2")
            looks = [(), *(("-l", f"snapshot.name={name}") for name in "stu")]
            before = [self.bytes_of(path, *look) for look in looks]
            img("amend", "-f", "qcow2", "-o", "compat=0.10", path)
            self.assertEqual(self.data(path)["compat"], "0.10")
            qemu_img("check", path)
            self.assertEqual([self.bytes_of(path, *look) for look in looks], before)

    def test_version_down_together_with_a_backing_file(self):
        base, path = self.create("base.raw", "1M", "raw"), self.create("a.qcow2", "1M")
        io(base, "write -P 9 0 1M", fmt="raw")
        io(path, "write -P 1 0 64k", "write -zu 64k 64k", fmt="qcow2")
        img("amend", "-f", "qcow2", "-o", f"compat=0.10,backing_file={base},backing_fmt=raw", path)
        io(path, "read -P 1 0 64k", "read -P 0 64k 64k", "read -P 9 128k 64k", fmt="qcow2")

    def test_version_down_of_an_encrypted_image(self):
        secret = ("--object", "secret,id=s,data=secret")
        options = "cluster_size=4k,encrypt.format=aes,encrypt.key-secret=s"
        path, base = self.path("a.qcow2"), self.create("base.raw", "1M", "raw")
        io(base, "write -P 9 0 1M", fmt="raw")
        img("create", "-q", *secret, "-f", "qcow2", "-o", options, "-b", base, "-F", "raw", path, "1M")
        opened = f"driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename={path}"
        requests = ("write -P 1 0 64k", "write -z 16k 16k", "write -z 128k 64k")
        io(opened, *requests, options=(*secret, "--image-opts"))
        img("snapshot", *secret, "--image-opts", "-c", "s", opened)
        io(opened, "write -P 2 16k 4k", options=(*secret, "--image-opts"))
        img("amend", *secret, "--image-opts", "-o", "compat=0.10", opened)
        img("check", "-q", "-f", "qcow2", path)
        for look in ((), ("-l", "s")):
            out = self.path("out.raw")
            img("convert", *secret, "--image-opts", *look, "-O", "raw", opened, out)
            first = 1 if look == () else 0
            with open(out, "rb") as file:
                data = file.read()
            self.assertEqual(data[16 << 10 : 20 << 10], bytes([2 * first]) * 4096)
            self.assertEqual(data[20 << 10 : 32 << 10], bytes(12 << 10))
            self.assertEqual(data[128 << 10 : 192 << 10], bytes(64 << 10))

    def test_version_down_is_refused_as_by_qemu(self):
        one, data_file = self.path("a.qcow2"), self.path("data")
        for options, then, word in (
            (f"data_file={data_file}", (), "Cannot downgrade an image with a data file"),
            ("extended_l2=on", (), "Cannot downgrade an image with incompatible features 0x10 set"),
            ("refcount_bits=8", (), "compat=0.10 requires refcount_bits=16"),
            (
                "compat=1.1",
                ("snapshot", "-f", "qcow2", "-c", "s", one),
                "Internal snapshots prevent downgrade of image",
            ),
        ):
            img("create", "-q", "-f", "qcow2", "-o", options, one, "1M")
            if then:
                img(*then)
                self.as_qemu_img("-o", "size=2M", one)
            result = self.as_qemu_img("-o", "compat=0.10", one, check=False)
            self.assertEqual((result.returncode, result.stderr), (1, f"qemu-img: {word}\n"))
            self.assertEqual(self.data(one)["compat"], "1.1")

    def test_version_down_takes_lazy_refcounts_away(self):
        path = self.create("a.qcow2", "1M")
        img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", path)
        img("amend", "-f", "qcow2", "-o", "compat=0.10", path)
        self.assertEqual(self.data(path)["compat"], "0.10")

    def test_version_up_records_sizes_of_snapshots(self):
        path = self.path("a.qcow2")
        img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1M")
        io(path, "write -P 1 0 1M", fmt="qcow2")
        img("snapshot", "-f", "qcow2", "-c", "s", path)
        # As programs wrote it that knew nothing of sizes: without extra data.
        image = Image(path)
        table = image.u64(64)
        entry = image.read(table, 64)
        extra, names = struct.unpack_from(">I", entry, 36)[0], sum(struct.unpack_from(">HH", entry, 12))
        image.write(table + 36, struct.pack(">I", 0) + image.read(table + 40 + extra, names).ljust(32, b"\0"))
        img("amend", "-f", "qcow2", "-o", "compat=1.1,size=2M", path)
        qemu_img("check", path)
        img("snapshot", "-f", "qcow2", "-a", "s", path)
        self.assertEqual(self.bytes_of(path), b"\1" * (1 << 20))

    def test_refcounts_that_are_too_large_are_named(self):
        path = self.create("a.qcow2", "1M")
        io(path, "write -P 1 0 64k", fmt="qcow2")
        for name in "st":
            img("snapshot", "-f", "qcow2", "-c", name, path)
        with open(path, "rb") as file:
            before = file.read()
        result = self.as_qemu_img("-o", "refcount_bits=1", path, check=False)
        self.assertIn("Cannot decrease refcount entry width to 1 bits: Cluster at offset 0x", result.stderr)
        self.assertIn(" has a refcount of 3\n", result.stderr)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_size(self):
        path = self.create("a.qcow2", "1M")
        img("amend", "-f", "qcow2", "-o", "size=3M", path)
        self.assertEqual(json.loads(qemu_img("info", "--output=json", path).stdout)["virtual-size"], 3 << 20)
        result = self.as_qemu_img("-o", "size=1000", path, check=False)
        self.assertIn("must be a multiple of 512", result.stderr)

    def test_data_file(self):
        path, one, other = self.path("a.qcow2"), self.path("one"), self.path("other")
        img("create", "-q", "-f", "qcow2", "-o", f"data_file={one},data_file_raw=on", path, "1M")
        io(path, "write -P 1 0 1M", fmt="qcow2")
        os.rename(one, other)
        opened = f"driver=qcow2,file.filename={path},data-file.driver=file,data-file.filename={other}"
        img("amend", "--image-opts", "-o", f"data_file={other}", opened)
        self.assertEqual(self.data(path)["data-file"], other)
        self.assertTrue(self.data(path)["data-file-raw"])
        img("amend", "-f", "qcow2", "-o", "data_file_raw=off", path)
        self.assertFalse(self.data(path)["data-file-raw"])
        result = self.as_qemu_img("-o", "data_file_raw=on", path, check=False)
        self.assertIn("data-file-raw cannot be set on existing images", result.stderr)
        self.assertEqual(self.bytes_of(path), b"\1" * (1 << 20))
        img("amend", "-f", "qcow2", "-o", "data_file=", path)
        self.assertNotIn("data-file", self.data(path))
        plain = self.create("plain.qcow2", "1M")
        result = self.as_qemu_img("-o", f"data_file={other}", plain, check=False)
        self.assertIn("can only be set for images that use an external data file", result.stderr)

    def test_more_references_than_could_be_counted(self):
        """A check says that amend is the way out."""
        path = self.create("a.qcow2", "1M", options=("-o", "refcount_bits=1"))
        io(path, "write -P 1 0 64k", fmt="qcow2")
        image = Image(path)
        image.put64(image.l2_place(1), image.u64(image.l2_place(0)))
        self.assertIn("Use qemu-img amend", img("check", path, check=False).stderr)
        img("amend", "-f", "qcow2", "-o", "refcount_bits=2", path)
        qemu_img("check", "-q", path)
        io(path, "write -P 2 0 4k", "read -P 1 64k 64k", fmt="qcow2")

    def test_the_backing_file_that_is_recorded_is_no_other_one(self):
        base = self.create("base.raw", "1M", "raw")
        path = self.create("a.qcow2", "1M", options=("-b", base, "-F", "raw"))
        self.as_qemu_img("-o", f"backing_file={base},backing_fmt=raw,lazy_refcounts=on", path)
        self.assertTrue(self.data(path)["lazy-refcounts"])

    def test_backing_file_is_left_to_rebase_by_qemu_img_only(self):
        path, base = self.create("a.qcow2", "1M"), self.create("base.raw", "1M", "raw")
        how = ("-o", f"backing_file={base},backing_fmt=raw", path)
        result = self.as_qemu_img(*how, check=False)
        self.assertIn("Cannot amend the backing file", result.stderr)
        img("amend", "-f", "qcow2", *how)
        self.assertIn(base, qemu_img("info", path).stdout)

    def test_progress(self):
        path = self.create("a.qcow2", "8M")
        words = ("amend", "-p", "-f", "qcow2", "-o", "refcount_bits=64", path)
        out = run(compat("qemu-img"), *words).stdout
        self.assertIn("(100.00/100%)", out)
        self.assertEqual(self.data(path)["refcount-bits"], 64)
        path = self.create("b.qcow2", "1G")  # two L1 entries
        out = self.as_qemu_img("-p", "-o", "refcount_bits=16,compat=v2", path).stdout
        self.assertEqual(out.split(), [f"({n}/100%)" for n in ("0.00", "50.00", "100.00", "100.00")])

    def test_what_cannot_be_changed_is_named(self):
        path = self.create("a.qcow2", "8M")
        raw = self.create("a.raw", "1M", "raw")
        for words, word in (
            (("-f", "qcow2", "-o", "nonsense=1", path), "nonsense"),
            (("-f", "qcow2", "-o", "cluster_size=1k", path), "only supported for image creation"),
            (("-f", "raw", "-o", "size=1", raw), "'raw'"),
            (("-f", "qcow2", path), "-o"),
            (("-f", "qcow2", "-o", ",", path), "Invalid option list"),
            (("-f", "qcow2", "-o", "compat=0.42", path), "Unknown compatibility level 0.42"),
            (("-f", "raw", "-o", "help"), "does not support option amendment"),
        ):
            result = img("amend", *words, check=False)
            self.assertEqual(result.returncode, 1, words)
            self.assertIn(word, result.stderr)

    def test_help_lists_options(self):
        out = img("amend", "-f", "qcow2", "-o", "help").stdout
        self.assertIn("Amend options for 'qcow2':\n", out)
        self.assertIn("refcount_bits=<num>", out)
        self.assertNotIn("cluster_size", out)


if __name__ == "__main__":
    unittest.main()
