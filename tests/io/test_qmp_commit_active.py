# SPDX-License-Identifier: Apache-2.0
"""block-commit of an image in use: it is ready when the base has everything, and pivots."""

import unittest

import tidemark
from chain_case import Guest
from test_qmp_commit import ENDED, IMAGES, STARTED, CommitCase

MIB = 1 << 20


class ActiveTest(CommitCase):
    def test_a_guest_writes_meanwhile_and_after(self):
        self.make_chain(*IMAGES)
        self.start(read_only="abc")
        guest = Guest(self.uri, self.disk)
        self.commit()
        self.assertEqual(self.events("job", "READY"), STARTED + ["ready", "READY"])
        self.qmp.command("job-complete", id="job")
        self.assertEqual(self.events("job"), ENDED)
        writes = guest.writes
        tidemark.wait_until(lambda: guest.writes > writes + 20, "writes after the pivot")
        guest.stop()
        (export,) = self.qmp.command("query-block-exports")
        self.assertEqual(export["node-name"], "a")
        self.drop("d", "c", "b")
        self.server.stop()
        self.empty("d", "c", "b")
        self.assert_disk()

    def test_images_that_end_early_are_zero_there(self):
        for sizes in ((16, 4, 8, 16), (4, 16, 8, 16)):
            with self.subTest(sizes=sizes):
                self.make_chain(*((size, 65536) for size in sizes))
                self.start()
                self.commit()
                self.events("job", "READY")
                self.qmp.command("job-complete", id="job")
                self.assertEqual(self.events("job"), ENDED)
                self.drop("d", "c", "b")
                self.server.stop()
                self.empty("d", "c", "b")
                self.assert_disk()

    def test_a_base_that_is_larger_keeps_its_end(self):
        """As offline. The disk has its size once the users have moved there."""
        self.make_chain((16, 65536), (8, 65536), (4, 65536))
        raw = self.path("raw")
        tidemark.img("convert", "-f", "qcow2", "-O", "raw", self.path("a.qcow2"), raw)
        with open(raw, "rb") as f:
            f.seek(4 * MIB)
            end = f.read()
        self.start(read_only="ab")
        self.qmp.command("block-dirty-bitmap-add", node="c", name="x", persistent=True)
        guest = Guest(self.uri, self.disk)
        self.commit(device="c")
        self.events("job", "READY")
        self.qmp.command("job-complete", id="job")
        self.assertEqual(self.events("job"), ENDED)
        writes = guest.writes
        tidemark.wait_until(lambda: guest.writes > writes + 20, "writes after the pivot")
        guest.stop()
        self.assertEqual(self.qmp.node("a")["image"]["virtual-size"], 16 * MIB)
        bitmap = self.qmp.bitmaps("a")["x"]
        self.assertTrue(bitmap["recording"])
        self.drop("c", "b")
        self.server.stop()
        self.assert_disk("a", self.disk + end)

    def test_a_soft_cancel_changes_no_user(self):
        self.make_chain(*((4, 65536),) * 3)
        self.start()
        self.commit(device="c")
        self.events("job", "READY")
        tidemark.io(self.uri, "write -P 7 0 64k", fmt="raw")
        self.disk[:65536] = b"\7" * 65536
        self.qmp.command("block-job-cancel", device="job")
        self.assertEqual(self.events("job"), ENDED)
        (export,) = self.qmp.command("query-block-exports")
        self.assertEqual(export["node-name"], "c")
        self.server.stop()
        self.assert_disk()
        self.assert_disk("a")

    def test_cancelled_by_force(self):
        self.make_chain(*((4, 65536),) * 3)
        self.start(read_only="ab")
        self.commit(device="c")
        self.events("job", "READY")
        self.qmp.command("job-cancel", id="job")
        self.assertEqual(self.events("job"), ["aborting", "CANCELLED", "concluded", "null"])
        self.assertTrue(self.qmp.node("a")["ro"])
        self.server.stop()
        self.assertEqual(self.backing("c"), ("b.qcow2", "qcow2"))
        self.assert_disk()

    def test_a_filter_above_the_disk_goes_with_the_images(self):
        """While the base is written, no image below the disk is what it was, but what the filter
        reads is.
        """
        for driver in ("copy-on-read", "compress"):
            with self.subTest(driver=driver):
                self.make_chain(*((4, 65536),) * 3)
                self.start(writable=False, export="a")
                self.qmp.command("blockdev-add", driver=driver, node_name="f", file="c")
                self.qmp.command("block-export-del", id="export")
                self.next_event(30)
                export = {"type": "nbd", "id": "e", "node-name": "f", "name": "disk"}
                self.qmp.command("block-export-add", **export, writable=True)
                guest = Guest(self.uri, self.disk)
                tidemark.wait_until(lambda: guest.writes > 5, "writes")
                self.commit(device="f")
                self.events("job", "READY")
                self.qmp.command("job-complete", id="job")
                self.assertEqual(self.events("job"), ENDED)
                writes = guest.writes
                tidemark.wait_until(lambda: guest.writes > writes + 20, "writes after the pivot")
                guest.stop()
                self.assertEqual(self.qmp.command("query-block-exports")[0]["node-name"], "a")
                self.drop("f", "c", "b")
                self.server.stop()
                self.empty("c", "b")
                self.assert_disk()

    def test_again_after_the_images_between_are_gone(self):
        """From the middle first, then all the rest."""
        self.make_chain(*((4, 65536),) * 4)
        self.start()
        self.commit(top_node="c", base_node="b")
        self.events("job")
        self.commit()
        self.events("job", "READY")
        self.qmp.command("job-complete", id="job")
        self.assertEqual(self.events("job"), ENDED)
        tidemark.io(self.uri, "write -P 7 0 64k", fmt="raw")
        self.disk[:65536] = b"\7" * 65536
        self.drop("d", "c", "b")
        self.server.stop()
        self.empty("d", "c", "b")
        self.assert_disk()


if __name__ == "__main__":
    unittest.main()
