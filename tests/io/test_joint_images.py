# SPDX-License-Identifier: Apache-2.0
"""Images of a joint change of bitmaps that is cut off: hostile, emptied, of the same name."""

import os
import struct
import unittest

from joint_images import (
    DONE, EXT_JOINT, M, PREPARED, SlowSecond, bitmaps, joint_state,
)  # fmt: skip
from tidemark import img, io, wait_until


class FeatureName(SlowSecond):
    def has_it(self):
        with open(self.images[0], "rb") as f:
            return b"joint change" in f.read(4096)

    def test_the_header_names_the_bit_while_it_is_set(self):
        self.start(slow=(1,))
        self.begin(*self.checkpoint("new", "old"))
        wait_until(self.has_it, "the feature name", timeout=60)
        wait_until(
            lambda: joint_state(self.images[0]) == 0 and not self.has_it(), "the end", timeout=60
        )


class Hostile(SlowSecond):
    def test_a_table_that_is_named_again_and_again(self):
        """64 MiB in a hole, 65,535 times."""
        self.cut_off(PREPARED, 0)
        with open(self.images[0], "r+b") as f:
            head = f.read(4096)
            place = head.index(struct.pack(">II", EXT_JOINT, 40)) + 32
            (record,) = struct.unpack_from(">Q", head, place)
            directory = b"".join(
                struct.pack(">QIIBBHI5s3x", 1 << 32, 8 << 20, 0, 1, 16, 5, 0, b"%05d" % n)
                for n in range(65535)
            )
            f.seek(1 << 33)
            f.write(directory)
            f.truncate(1 << 43)
            f.seek(record)
            f.write(struct.pack(">QQI", 1 << 33, len(directory), 65535))
        result = img("info", "-f", "qcow2", self.images[0])
        self.assertIn("is damaged", result.stderr)
        io(self.images[0], "write 0 4k", fmt="qcow2")
        self.assertEqual(bitmaps(self.images[0]), self.OLD)


class Emptied(SlowSecond):
    def make(self, name):
        with open(self.path(name + ".raw"), "wb") as f:
            f.truncate(16 * M)
        image = self.path(name + ".qcow2")
        img("create", "-q", "-f", "qcow2", "-b", name + ".raw", "-F", "raw", image)
        img("bitmap", "--add", "-f", "qcow2", image, "old")
        return image

    def remove_bitmaps(self):
        self.start(slow=(1,))
        self.begin(
            *(("block-dirty-bitmap-remove", {"node": f"d{i}", "name": "old"}) for i in range(2))
        )
        wait_until(lambda: joint_state(self.images[0]) == DONE, "the decision", timeout=60)
        self.kill()

    def test_a_downgrade_of_the_first_image_waits_for_the_other_one(self):
        self.remove_bitmaps()
        amend = ("amend", "-q", "-f", "qcow2", "-o", "compat=0.10", self.images[0])
        self.assertIn("Cannot downgrade", img(*amend, check=False).stderr)
        self.settle(self.images[1])
        self.assertEqual(bitmaps(self.images[1]), {})
        img(*amend)
        self.assertIn(self.qemu_check(self.images[0]), (0, 3))

    def test_a_commit_of_the_first_image_keeps_the_record(self):
        io(self.images[0], "write -P 1 0 4M", fmt="qcow2")
        self.remove_bitmaps()
        img("commit", "-q", "-f", "qcow2", self.images[0])
        self.assertEqual(joint_state(self.images[0]), DONE)
        io(self.images[0], "write -P 2 4M 4M", fmt="qcow2")
        self.settle(self.images[1])
        self.assertEqual(bitmaps(self.images[1]), {})
        self.settle(self.images[0])
        self.assertEqual(joint_state(self.images[0]), 0)
        io(self.images[0], "write -P 3 8M 4M", "read -P 2 4M 4M", fmt="qcow2")
        self.assertIn(self.qemu_check(self.images[0]), (0, 3))


class SameName(SlowSecond):
    """Images that differ in their directories only."""

    def make(self, name):
        os.mkdir(self.path(name))
        return super().make(os.path.join(name, "disk"))

    def test_no_image_answers_for_another_one(self):
        self.cut_off(DONE, PREPARED)
        self.settle(self.images[0])
        self.assertEqual(joint_state(self.images[0]), DONE)  # the other one still has to ask
        self.settle(self.images[1])
        self.assertEqual(bitmaps(self.images[1]), self.NEW)
        self.settle(self.images[0])
        self.assertEqual(joint_state(self.images[0]), 0)


if __name__ == "__main__":
    unittest.main()
