# SPDX-License-Identifier: Apache-2.0
"""What block status says, and whom it asks."""

import json
import unittest

from nbd_raw import RawClient
from nbd_server import NbdServer
from tidemark import TestCase, img, io, qemu_img, qemu_io, run, tool

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

    def test_what_io_shows_as_allocated_was_asked_for(self):
        """A program that counts what `qemu-io map` asks of a server finds its questions."""
        for command in ("map", "alloc 0 4M"):
            words = ("-r", "-c", command, "--image-opts", self.options)
            result = run(*tool("io"), *words, check=False)
            self.assertIn("Input/output error", result.stdout + result.stderr, command)
            self.assertNotIn("bytes     allocated", result.stdout)


class HolesInClusters(TestCase):
    """Files are asked for them that have clearly less storage than clusters in use."""

    def extents(self, image, program=img):
        found = json.loads(program("map", "--output=json", image).stdout)
        return [(e["start"], e["length"], e["data"], e["zero"]) for e in found]

    def test_unwritten_clusters_of_a_preallocated_image_are_zero(self):
        image = self.create("disk.qcow2", "64M", options=("-o", "preallocation=metadata"))
        io(image, "write 32M 1M", fmt="qcow2")
        self.assertEqual(self.extents(image), [
            (0, 32 * MIB, True, True), (32 * MIB, MIB, True, False), (33 * MIB, 31 * MIB, True, True),
        ])  # fmt: skip

    def test_what_a_resize_preallocates_is_zero(self):
        image = self.create("disk.qcow2", "8M")
        io(image, "write 0 8M", fmt="qcow2")
        img("resize", "-q", "-f", "qcow2", "--preallocation=metadata", image, "64M")
        self.assertEqual(self.extents(image), [(0, 8 * MIB, True, False), (8 * MIB, 56 * MIB, True, True)])

    def test_clusters_written_in_part_are_told_as_by_qemu(self):
        """Whole, or with holes: that depends on how they are stored."""
        for name, write in (("ours", io), ("theirs", qemu_io)):
            image = self.create(f"{name}.qcow2", "64M")
            write(image, *[f"write {i * 128}k 4k" for i in range(8)], fmt="qcow2")
            self.assertEqual(self.extents(image)[0][2:], (True, False))
            self.assertEqual(self.extents(image), self.extents(image, qemu_img))

    def test_a_data_file_is_asked_too(self):
        data = self.path("disk.data")
        image = self.create("disk.qcow2", "64M", options=("-o", f"data_file={data},preallocation=metadata"))
        io(image, "write 1M 1M", fmt="qcow2")
        zero = sum(length for _, length, _, zero in self.extents(image) if zero)
        self.assertGreater(zero, 62 * MIB)

    def test_extended_entries(self):
        options = ("-o", "extended_l2=on,preallocation=metadata")
        image = self.create("disk.qcow2", "64M", options=options)
        io(image, "write 1M 1M", fmt="qcow2")
        self.assertEqual(self.extents(image)[0], (0, MIB, True, True))


if __name__ == "__main__":
    unittest.main()
