# SPDX-License-Identifier: Apache-2.0
"""A transaction that changes bitmaps of several disks, cut off by kill -9: all or nothing."""

import json
import os
import random
import shutil
import socket
import struct
import threading
import unittest

from joint_images import (
    DONE, HEADER_WRITE, NS, PREPARED, Case, SlowSecond, bitmaps, joint_state,
)  # fmt: skip
from qmp import QmpError
from tidemark import img, io, qemu_io, wait_until


class CutOff(SlowSecond):
    def test_before_the_decision_nothing_has_changed(self):
        self.cut_off(PREPARED, 0)
        self.check()
        found = self.opened()
        self.assertEqual(found, [self.OLD, self.OLD])
        self.check()

    def test_after_the_decision_all_has_changed(self):
        self.cut_off(DONE, PREPARED)
        self.check()
        found = self.opened()
        self.assertEqual(found, [self.NEW, self.NEW])
        for image in self.images:
            img("check", "-q", "-r", "leaks", "-f", "qcow2", image, check=False)
        self.assert_plain()

    def test_images_under_a_raw_node(self):
        self.raw = True
        self.cut_off(DONE, PREPARED)
        self.check()
        self.assertEqual(self.opened(), [self.NEW, self.NEW])
        self.check()

    def test_one_after_the_other_in_any_order(self):
        self.cut_off(DONE, PREPARED)
        kept = self.path("kept")
        os.mkdir(kept)
        for image in self.images:
            shutil.copy(image, kept)
        for order in ((0, 1), (1, 0), (0, 0, 1)):
            for image in self.images:
                shutil.copy(os.path.join(kept, os.path.basename(image)), image)
            for i in order:
                self.settle(self.images[i])
            self.assertEqual(bitmaps(self.images[0]), self.NEW, order)
            self.assertEqual(bitmaps(self.images[1]), self.NEW, order)
            self.settle(self.images[0])  # it may not have known that the other one was settled
            self.assertEqual(joint_state(self.images[0]), 0)

    def test_moved_together_they_find_each_other(self):
        self.cut_off(DONE, PREPARED)
        other = self.path("other")
        os.mkdir(other)
        for i, image in enumerate(self.images):
            self.images[i] = shutil.move(image, other)
        self.settle(self.images[1])
        self.assertEqual(bitmaps(self.images[1]), self.NEW)

    def test_without_the_first_image_the_other_one_is_in_doubt(self):
        self.cut_off(DONE, PREPARED)
        os.rename(self.images.pop(0), self.path("gone"))
        self.assertEqual(bitmaps(self.images[0]), {"old": True, "new": True})
        done = io(self.images[0], "read 0 4k", fmt="qcow2")
        self.assertIn("a.qcow2", done.stderr)
        self.assertEqual(bitmaps(self.images[0]), {"old": True, "new": True})
        self.assertEqual(joint_state(self.images[0]), 0)
        self.check()

    def test_in_doubt_both_record_what_is_written(self):
        self.cut_off(DONE, PREPARED)
        os.rename(self.images.pop(0), self.path("gone"))
        qmp = self.start(name="again")
        before = {name: b["count"] for name, b in qmp.bitmaps("d0").items()}
        self.write(0, 9)
        after = {name: b["count"] for name, b in qmp.bitmaps("d0").items()}
        self.assertEqual(after, {name: count + 65536 for name, count in before.items()})
        self.assertEqual(sorted(after), ["new", "old"])
        self.server.quit()

    def test_what_is_no_image_is_not_opened(self):
        self.cut_off(DONE, PREPARED)
        os.unlink(self.images[1])
        with socket.socket(socket.AF_UNIX) as other:  # can't be opened
            other.bind(self.images[1])
            self.settle(self.images[0])
        self.assertEqual(joint_state(self.images[0]), 0)

    def test_in_doubt_says_by_how_much(self):
        for i in range(2):
            io(self.images[i], f"write {5 * 64}k 4k", fmt="qcow2")
        self.start(slow=(1,))
        self.begin(
            *(("block-dirty-bitmap-clear", {"node": f"d{i}", "name": "old"}) for i in range(2))
        )
        wait_until(lambda: joint_state(self.images[0]) == DONE, "the decision", timeout=60)
        self.kill()
        os.rename(self.images[0], self.path("gone"))
        info = json.loads(img("info", "--output=json", "-f", "qcow2", self.images[1]).stdout)
        (bitmap,) = info["format-specific"]["data"]["bitmaps"]
        self.assertEqual(bitmap["x-tidemark-state"]["kind"], "superset")
        self.assertGreaterEqual(bitmap["x-tidemark-state"]["excess"], 65536)

    def superset(self, image):
        """By how many bytes the bitmap is one."""
        info = json.loads(img("info", "-U", "--output=json", "-f", "qcow2", image).stdout)
        found = {b["name"]: b["x-tidemark-state"] for b in info["format-specific"]["data"]["bitmaps"]}
        return found["old"].get("excess", 0)

    def with_excess(self):
        """Both images have a bitmap in excess that records nothing."""
        self.start()
        for i in range(2):
            self.write(i, 3)
        self.kill()
        for image in self.images:
            img("bitmap", "--disable", "-f", "qcow2", image, "old")
        excess = self.superset(self.images[1])
        self.assertGreaterEqual(excess, 65536)
        return excess

    def test_what_is_in_excess_is_known_after_the_decision(self):
        excess = self.with_excess()
        self.cut_off(DONE, PREPARED)
        for _ in range(2):
            self.assertGreaterEqual(self.superset(self.images[1]), excess)
            self.settle(self.images[1])
        self.assertEqual(bitmaps(self.images[1]), {"old": False, "new": True})

    def test_what_is_in_excess_is_known_before_the_decision(self):
        excess = self.with_excess()
        self.start(slow=(1,))
        self.begin(
            *(("block-dirty-bitmap-clear", {"node": f"d{i}", "name": "old"}) for i in range(2))
        )
        wait_until(lambda: joint_state(self.images[0]) == PREPARED, "the first image", timeout=60)
        self.kill()
        self.assertEqual(joint_state(self.images[0]), PREPARED)
        for _ in range(2):
            self.settle(self.images[0])
            self.assertGreaterEqual(self.superset(self.images[0]), excess)

    def test_a_program_that_does_not_know_it_makes_us_forget_it(self):
        self.cut_off(DONE, PREPARED)
        self.assertEqual(self.qemu_check(self.images[1]), 3)
        qemu_io(self.images[1], "write 8M 64k", fmt="qcow2")
        self.settle(self.images[1])
        self.assertEqual(joint_state(self.images[1]), 0)
        self.assertEqual(bitmaps(self.images[1]), {"old": True})
        self.check()

    def test_a_repair_keeps_both_states(self):
        self.cut_off(DONE, PREPARED)
        for image in self.images:
            img("check", "-q", "-r", "all", "-f", "qcow2", image, check=False)
            self.assertEqual(img("check", "-q", "-f", "qcow2", image).returncode, 0)
        found = self.opened()
        self.assertEqual(found, [self.NEW, self.NEW])


class Again(SlowSecond):
    """Once more, after a crash."""

    def test_the_first_image_takes_part_again_at_once(self):
        self.cut_off(DONE, PREPARED)
        before = self.start(name="again")
        before.transaction(*self.checkpoint("newer", "new"))
        self.assertEqual([joint_state(image) for image in self.images], [0, 0])
        self.assertNotIn("takes part", self.server.log())


class Errors(Case):
    """Steps that fail."""

    def test_an_image_that_cannot_prepare_changes_nothing(self):
        qmp = self.start(errors=((1, {**HEADER_WRITE, "errno": 5}),))
        with self.assertRaises(QmpError):
            qmp.transaction(*self.checkpoint("new", "old"))
        for i in range(2):
            self.assertEqual(set(qmp.bitmaps(f"d{i}")), {"old"})
            self.assertTrue(qmp.bitmaps(f"d{i}")["old"]["recording"])
        self.assertEqual(joint_state(self.images[0]), 0)
        self.kill()
        self.assertEqual(bitmaps(self.images[0]), {"old": True})

    def test_an_image_that_is_changed_apart_is_named_once(self):
        """No room in its header; the others are changed together."""
        self.images.append(self.path("c.qcow2"))
        base = self.make("base")
        words = ("-o", "cluster_size=512", "-b", base, "-F", "qcow2")
        img("create", "-q", "-f", "qcow2", *words, self.images[2])
        img("bitmap", "--add", "-f", "qcow2", self.images[2], "old")
        qmp = self.start()
        for n in range(2):
            before = f"c{n - 1}" if n else "old"
            answer = qmp.transaction(*self.checkpoint(f"c{n}", before, range(3)))
            self.assertEqual(answer, {"x-tidemark-apart": ["d2"]})
            answer = qmp.transaction(*self.checkpoint(f"x{n}", before))
            self.assertEqual(answer, {})
            for i in range(3):
                self.assertIn(f"c{n}", qmp.bitmaps(f"d{i}"))
        said = [line for line in self.server.log().splitlines() if "of this image before those of other" in line]
        self.assertEqual(len(said), 1, said)
        self.assertIn("c.qcow2'", said[0])

    def fill_header(self, image, free):
        """An extension of another program leaves that many bytes of the first cluster free."""
        with open(image, "r+b") as f:
            head = bytearray(f.read(4096))
            at = struct.unpack_from(">I", head, 100)[0]
            while struct.unpack_from(">I", head, at)[0]:
                at += 8 + (struct.unpack_from(">I", head, at + 4)[0] + 7) // 8 * 8
            size = 4096 - free - at - 16
            struct.pack_into(">II", head, at, 0x12345678, size)
            head[at + 8 : at + 8 + size] = b"x" * size
            head[at + 8 + size : at + 16 + size] = bytes(8)
            f.seek(0)
            f.write(head)

    def test_an_image_whose_header_is_almost_full_is_changed_apart(self):
        for name, free in (("c", 184), ("d", 320)):
            image = self.path(name + ".qcow2")
            img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "16M")
            img("bitmap", "--add", "-f", "qcow2", "-g", "64k", image, "old")
            self.fill_header(image, free)
            self.images.append(image)
        qmp = self.start()
        for other, apart in ((2, ["d2"]), (3, None)):
            answer = qmp.transaction(*self.checkpoint(f"new{other}", "old", (0, other)))
            self.assertEqual(answer.get("x-tidemark-apart"), apart)
        self.kill()
        for i, names in enumerate((("new2", "new3"), (), ("new2",), ("new3",))):
            expected = {"old": i == 1, **{name: True for name in names}}
            self.assertEqual(bitmaps(self.images[i]), expected)
        self.check()

    def test_it_leaves_no_trace(self):
        qmp = self.start()
        for n in range(5):
            qmp.transaction(*self.checkpoint(f"c{n}", f"c{n - 1}" if n else "old"))
            self.assertEqual([joint_state(image) for image in self.images], [0, 0])
        self.server.quit()
        for image in self.images:
            self.assertEqual(bitmaps(image), {"old": False, **{f"c{n}": n == 4 for n in range(5)}})
            self.assertEqual(img("check", "-q", "-f", "qcow2", image).returncode, 0)
            self.assertEqual(self.qemu_check(image), 0)


class OtherDisks(Case):
    slow_ns = 120 * NS

    def setUp(self):
        super().setUp()
        self.images += [self.make(name) for name in ("c", "d")]

    def test_a_change_that_hangs_delays_no_change_of_other_disks(self):
        self.start(slow=(1,))
        self.begin(*self.checkpoint("new", "old"))
        wait_until(lambda: joint_state(self.images[0]) == PREPARED, "the first disk", timeout=60)
        with self.server.connect() as qmp:
            qmp.transaction(*self.checkpoint("new", "old", disks=(2, 3)))
        self.write(2, 1)
        self.assertEqual(joint_state(self.images[0]), PREPARED)
        self.kill()
        self.assertEqual([bitmaps(image) for image in self.images[2:]], [SlowSecond.NEW] * 2)


class Kills(Case):
    """kill -9 at any time, over and over, of three disks under checkpoints."""

    def setUp(self):
        super().setUp()
        self.images.append(self.make("c"))

    def test_kills(self):
        rng = random.Random(13)
        number = 0
        for n in range(int(os.environ.get("TIDEMARK_KILLS", "12"))):
            qmp = self.start(name=f"daemon{n}")
            found = [
                {name: b["recording"] for name, b in qmp.bitmaps(f"d{i}").items()}
                for i in range(3)
            ]
            self.assertEqual(found[0], found[1], n)
            self.assertEqual(found[0], found[2], n)
            last = max((int(name[1:]) for name in found[0] if name[0] == "c"), default=0)
            self.assertIn(last, (number, number + 1))
            number = last
            stop = threading.Timer(rng.uniform(0.0, 0.12), self.server.kill)
            stop.start()
            try:
                while True:
                    before = f"c{number}" if number else "old"
                    actions = self.checkpoint(f"c{number + 1}", before, range(3))
                    if number > 1:
                        gone = f"c{number - 1}"
                        actions += [
                            ("block-dirty-bitmap-remove", {"node": f"d{i}", "name": gone})
                            for i in range(3)
                        ]
                    qmp.transaction(*actions)
                    number += 1
            except (OSError, EOFError, ValueError):
                pass
            stop.join()
            self.kill()
            self.check()


if __name__ == "__main__":
    unittest.main()
