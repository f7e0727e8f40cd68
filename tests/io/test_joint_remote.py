# SPDX-License-Identifier: Apache-2.0
"""A transaction that changes bitmaps of disks on a server, cut off by kill -9: all or nothing, once
one process has all of them open."""

import os
import random
import socket
import threading
import unittest

from joint_images import DONE, PREPARED, Case, SlowSecond, bitmaps, joint_state
from tidemark import img, io, wait_until


class Remote(SlowSecond):
    remote = True

    def open_both(self, *order):
        """Names and `recording`, once no change is left."""
        self.start(name="again", order=order)
        wait_until(
            lambda: [joint_state(image) for image in self.images] == [0, 0], "the end of the change"
        )
        qmp = self.server.qmp
        found = [
            {name: b["recording"] for name, b in qmp.bitmaps(f"d{i}").items()} for i in range(2)
        ]
        self.counts = [
            {name: b["count"] for name, b in qmp.bitmaps(f"d{i}").items()} for i in range(2)
        ]
        self.server.quit()
        return found

    def finish(self):
        self.end_server()
        for image in self.images:
            img("check", "-q", "-r", "leaks", "-f", "qcow2", image, check=False)
        self.assert_plain()


class CutOff(Remote):
    def test_before_the_decision_nothing_has_changed(self):
        self.cut_off(PREPARED, 0)
        self.assertEqual(self.open_both(1, 0), [self.OLD, self.OLD])
        self.finish()

    def test_after_the_decision_all_has_changed(self):
        self.cut_off(DONE, PREPARED)
        self.assertEqual(self.open_both(1, 0), [self.NEW, self.NEW])
        self.finish()

    def test_the_first_image_is_opened_first(self):
        self.cut_off(DONE, PREPARED)
        self.assertEqual(self.open_both(0, 1), [self.NEW, self.NEW])
        self.finish()

    def alone(self, granule):
        """Write to the second image, which is open alone."""
        self.start(name="alone", order=(1,))
        found = self.server.qmp.bitmaps("d1")
        recording = {name: b["recording"] for name, b in found.items()}
        self.assertEqual(recording, {"old": True, "new": True})
        self.write(1, granule)
        self.server.quit()

    def test_the_second_image_waits_for_the_first_one(self):
        """Alone it is in doubt, whatever is written; nothing is lost when it learns the truth."""
        self.in_use = True
        self.cut_off(DONE, PREPARED)
        for granule in (9, 10):
            self.alone(granule)
            self.assertEqual(joint_state(self.images[1]), PREPARED)
        self.assertEqual(self.open_both(1, 0), [self.NEW, self.NEW])
        self.assertGreaterEqual(self.counts[1]["new"], 2 * 65536)
        self.assertEqual(self.counts[1]["old"], 65536)
        self.finish()

    def test_a_write_that_needs_an_activity_log_ends_the_wait(self):
        self.cut_off(DONE, PREPARED)
        self.alone(9)
        self.assertEqual(joint_state(self.images[1]), 0)
        self.assertEqual(bitmaps(self.images[1]), {"old": True, "new": True})

    def test_a_command_ends_the_wait(self):
        self.cut_off(DONE, PREPARED)
        self.start(name="again", order=(1,))
        self.assertEqual(joint_state(self.images[1]), PREPARED)
        self.server.qmp.transaction(("block-dirty-bitmap-clear", {"node": "d1", "name": "old"}))
        self.assertEqual(joint_state(self.images[1]), 0)
        self.server.quit()
        self.assertEqual(bitmaps(self.images[1]), {"old": True, "new": True})

    def test_no_address_in_an_image_is_connected_to(self):
        self.cut_off(DONE, PREPARED)
        self.end_server()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("far"))
            listener.listen()
            listener.setblocking(False)
            said = io(self.images[1], "read 0 4k", fmt="qcow2").stderr
            self.assertIn("a.qcow2?socket=", said)
            self.assertEqual(joint_state(self.images[1]), PREPARED)
            with self.assertRaises(BlockingIOError):
                listener.accept()


class Kills(Case):
    """kill -9 at any time, of disks on a server and a local one, opened in any order."""

    remote = True

    def file(self, image):
        if image == self.images[1]:
            return {"driver": "file", "filename": image}
        return super().file(image)

    def setUp(self):
        super().setUp()
        self.images.append(self.make("c"))

    def states(self):
        return [
            {name: b["recording"] for name, b in self.server.qmp.bitmaps(f"d{i}").items()}
            for i in range(3)
        ]

    def test_kills(self):
        rng = random.Random(13)
        number = 0
        for n in range(int(os.environ.get("TIDEMARK_KILLS", "8"))):
            order = rng.sample(range(3), 3)
            self.start(name=f"daemon{n}", order=order)
            wait_until(lambda: self.states() == [self.states()[0]] * 3, f"equal bitmaps: {n}")
            found = self.states()[0]
            last = max((int(name[1:]) for name in found if name[0] == "c"), default=0)
            self.assertIn(last, (number, number + 1))
            number = last
            stop = threading.Timer(rng.uniform(0.0, 0.15), self.server.kill)
            stop.start()
            try:
                while True:
                    before = f"c{number}" if number else "old"
                    self.server.qmp.transaction(
                        *self.checkpoint(f"c{number + 1}", before, rng.sample(range(3), 3))
                    )
                    number += 1
            except (OSError, EOFError, ValueError):
                pass
            stop.join()
            self.kill()


if __name__ == "__main__":
    unittest.main()
