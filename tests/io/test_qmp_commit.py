# SPDX-License-Identifier: Apache-2.0
"""block-commit: writes images into one below them in the chain, and drops them, in use."""

import unittest

import tidemark
from chain_case import MIB, ChainCase, Guest

IMAGES = ((24, 65536), (16, 4096), (32, 2 * MIB), (32, 65536))
STARTED = ["created", "running"]
ENDED = ["waiting", "pending", "COMPLETED", "concluded", "null"]


class CommitCase(ChainCase):
    def commit(self, job="job", device="d", **more):
        self.qmp.command("block-commit", device=device, job_id=job, **more)

    def drop(self, *names):
        """The images are not needed any more."""
        for name in names:
            self.qmp.command("blockdev-del", node_name=name)

    def empty(self, *names):
        for name in names:
            tidemark.run("truncate", "-s0", self.path(name + ".qcow2"))
        self.names = [n for n in self.names if n not in names]


class MiddleTest(CommitCase):
    def test_a_guest_writes_meanwhile(self):
        self.make_chain(*IMAGES)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.commit(top_node="c", base_node="a", speed=32 * MIB)
        self.assertEqual(self.events("job"), STARTED + ENDED)
        self.assertGreater(guest.stop(), 10)
        self.assertEqual(self.backing("d"), (self.path("a.qcow2"), "qcow2"))
        self.drop("c", "b")
        self.server.stop()
        self.empty("c", "b")
        self.assert_disk()

    def test_images_that_end_early_are_zero_there(self):
        """Where an image ends, the disk shows zeroes, and not what is below that image."""
        for number, sizes in enumerate(((32, 8, 16, 32), (8, 32, 16, 32), (16, 8, 32, 16))):
            with self.subTest(sizes=sizes):
                self.make_chain(*((size, 65536) for size in sizes))
                self.start()
                self.commit(top_node="c", base_node="a")
                self.assertEqual(self.events("job"), STARTED + ENDED)
                self.drop("c", "b")
                self.server.stop()
                self.empty("c", "b")
                self.assert_disk()


class ActiveTest(CommitCase):
    def test_a_guest_writes_meanwhile_and_after(self):
        self.make_chain(*IMAGES)
        self.start()
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


if __name__ == "__main__":
    unittest.main()
