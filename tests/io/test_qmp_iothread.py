# SPDX-License-Identifier: Apache-2.0
"""x-blockdev-set-iothread: which thread serves an export; errors are QEMU's."""

import os

import tidemark
from same_answers import SameAnswersCase

SET = "x-blockdev-set-iothread"


class SetIothread(SameAnswersCase):
    def setUp(self):
        super().setUp()
        self.same("object-add", {"qom-type": "iothread", "id": "t"})
        self.same(
            "blockdev-add",
            {"driver": "null-co", "node-name": "n", "size": 1 << 20, "read-zeroes": True},
        )
        self.same("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "s"}}})

    def export(self, node="n", **more):
        self.same(
            "block-export-add", {"type": "nbd", "id": "e", "node-name": node, **more}
        )

    def turns(self):
        """How much the thread has done."""
        for o in self.ours.command("x-tidemark-query-stats", target="reactor"):
            if o["labels"]["reactor"] == "t":
                return o["stats"]["turns"]
        raise AssertionError("there is no such thread")

    def is_served_by_the_thread(self, node):
        before = self.turns()
        uri = tidemark.nbd_uri(os.path.join(self.path("ours"), "s"), node)
        tidemark.io(uri, *(f"read {i * 4}k 4k" for i in range(20)), fmt="raw", options=("-r",))
        return self.turns() > before + 10

    def test_errors(self):
        for arguments in (
            {"node-name": "n", "iothread": "x"},
            {"node-name": "x", "iothread": "x"},
            {"node-name": "x", "iothread": None},
            {"node-name": "x"},
            {"node-name": "n", "iothread": 5},
            {"node-name": "n", "iothread": "t"},
            {"node-name": "n", "iothread": None},
        ):
            self.same(SET, arguments)
        self.export()
        self.same(SET, {"node-name": "n", "iothread": "t"})
        self.same(SET, {"node-name": "n", "iothread": "t", "force": True})

    def test_later_exports_are_served_there(self):
        self.assertEqual(self.alone(SET, {"node-name": "n", "iothread": "t"}), {"return": {}})
        self.ours.command("blockdev-add", driver="raw", node_name="above", file="n")
        self.ours.command("block-export-add", type="nbd", id="e", node_name="above")
        self.assertTrue(self.is_served_by_the_thread("above"))
        self.ours.command("block-export-del", id="e", mode="hard")
        self.ours.wait_event("BLOCK_EXPORT_DELETED")
        self.assertEqual(self.alone(SET, {"node-name": "above", "iothread": None}), {"return": {}})
        self.ours.command("block-export-add", type="nbd", id="e", node_name="above")
        self.assertFalse(self.is_served_by_the_thread("above"))

    def test_an_export_can_name_another_thread(self):
        self.ours.command("object-add", qom_type="iothread", id="other")
        self.alone(SET, {"node-name": "n", "iothread": "t"})
        self.ours.command("block-export-add", type="nbd", id="e", node_name="n", iothread="other")
        self.assertFalse(self.is_served_by_the_thread("n"))

    def test_a_thread_stays_while_a_node_is_there(self):
        """QEMU's daemon crashes later if the thread is deleted before."""
        self.alone(SET, {"node-name": "n", "iothread": "t"})
        self.assertEqual(
            self.alone("object-del", {"id": "t"})["error"]["desc"],
            "object 't' is in use, can not be deleted",
        )
        self.ours.command("blockdev-del", node_name="n")
        self.ours.command("object-del", id="t")
