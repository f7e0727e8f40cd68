# SPDX-License-Identifier: Apache-2.0
"""No failed write of a target passes for a copy, whichever way it is written."""

import resource
import unittest

from tidemark import TestCase, img, io, run, tool

MIB = 1 << 20


class FailingTarget(TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        self.source = self.create("source.raw", "12M", "raw")
        io(self.source, "write -P 1 0 3M", "write -P 2 5M 2M", "write -P 3 9M 64k", fmt="raw")

    def target(self, kind, number, fmt):
        """A target full of other data whose request `number` (from 0 on) of a kind fails, once."""
        path = self.path("target")
        img("create", "-q", "-f", fmt, path, "12M")
        io(path, "write -q -P 9 0 12M", fmt=fmt, options=("-t", "unsafe"))
        event = {"write": "pwritev", "write-zeroes": "pwritev_zero", "flush": "flush_to_disk"}[kind]
        states = "".join(
            f'[set-state]\nevent = "{event}"\nstate = "{n + 1}"\nnew_state = "{n + 2}"\n' for n in range(number)
        )
        config = self.path("rules.conf")
        with open(config, "w", encoding="utf-8") as f:
            f.write(f'{states}[inject-error]\nevent = "{event}"\nstate = "{number + 1}"\nerrno = "5"\n'
                    f'iotype = "{kind}"\nonce = "on"\n')  # fmt: skip
        return (f"driver={fmt},discard=unmap,file.driver=raw,file.file.driver=blkdebug,file.file.config={config},"
                f"file.file.image.driver=file,file.file.image.filename={path}")  # fmt: skip

    def go_through(self, kind, fmt, *options, least=2):
        """Fail each request of a kind in turn, until the copy needs no more."""
        for number in range(200):
            target = self.target(kind, number, fmt)
            result = img("convert", "-t", "writeback", "-n", "-f", "raw", "--target-image-opts", *options,
                         self.source, target, check=False)  # fmt: skip
            if result.returncode == 0:
                same = img("compare", "-f", "raw", "-F", fmt, self.source, self.path("target"), check=False)
                self.assertEqual(same.returncode, 0, f"{kind} {number} of {options} was swallowed: {same.stdout}")
                break
            self.assertEqual(result.returncode, 1)
            self.assertIn("Input/output error", result.stderr)
        self.assertGreaterEqual(number, least, f"hardly any {kind} was there to fail")

    def test_data(self):
        for options in ((), ("-W",), ("-m", "1"), ("-W", "-m", "1"), ("--salvage",), ("-C",), ("-S", "0")):
            with self.subTest(options=options):
                self.go_through("write", "raw", *options, least=3)

    def test_zeroes(self):
        for options in ((), ("-W",), ("-m", "1"), ("--salvage",), ("-C",)):
            with self.subTest(options=options):
                self.go_through("write-zeroes", "raw", *options)

    def test_into_qcow2(self):
        for options in ((), ("-W",), ("-c",), ("-c", "-W"), ("-c", "--salvage")):
            with self.subTest(options=options):
                self.go_through("write", "qcow2", *options, least=4)

    def test_flushes(self):
        self.go_through("flush", "raw", least=1)
        self.go_through("flush", "qcow2", "-c", least=1)


class LimitedTarget(TestCase):
    """The system's own error, behind the size that a file may have."""

    in_memory = True

    def setUp(self):
        super().setUp()
        self.source = self.create("source.raw", "12M", "raw")
        io(self.source, "write -q -P 1 0 12M", fmt="raw")

    def assert_fails(self, *command):
        result = run(*tool("img"), *command, check=False,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB)))  # fmt: skip
        self.assertEqual(result.returncode, 1, f"{command}: {result}")
        self.assertIn("File too large", result.stderr)

    def test_what_is_there_already(self):
        for options in ((), ("-W",), ("-m", "1"), ("-C",), ("-C", "-W"), ("-S", "0"), ("--salvage",), ("-t", "none"),
                        ("-t", "none", "-W")):  # fmt: skip
            with self.subTest(options=options):
                target = self.create("target.raw", "12M", "raw")
                self.assert_fails("convert", "-f", "raw", "-O", "raw", "-n", *options, self.source, target)

    def test_new_files(self):
        for fmt in ("raw", "qcow2"):
            new = self.path(f"new.{fmt}")
            self.assert_fails("convert", "-f", "raw", "-O", fmt, self.source, new)
            self.assert_fails("dd", "-f", "raw", "-O", fmt, f"if={self.source}", f"of={new}")

    def test_the_other_copies(self):
        base = self.create("base.raw", "12M", "raw")
        top = self.path("top.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
        self.assert_fails("rebase", "-f", "qcow2", "-b", self.source, "-F", "raw", self.full("old.qcow2"))
        io(top, "write -q -P 1 9M 1M", fmt="qcow2")
        self.assert_fails("commit", "-f", "qcow2", top)
        self.assert_fails("resize", "-f", "raw", base, "16M")

    def full(self, name):
        """An image that shows what the source has, by its backing file, another one."""
        path, base = self.path(name), self.path(name + ".base")
        img("convert", "-f", "raw", "-O", "raw", self.create("other.raw", "12M", "raw"), base)
        io(base, "write -q -P 2 0 12M", fmt="raw")
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
        return path


if __name__ == "__main__":
    unittest.main()
