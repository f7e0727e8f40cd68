# SPDX-License-Identifier: Apache-2.0
"""img create: what it prints, makes and refuses, compared with qemu-img."""

import os
import unittest

from tidemark import TestCase, compat, img, qemu, qemu_img, run


class Create(TestCase):
    def both(self, *arguments, check=True):
        """Run ours and QEMU's with the same words; FILE becomes a name of the same length."""
        results = []
        for tool, name in ((compat("qemu-img"), "a.img"), (qemu("qemu-img"), "b.img")):
            words = [word.replace("FILE", self.path(name)) for word in arguments]
            result = run(tool, "create", *words, check=check)
            results.append(
                (
                    result.returncode,
                    result.stdout.replace(self.path(name), "FILE"),
                    result.stderr.replace(self.path(name), "FILE"),
                )
            )
        self.assertEqual(results[0], results[1])
        return results[0]

    def test_raw_prints_what_qemu_img_prints_and_has_the_size(self):
        self.both("-f", "raw", "FILE", "3M")
        self.assertEqual(os.path.getsize(self.path("a.img")), 3 << 20)

    def test_qcow2_prints_what_qemu_img_prints(self):
        self.both("-f", "qcow2", "FILE", "64M")

    def test_qcow2_options_are_printed_in_order_with_their_values(self):
        _, out, _ = self.both(
            "-f", "qcow2", "-o", "cluster_size=128k", "-o", "compression_type=zstd", "FILE", "1G"
        )
        self.assertIn("cluster_size=131072", out)

    def test_an_option_that_begins_with_no_is_switched_off(self):
        _, out, _ = self.both("-f", "qcow2", "-o", "lazy_refcounts,nolazy_refcounts", "FILE", "1M")
        self.assertIn("lazy_refcounts=off", out)
        self.both("-f", "qcow2", "-o", "nofoo", "FILE", "1M", check=False)
        self.both("-f", "qcow2", "-o", "nocow", "FILE", "1M", check=False)

    def test_sizes_with_fractions_are_rounded(self):
        for text, size in (("1.1M", 1153434), ("1.999k", 2047), ("1.", 1), ("0x1b", 27)):
            _, out, _ = self.both("-f", "raw", "FILE", text)
            self.assertIn(f"size={size}\n", out)

    def test_refcount_table_that_one_block_cannot_count(self):
        disk = self.path("disk.qcow2")
        small = "cluster_size=512,refcount_bits=64,preallocation=metadata"
        img("create", "-q", "-f", "qcow2", "-o", small, disk, "200M")
        self.assertIn("409600/409600 = 100.00% allocated", qemu_img("check", disk).stdout)

    def test_preallocated_metadata_takes_no_space_for_data(self):
        """Also next to refcount blocks, which are written before what lies in front of them."""
        disk = self.path("disk.qcow2")
        img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", disk, "9G")
        self.assertLess(os.stat(disk).st_blocks * 512, 8 << 20)
        qemu_img("check", disk)

    def test_qemu_img_reads_what_was_made(self):
        path = self.path("x.qcow2")
        img("create", "-q", "-f", "qcow2", path, "5G")
        info = qemu_img("info", path).stdout
        self.assertIn("file format: qcow2", info)
        self.assertIn("virtual size: 5 GiB (5368709120 bytes)", info)
        qemu_img("check", path)

    def test_sizes_may_have_fractions_and_suffixes(self):
        for text, size in (("1024", 1024), ("1024.0", 1024), ("1.5k", 1536), ("1K", 1024)):
            path = self.path("s.raw")
            img("create", "-q", "-f", "raw", path, text)
            self.assertEqual(os.path.getsize(path), size, text)

    def test_sizes_may_have_a_sign(self):
        for size, expected in (("+1M", 1 << 20), (" +1.5k", 1536), ("+0x400", 1024), (" 1k", 1024)):
            for words in ((self.path("a"), size), ("-o", f"size={size}", self.path("a"))):
                img("create", "-q", "-f", "raw", *words)
                self.assertEqual(os.path.getsize(self.path("a")), expected)
        for size in ("+", "++1M", "+ 1M", "+-1"):
            result = img("create", "-f", "raw", self.path("b"), size, check=False)
            self.assertIn("Invalid image size specified", result.stderr)

    def test_bad_sizes_are_refused_as_qemu_img_does(self):
        for text in ("1kilobyte", "foobar", "-1k"):  # QEMU 7.2 names the suffixes instead
            result = run(compat("qemu-img"), "create", "-f", "raw", self.path("a.img"), "--", text, check=False)
            self.assertEqual((result.returncode, result.stdout, result.stderr),
                             (1, "", f"qemu-img: Invalid image size specified: '{text}'.\n"))
        for text in ("-1", "9E"):
            result = run(compat("qemu-img"), "create", "-f", "raw", self.path("a.img"), "--", text, check=False)
            self.assertEqual((result.returncode, result.stderr),
                             (1, "qemu-img: Invalid image size specified. Must be between 0 and "
                                 "9223372036854775807.\n"))

    def test_size_twice_is_refused(self):
        status, _, err = self.both("-f", "qcow2", "-o", "size=1M", "FILE", "2M", check=False)
        self.assertEqual(status, 1)
        self.assertIn("only once", err)

    def test_no_size_is_refused(self):
        self.assertEqual(self.both("-f", "raw", "FILE", check=False)[0], 1)

    def test_unknown_format_and_option_are_named(self):
        self.assertIn("'nonsense'", self.both("-f", "nonsense", "FILE", "1M", check=False)[2])
        err = self.both("-f", "qcow2", "-o", "nonsense=1", "FILE", "1M", check=False)[2]
        self.assertIn("'nonsense'", err)

    def test_values_that_are_no_choice_are_told_as_by_qemu_img(self):
        for option, name in (
            ("compat=0.42", "version"),
            ("compression_type=lzma", "compression-type"),
            ("preallocation=some", "preallocation"),
        ):
            result = img("create", "-q", "-f", "qcow2", "-o", option, self.path("a.qcow2"), "1M", check=False)
            self.assertEqual(result.returncode, 1)
            value = option.partition("=")[2]
            self.assertIn(f"Parameter '{name}' does not accept value '{value}'", result.stderr)

    def test_option_help_lists_options_with_types(self):
        out = img("create", "-f", "qcow2", "-o", "help").stdout
        self.assertIn("Supported qcow2 options:", out)
        self.assertIn("  cluster_size=<size>    - ", out)
        self.assertIn("  backing_file=<str>     - ", out)

    def test_a_link_to_a_file_that_does_not_exist_yet(self):
        for name in "a.img", "b.img":
            os.symlink(f"real-{name}", self.path(name))
        self.both("-q", "-f", "qcow2", "FILE", "1M")
        self.assertTrue(os.path.islink(self.path("a.img")))
        self.assertIn("virtual size: 1 MiB", qemu_img("info", self.path("real-a.img")).stdout)

    def test_quiet_prints_nothing(self):
        self.assertEqual(img("create", "-q", "-f", "raw", self.path("q"), "1M").stdout, "")

    def test_help_teaches(self):
        out = img("create", "--help").stdout
        for word in ("usage:", "options:", "examples:", "--backing=FILE"):
            self.assertIn(word, " ".join(out.split()))


class Backing(TestCase):
    def setUp(self):
        super().setUp()
        self.base = self.create("base.qcow2", "7M")

    def test_size_is_taken_from_the_backing_file(self):
        top = self.path("top.qcow2")
        out = img("create", "-f", "qcow2", "-b", self.base, "-F", "qcow2", top).stdout
        self.assertIn("size=7340032", out)
        info = qemu_img("info", top).stdout
        self.assertIn(f"backing file: {self.base}", info)
        self.assertIn("backing file format: qcow2", info)

    def test_missing_backing_file_is_named(self):
        result = img(
            "create", "-f", "qcow2", "-b", self.path("gone"), "-F", "raw", self.path("t"),
            check=False,
        )  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn(self.path("gone"), result.stderr)
        self.assertIn("No such file or directory", result.stderr)

    def test_unsafe_does_not_look_at_it(self):
        top = self.path("t")
        img("create", "-q", "-u", "-f", "qcow2", "-b", self.path("gone"), "-F", "raw", top, "1M")
        self.assertIn("virtual size: 1 MiB", qemu_img("info", top).stdout)

    def test_no_file_that_it_shows_is_emptied(self):
        """Neither as the new image nor as its data file, under whatever name."""
        raw, top = self.path("base.raw"), self.path("top.qcow2")
        with open(raw, "wb") as file:
            file.write(b"data" * 4096)
        img("create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", top)
        os.symlink(raw, self.path("link"))
        os.link(raw, self.path("second"))
        before = [open(path, "rb").read() for path in (raw, top)]
        other, odd = self.path("other"), os.path.join(self.dir, ".", "base.raw")
        for words in (
            ("-b", top, "-F", "qcow2", raw),
            ("-b", top, "-F", "qcow2", self.path("second")),
            ("-b", raw, "-F", "raw", self.path("link")),
            ("-b", raw, "-F", "raw", odd),
            ("-b", raw, "-F", "raw", "file:" + self.path("second")),
            ("-b", raw, "-F", "raw", "-o", f"data_file={self.path('link')}", other),
            ("-u", "-b", raw, "-F", "raw", odd, "1M"),
        ):
            with self.subTest(words):
                result = img("create", "-f", "qcow2", *words, check=False)
                self.assertEqual(result.returncode, 1)
                self.assertIn("is a file of the backing image", result.stderr)
                self.assertEqual([open(path, "rb").read() for path in (raw, top)], before)
                self.assertFalse(os.path.exists(other))
        img("create", "-q", "-f", "qcow2", "-b", top, "-F", "qcow2", other)

    def test_backing_format_must_be_given(self):
        result = img("create", "-f", "qcow2", "-b", self.base, self.path("t"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Backing file specified without backing format", result.stderr)
        self.assertIn("Detected format of qcow2.", result.stderr)

    def test_relative_name_is_seen_from_the_image(self):
        top = self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
        self.assertIn(f"actual path: {self.base}", img("info", top).stdout)


if __name__ == "__main__":
    unittest.main()
