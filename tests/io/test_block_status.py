# SPDX-License-Identifier: Apache-2.0
"""What block status says, and whom it asks."""

import unittest

from nbd_raw import RawClient
from nbd_server import NbdServer
from tidemark import TestCase, img, io, run, tool

MIB = 1 << 20
BLOCK_STATUS, READ = 7, 0
BASE, DEPTH = b"base:allocation", b"qemu:allocation-depth"


class FailingStatus(TestCase):
    def setUp(self):
        super().setUp()
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as file:
            file.truncate(4 * MIB)
            file.write(b"x" * 65536)
        config = self.path("status.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write('[inject-error]\nevent = "none"\niotype = "block-status"\nerrno = "5"\n')
        self.options = ",".join([
            "driver=raw", "file.driver=blkdebug", f"file.config={config}", "file.image.driver=file",
            f"file.image.filename={self.image}",
        ])  # fmt: skip

    def test_map_of_raw_fails_where_its_file_does_not_tell(self):
        result = img("map", "--image-opts", "--output=json", self.options, check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn("Input/output error", result.stderr)
        self.assertNotIn('"data"', result.stdout)

    def test_convert_of_raw_fails_where_its_file_does_not_tell(self):
        target = self.path("target.raw")
        result = img("convert", "--image-opts", "-O", "raw", self.options, target, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("error while reading block status at offset 0", result.stderr)

    def served(self):
        return self.own(NbdServer(self.dir, "-r", "-A", "--image-opts", self.options))

    def test_depth_needs_no_answer_of_the_file(self):
        with RawClient(self.served().socket) as client:
            client.go(contexts=[DEPTH])
            client.request(BLOCK_STATUS, 0, 4 * MIB)
            ((kind, payload),) = client.chunks()
        self.assertEqual((kind, payload[4:]), (5, b"\0\x40\0\0" + b"\0\0\0\1"))

    def test_base_allocation_is_an_error(self):
        with RawClient(self.served().socket) as client:
            client.go(contexts=[BASE])
            client.request(BLOCK_STATUS, 0, 4 * MIB)
            self.assertEqual(client.error(), 5)

    def test_large_reads_do_without_status(self):
        with RawClient(self.served().socket) as client:
            client.go()
            client.request(READ, 0, 128 << 10)
            ((kind, payload),) = client.chunks()
        self.assertEqual((kind, payload[8:]), (1, b"x" * 65536 + bytes(65536)))

    def test_allocation_alone_needs_no_answer_of_the_file(self):
        words = ("-r", "-c", "alloc 0 4M", "--image-opts", self.options)
        self.assertIn("4194304/4194304 bytes allocated", run(*tool("io"), *words).stdout)


if __name__ == "__main__":
    unittest.main()
