# SPDX-License-Identifier: Apache-2.0
"""Bitmaps when jobs take images out of a chain in use: every differential that could be computed
before block-commit or block-stream can be computed after it, exact or a superset.

    base:    AABBCC--
    bitmap1: --11----  frozen
    bitmap2: ----11--  recording, or frozen before or after the job
    active:  ---D-DD-
    bitmap3: ---1-11-  recording
"""

import unittest

import tidemark
from test_chain_bitmaps import CLUSTER, Chain, covers, union


class ChainBitmaps(Chain):
    def setUp(self):
        super().setUp()
        self.base = self.disk("base.qcow2")
        self.draw(self.base, "AAAA----")
        self.bitmap(self.base, "bitmap1")
        self.draw(self.base, "--BB----")
        self.bitmap(self.base, "bitmap1", "--disable")
        self.bitmap(self.base, "bitmap2")
        self.draw(self.base, "----CC--")
        self.active = self.disk("active.qcow2", backing="base.qcow2")
        self.bitmap(self.active, "bitmap3")
        self.draw(self.active, "---D-DD-")
        self.top = "active"

    def overlay(self):
        """An image on `active`, so that a commit of that one is one in the middle."""
        self.over = self.disk("over.qcow2", backing="active.qcow2")
        self.top = "over"

    def start(self, name="daemon", read_only=False):
        socket = self.path(name + ".nbd")
        self.server = self.daemon("--nbd-server", f"addr.type=unix,addr.path={socket}", name=name)
        self.qmp = self.server.qmp
        below = None
        for name in ("base", "active", "over"):
            file = {"driver": "file", "filename": self.path(name + ".qcow2")}
            more = {"backing": below} if below else {}
            if read_only and name != self.top:
                more["read-only"] = True
            self.qmp.command("blockdev-add", driver="qcow2", node_name=name, file=file, **more)
            below = name
            if name == self.top:
                break
        self.qmp.command("block-export-add", type="nbd", id="e", node_name=name, writable=True)
        self.uri = tidemark.nbd_uri(socket, name)

    def write(self, letter, cluster):
        where = f"{cluster * CLUSTER} {CLUSTER}"
        tidemark.io(self.uri, f"write -P {ord(letter)} {where}", fmt="raw")

    def run_job(self, command, **more):
        self.qmp.command(command, job_id="job", device=self.top, **more)

    def wait_state(self, state):
        while self.qmp.wait_event("JOB_STATUS_CHANGE")["data"]["status"] != state:
            pass

    def finish(self, command, **more):
        self.run_job(command, **more)
        if command == "block-commit" and not more.get("top_node"):
            self.wait_state("ready")
            self.qmp.command("job-complete", id="job")
        self.wait_state("null")
        return self.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"].get("error")

    # The three outcomes.

    def check_differentials(self, image, after):
        """Bitmaps of an image after a job; a superset of those in `after` unless exact."""
        drawn = {n: self.dirty(image, n) for n in ("bitmap1", "bitmap2", "bitmap3")}
        self.assertEqual(drawn["bitmap1"], "--11----")
        self.assertEqual(drawn["bitmap3"], "---1-11-")
        if after["exact"]:
            self.assertEqual(drawn["bitmap2"], after["bitmap2"])
        self.assertTrue(covers(drawn["bitmap2"], after["bitmap2"]))
        self.assertEqual(
            self.bitmaps(image), {"bitmap1": False, "bitmap2": after["recording"], "bitmap3": True}
        )
        differential = union(drawn["bitmap2"], drawn["bitmap3"])
        self.assertTrue(covers(differential, "---1111-"))
        if after["exact"]:
            self.assertEqual(differential, "---1111-")
        self.assertEqual(self.contents(image), "AABDCDD-")

    def outcomes(self, command, image, **more):
        for when, bitmap2, recording in (
            ("never", "---1111-", True),
            ("before", "----11--", False),
            ("after", "---1111-", False),
        ):
            with self.subTest(disabled=when):
                self.setUp()
                if more.get("top_node"):
                    self.overlay()
                self.start(read_only=when == "never")
                if when == "before":
                    self.qmp.command("block-dirty-bitmap-disable", node="base", name="bitmap2")
                self.assertIsNone(self.finish(command, **more))
                if when == "after":
                    self.qmp.command("block-dirty-bitmap-disable", node=image, name="bitmap2")
                self.server.stop()
                self.check_differentials(
                    self.path(image + ".qcow2"),
                    {"bitmap2": bitmap2, "recording": recording, "exact": True},
                )

    def test_outcomes_of_an_active_commit(self):
        self.outcomes("block-commit", "base")

    def test_outcomes_of_a_commit_in_the_middle(self):
        self.outcomes("block-commit", "base", top_node="active")

    def test_outcomes_of_a_stream(self):
        self.outcomes("block-stream", "active")

    # What guests write meanwhile.

    def test_after_the_pivot_the_base_records(self):
        self.start()
        self.run_job("block-commit")
        self.wait_state("ready")
        self.write("E", 0)
        self.qmp.command("job-complete", id="job")
        self.wait_state("null")
        self.write("F", 7)
        self.server.stop()
        self.assertEqual(self.contents(self.base), "EABDCDDF")
        self.assertEqual(self.dirty(self.base, "bitmap3"), "1--1-111")
        self.assertEqual(self.dirty(self.base, "bitmap2"), "1--11111")
        self.assertEqual(self.dirty(self.base, "bitmap1"), "--11----")

    def test_writes_during_a_stream_are_in_all_that_record(self):
        self.start()
        self.run_job("block-stream", auto_finalize=False)
        self.wait_state("pending")
        self.write("E", 0)
        self.qmp.command("job-finalize", id="job")
        self.wait_state("null")
        self.write("F", 7)
        self.server.stop()
        self.assertEqual(self.contents(self.active), "EABDCDDF")
        self.assertEqual(self.dirty(self.active, "bitmap3"), "1--1-111")
        self.assertEqual(self.dirty(self.active, "bitmap2"), "1--11111")

    def test_bitmaps_in_memory_are_carried_too(self):
        for command, more, stays in (
            ("block-commit", {}, "base"),
            ("block-commit", {"top_node": "active"}, "base"),
            ("block-stream", {"base_node": "base"}, "over"),
        ):
            with self.subTest(command=command, **more):
                self.setUp()
                if stays == "over" or more:
                    self.overlay()
                self.start()
                self.qmp.command(
                    "block-dirty-bitmap-add", node="active", name="mine", granularity=CLUSTER
                )
                self.assertIsNone(self.finish(command, **more))
                bitmap = self.qmp.bitmaps(stays)["mine"]
                self.assertEqual((bitmap["persistent"], bitmap["recording"]), (False, True))
                self.server.stop()

    # Failures.

    def test_a_cancelled_job_leaves_bitmaps_as_they_were(self):
        for command in "block-commit", "block-stream":
            with self.subTest(command=command):
                self.setUp()
                self.start(read_only=True)
                self.run_job(command, speed=1)
                self.qmp.command("block-job-cancel", device="job", force=True)
                self.wait_state("null")
                self.write("E", 7)
                self.server.stop()
                self.assertEqual(self.bitmaps(self.base), {"bitmap1": False, "bitmap2": True})
                self.assertEqual(self.bitmaps(self.active), {"bitmap3": True})
                self.assertEqual(self.contents(self.active), "AABDCDDE")
                self.assertEqual(self.dirty(self.active, "bitmap3"), "---1-111")
                self.assertTrue(covers(self.dirty(self.base, "bitmap2"), "----11--"))

    def test_a_restart_in_the_middle_of_a_job(self):
        for command in "block-commit", "block-stream":
            with self.subTest(command=command):
                self.setUp()
                self.start()
                self.run_job(command, speed=1)
                self.server.stop()
                self.assertEqual(self.bitmaps(self.base), {"bitmap1": False, "bitmap2": True})
                self.start("again")
                self.assertIsNone(self.finish(command))
                self.server.stop()
                image = self.base if command == "block-commit" else self.active
                # What the first stream has copied counts as stored by the active image.
                after = {"bitmap2": "---1111-", "recording": True}
                self.check_differentials(image, {**after, "exact": command == "block-commit"})


if __name__ == "__main__":
    unittest.main()
