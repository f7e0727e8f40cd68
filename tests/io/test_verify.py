# SPDX-License-Identifier: Apache-2.0
"""blkverify: two nodes that have to agree."""

import unittest

from machine import Machine
from tidemark import TestCase, compat, img, io, qemu_img, run


class VerifyTest(TestCase):
    def setUp(self):
        super().setUp()
        self.raw = self.create("raw.img", "1M", "raw")
        self.test = self.create("test.qcow2", "1M")

    def verify(self, *commands, check=True):
        """qemu-io on both, whose format is guessed."""
        words = [word for command in commands for word in ("-c", command)]
        name = f"blkverify:{self.raw}:{self.test}"
        return run(compat("qemu-io"), "-f", "raw", *words, name, check=check)

    def test_a_format_has_the_filename_of_the_filter_below(self):
        for name in f"blkverify:{self.raw}:{self.test}", f"blkdebug::{self.test}":
            for program in img, qemu_img:
                text = program("info", "-f", "raw", "--output=json", name).stdout
                self.assertIn(f'    "filename": "{name}",', text.splitlines())

    def test_writes_go_to_both(self):
        self.verify("write -P 7 64k 64k", "write -z 80k 4k", "read -P 7 64k 16k", "read 0 1M")
        for image, fmt in ((self.raw, "raw"), (self.test, "qcow2")):
            text = io(image, "read -P 7 64k 16k", "read -P 0 80k 4k", fmt=fmt).stdout
            self.assertNotIn("verification failed", text)

    def test_a_difference_ends_the_program(self):
        io(self.test, "write -P 9 12k 512", fmt="qcow2")
        result = self.verify("read 8k 8k", "read 0 512", check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(
            result.stderr.splitlines()[-1],
            "blkverify: read offset=8192 bytes=8192 contents mismatch at offset 12288",
        )
        self.assertNotIn("read 512/512", result.stdout)

    def test_nodes_that_are_open_can_be_compared(self):
        with Machine(
            self.dir,
            *("-blockdev", f"driver=file,node-name=raw,filename={self.raw}"),
            *("-blockdev", f"driver=qcow2,node-name=test,file.driver=file,"
              f"file.filename={self.test}"),
            *("-blockdev", "driver=blkverify,node-name=both,raw=raw,test=test"),
        ) as machine:
            machine.hmp('qemu-io both "write -P 5 0 4k"')
            machine.hmp('qemu-io both "read -P 5 0 64k"')
            node = machine.qmp.node("both")
            self.assertEqual(node["file"], f"blkverify:{self.raw}:{self.test}")
            self.assertIn("verification failed", machine.end())

    def test_a_rule_of_blkdebug_needs_no_index(self):
        rule = "file.driver=blkdebug,file.inject-error.event=read_aio"
        opening = f"open -o driver=raw,{rule} {self.raw}"
        text = run(compat("qemu-io"), "-c", opening, "-c", "read 0 512", check=False).stdout
        self.assertIn("read failed: Input/output error", text)


if __name__ == "__main__":
    unittest.main()
