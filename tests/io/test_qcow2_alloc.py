# SPDX-License-Identifier: Apache-2.0
"""Where qcow2 puts what is written, and when it counts it: seen from outside, judged by qemu-img.
"""

import json
import os
import signal
import struct
import unittest

from qcow2_edit import COPIED, Image
from tidemark import TestCase, compat, io, qemu_img, qemu_io, run

INCOMPATIBLE = 72
DIRTY, CORRUPT = 1, 2


class LazyRefcounts(TestCase):
    """Refcounts stay behind under the dirty bit, and closing catches up."""

    def incompatible(self, image):
        with open(image, "rb") as f:
            f.seek(INCOMPATIBLE)
            return struct.unpack(">Q", f.read(8))[0]

    def kill_after_flush(self, image, *options):
        result = run(compat("qemu-io"), "-f", "qcow2", *options, "-c", "write -P 7 0 256k", "-c",
                     "flush", "-c", f"sigraise {int(signal.SIGKILL)}", image, check=False)  # fmt: skip
        self.assertEqual(result.returncode, -signal.SIGKILL)

    def create_lazy(self):
        return self.create("lazy.qcow2", "64M", options=("-o", "lazy_refcounts=on"))

    def test_closing_catches_up(self):
        image = self.create_lazy()
        io(image, "write -P 7 0 256k", "flush", "discard 64k 64k", "write -P 8 1M 64k", fmt="qcow2")
        self.assertEqual(self.incompatible(image), 0)
        qemu_img("check", image)

    def test_killed_image_is_dirty_and_the_next_writer_repairs_it(self):
        image = self.create_lazy()
        self.kill_after_flush(image)
        self.assertEqual(self.incompatible(image), DIRTY)
        self.assertNotEqual(qemu_img("check", image, check=False).returncode, 0)
        io(image, "read -P 7 0 256k", fmt="qcow2", options=("-r",))
        self.assertEqual(self.incompatible(image), DIRTY)
        io(image, "read -P 7 0 256k", "write -P 9 32M 64k", fmt="qcow2")
        self.assertEqual(self.incompatible(image), 0)
        qemu_img("check", image)
        qemu_io(image, "read -P 7 0 256k", "read -P 9 32M 64k", fmt="qcow2")

    def test_qemu_repairs_it_too(self):
        image = self.create_lazy()
        self.kill_after_flush(image)
        qemu_io(image, "read -P 7 0 256k", "write -P 9 32M 64k", fmt="qcow2")
        qemu_img("check", image)

    def test_tables_are_never_behind(self):
        image = self.create_lazy()
        self.kill_after_flush(image)
        report = qemu_img("check", image, check=False)
        self.assertNotIn("L2 cluster", report.stdout + report.stderr)
        self.assertIn("data cluster", report.stdout + report.stderr)

    def test_a_corrupt_image_stays_marked(self):
        """A table as data: the flush of what was written before sets the dirty bit along with the
        mark.
        """
        image = self.create_lazy()
        io(image, "write 0 64k", fmt="qcow2")
        edit = Image(image)
        edit.put64(edit.l2_place(0), edit.l2_table() | COPIED)
        io(image, "write 1M 64k", "write 0 512", "flush", fmt="qcow2", check=False)
        self.assertEqual(self.incompatible(image), DIRTY | CORRUPT)

    def test_the_option_overrides_the_image(self):
        image = self.create_lazy()
        self.kill_after_flush(image, "-c", "reopen -o lazy-refcounts=off")
        self.assertEqual(self.incompatible(image), 0)
        qemu_img("check", image)

    def test_version_2_has_no_dirty_bit_for_it(self):
        image = self.create("old.qcow2", options=("-o", "compat=0.10"))
        result = run(compat("qemu-io"), "--image-opts", "-c", "quit",
                     f"driver=qcow2,lazy-refcounts=on,file.driver=file,file.filename={image}",
                     check=False)  # fmt: skip
        self.assertIn("Lazy refcounts require", result.stdout + result.stderr)


class Placement(TestCase):
    def test_own_clusters_in_one_piece_are_one_request(self):
        """Data, an allocated zero cluster, data: the second request for data would fail."""
        image = self.create("disk.qcow2")
        config = self.path("blkdebug.conf")
        with open(config, "w", encoding="utf-8") as f:
            f.write('[set-state]\nevent = "write_aio"\nnew_state = "2"\n'
                    '[inject-error]\nevent = "write_aio"\nstate = "2"\nerrno = "5"\n')  # fmt: skip
        io(image, "write -P 1 0 192k", "write -z 64k 64k", fmt="qcow2")
        before = json.loads(qemu_img("map", "--output=json", image).stdout)
        self.assertEqual(sum(e["data"] for e in before if e["start"] < 192 << 10), 2)
        io(f"blkdebug:{config}:{image}", "write -P 2 32k 128k", fmt="qcow2")
        qemu_io(image, "read -P 1 0 32k", "read -P 2 32k 128k", "read -P 1 160k 32k", fmt="qcow2")
        qemu_img("check", image)

    def test_what_was_discarded_is_used_before_the_file_grows(self):
        image = self.create("disk.qcow2", "1G")
        io(image, "write 0 64M", fmt="qcow2")
        size = os.path.getsize(image)
        rounds = []
        for i in range(8):
            rounds += [f"discard {i * 8}M 8M", f"write -P {i + 1} {512 + i * 8}M 8M"]
        io(image, *rounds, fmt="qcow2")
        self.assertLess(os.path.getsize(image), size + (12 << 20))
        qemu_io(image, *(f"read -P {i + 1} {512 + i * 8}M 8M" for i in range(8)), fmt="qcow2")
        qemu_img("check", image)


if __name__ == "__main__":
    unittest.main()
