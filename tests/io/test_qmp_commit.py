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
        for sizes in ((16, 4, 8, 16), (4, 16, 8, 16), (8, 4, 16, 8)):
            with self.subTest(sizes=sizes):
                self.make_chain(*((size, 65536) for size in sizes))
                self.start()
                self.commit(top_node="c", base_node="a")
                self.assertEqual(self.events("job"), STARTED + ENDED)
                self.drop("c", "b")
                self.server.stop()
                self.empty("c", "b")
                self.assert_disk()

    def test_a_filter_on_the_base_goes_with_the_images(self):
        for name in "base", "mid", "top":
            self.create(name, "2M")
        tidemark.io(self.path("mid"), "write -P 1 64k 64k", fmt="qcow2")
        chain = "".join(
            f"{prefix}driver=qcow2,{prefix}node-name={name},{prefix}file.driver=file,"
            f"{prefix}file.filename={self.path(name)},"
            for name, prefix in (("top", ""), ("mid", "backing."), ("base", "backing.backing.file."))
        )
        self.server = self.daemon(
            "--object", "throttle-group,id=g", "--blockdev",
            chain + "backing.backing.driver=throttle,backing.backing.node-name=slow,"
            "backing.backing.throttle-group=g",
        )  # fmt: skip
        qmp = self.server.qmp
        qmp.command("block-commit", job_id="j", device="top", top_node="mid", base_node="base",
                    backing_file=self.path("base"))  # fmt: skip
        self.assertNotIn("error", qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])
        names = {n["node-name"] for n in qmp.command("query-named-block-nodes", flat=True)}
        self.assertEqual({n for n in names if n[0] != "#"}, {"top", "base"})
        self.server.stop()
        tidemark.io(self.path("base"), "read -P 1 64k 64k", fmt="qcow2")

    def test_what_no_image_shows_of_a_larger_base_stays(self):
        for name, size in ("base", "4M"), ("mid", "2M"), ("top", "2M"):
            self.create(name, size)
        tidemark.io(self.path("base"), "write -P 1 0 4M", fmt="qcow2")
        self.server = self.daemon(
            "--blockdev", f"qcow2,node-name=base,file.driver=file,file.filename={self.path('base')}",
            "--blockdev", "qcow2,node-name=mid,backing=base,file.driver=file,"
            f"file.filename={self.path('mid')}",
            "--blockdev", "qcow2,node-name=top,backing=mid,file.driver=file,"
            f"file.filename={self.path('top')}",
        )  # fmt: skip
        self.server.qmp.command("block-commit", job_id="j", device="top", top_node="mid",
                                base_node="base", backing_file="base")  # fmt: skip
        event = self.server.qmp.wait_event("BLOCK_JOB_COMPLETED")
        self.assertEqual(event["data"]["len"], 2 * MIB)
        self.server.quit()
        tidemark.io(self.path("base"), "read -P 1 2M 2M", fmt="qcow2")

    def test_cancelled_the_disk_is_as_before(self):
        self.make_chain(*IMAGES)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.commit(top_node="c", base_node="a", speed=4 * MIB)
        self.wait_offset(2 * MIB)
        self.qmp.command("block-job-cancel", device="job")
        self.assertEqual(
            self.events("job"), STARTED + ["aborting", "CANCELLED", "concluded", "null"]
        )
        guest.stop()
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    def test_pause_and_the_end_of_the_daemon(self):
        self.make_chain(*IMAGES)
        self.start()
        self.commit(top_node="c", base_node="a", speed=MIB)
        self.wait_offset(1)
        self.qmp.command("job-pause", id="job")
        tidemark.wait_until(lambda: self.job()["status"] == "paused", "the pause")
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    # Nodes that are read-only, as backing files are by default.

    def read_only(self):
        return "".join(n for n in self.names if self.qmp.node(n) and self.qmp.node(n)["ro"])

    def test_the_base_is_read_only_before_and_after(self):
        """The overlay too, as it is not the one that guests write to."""
        self.make_chain(*IMAGES, (32, 65536))
        self.start(read_only="abcd")
        guest = Guest(self.uri, self.disk)
        self.commit(device="e", top_node="c", base_node="a", auto_finalize=False)
        self.events("job", "PENDING")
        self.assertEqual(self.read_only(), "bcd")
        self.qmp.command("job-finalize", id="job")
        self.assertEqual(self.events("job"), ENDED[2:])
        self.assertEqual(self.read_only(), "abcd")
        guest.stop()
        self.assertEqual(self.backing("d"), (self.path("a.qcow2"), "qcow2"))
        self.drop("c", "b")
        self.server.stop()
        self.empty("c", "b")
        self.assert_disk()

    def test_the_base_is_read_only_after_a_failure(self):
        self.start_broken("write_aio", "a", read_only="abc", once=True)
        for how in "error", "cancel":
            self.commit(top_node="c", base_node="a", speed=0 if how == "error" else 1)
            if how == "cancel":
                self.qmp.command("job-cancel", id="job")
            self.events("job")
            self.assertEqual(self.read_only(), "abc")
        self.server.stop()
        self.assert_disk()

    # Errors.

    def start_broken(self, event, name, read_only=None, **rule):
        def wrap(file):
            rules = [{"event": event, **rule}]
            return {"driver": "blkdebug", "image": file, "inject-error": rules}

        self.make_chain(*((4, 65536),) * 4)
        self.start(file_options={name: wrap}, read_only=read_only)

    def test_an_error_is_reported(self):
        for event, name, operation in ("read_aio", "b", "read"), ("write_aio", "a", "write"):
            with self.subTest(operation=operation):
                self.start_broken(event, name, once=True)
                self.commit(top_node="c", base_node="a")
                self.assertEqual(self.events("job", "ERROR"), STARTED + ["ERROR"])
                self.assertEqual(self.last["operation"], operation)
                self.assertEqual(
                    self.events("job"), ["aborting", "COMPLETED", "concluded", "null"]
                )
                self.assertEqual(self.last["error"], "Input/output error")
                self.server.stop()
                self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
                self.assert_disk()

    def test_an_error_that_is_ignored_is_tried_again(self):
        self.start_broken("write_aio", "a", once=True)
        self.commit(top_node="c", base_node="a", on_error="ignore")
        self.assertEqual(self.events("job"), STARTED + ["ERROR"] + ENDED)
        self.assertNotIn("error", self.last)
        self.drop("c", "b")
        self.server.stop()
        self.empty("c", "b")
        self.assert_disk()

    def test_an_error_stops_until_it_is_resumed(self):
        for event, policy, errno, status in (
            ("write_aio", "stop", 5, "failed"),
            ("write_aio", "enospc", 28, "nospace"),
            ("flush_to_disk", "enospc", 28, "nospace"),
        ):
            with self.subTest(event=event, policy=policy):
                self.start_broken(event, "a", once=True, errno=errno)
                self.commit(top_node="c", base_node="a", on_error=policy)
                self.assertEqual(self.events("job", "paused"), STARTED + ["ERROR", "paused"])
                self.assertEqual(self.job()["io-status"], status)
                self.qmp.command("block-job-resume", device="job")
                self.assertEqual(self.events("job"), ["running"] + ENDED)
                self.drop("c", "b")
                self.server.stop()
                self.empty("c", "b")
                self.assert_disk()

    def test_a_flush_that_may_have_lost_data_fails_the_job(self):
        self.start_broken("flush_to_disk", "a", once=True)
        self.commit(top_node="c", base_node="a", on_error="stop")
        self.assertEqual(
            self.events("job"),
            STARTED + ["ERROR", "aborting", "COMPLETED", "concluded", "null"],
        )
        self.assertEqual(self.last["error"], "Input/output error")
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    def test_a_header_that_cannot_be_written_leaves_the_graph(self):
        self.make_chain(*((4, 65536),) * 4)
        self.start()
        self.commit(top_node="c", base_node="a", backing_file="x" * 1024)
        self.assertEqual(
            self.events("job"),
            STARTED + ["waiting", "pending", "aborting", "COMPLETED", "concluded", "null"],
        )
        self.assertIn("1024 bytes", self.last["error"])
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    # The graph.

    def test_two_overlays_of_the_top(self):
        self.make_chain(*((4, 65536),) * 4)
        other = self.create("other.qcow2", "4M", options=["-b", "c.qcow2", "-F", "qcow2"])
        self.start()
        file = {"driver": "file", "filename": other}
        self.qmp.command(
            "blockdev-add", driver="qcow2", node_name="other", file=file, backing="c"
        )
        expected = self.read("other")
        self.commit(top_node="c", base_node="a", backing_file="a.qcow2")
        self.assertEqual(self.events("job"), STARTED + ENDED)
        for name in "d", "other":
            self.assertEqual(self.backing(name), ("a.qcow2", "qcow2"))
        self.drop("c", "b")
        self.server.stop()
        self.empty("c", "b")
        self.assert_disk()
        self.assert_disk("other", expected)

    def read(self, name):
        """What an image shows, in another process."""
        raw = self.path("read.raw")
        image = self.path(name + ".qcow2")
        tidemark.img("convert", "-U", "-f", "qcow2", "-O", "raw", image, raw)
        with open(raw, "rb") as file:
            return file.read()

    def test_a_reader_of_an_image_between_is_in_the_way(self):
        """What that one shows would change."""
        self.make_chain(*((4, 65536),) * 4)
        self.start()
        self.qmp.command("block-export-add", type="nbd", id="b", node_name="b")
        for top in "c", "d":
            self.assertIn(
                "Permission conflict on node 'b'",
                self.refused(
                    "block-commit", device="d", job_id="job", top_node=top, base_node="a"
                ),
            )
        tidemark.io(self.uri, "write -P 7 0 64k", fmt="raw")
        self.disk[:65536] = b"\7" * 65536
        self.server.stop()
        self.assert_disk()

    def test_above_a_stream(self):
        """A stream of the base, below, at the same time."""
        self.make_chain(*((4, 65536),) * 5)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.qmp.command("block-stream", device="b", job_id="lower", speed=MIB)
        self.commit("upper", "e", top_node="d", base_node="c", speed=MIB)
        self.assertIn(
            "is busy: block device is in use by block job: commit",
            self.refused(
                "block-commit", device="e", job_id="third", top_node="c", base_node="b"
            ),
        )
        for name in "upper", "lower":
            self.qmp.command("block-job-set-speed", device=name, speed=0)
        tidemark.wait_until(lambda: not self.qmp.command("query-jobs"), "the end")
        guest.stop()
        self.assertEqual(self.backing("e")[0], self.path("c.qcow2"))
        self.assertEqual(self.backing("b")[0], None)
        self.server.stop()
        self.names = "bce"
        self.assert_disk()

    def test_a_chain_that_a_job_needs_is_not_changed(self):
        self.make_chain(*((4, 65536),) * 4)
        self.start()
        self.commit(top_node="c", base_node="a", speed=1)
        for name in "abcd":
            self.assertEqual(
                self.refused("blockdev-del", node_name=name),
                f"Node '{name}' is busy: block device is in use by block job: commit",
            )
        self.qmp.command("job-cancel", id="job")
        self.events("job")
        self.server.stop()
        self.assert_disk()

    def test_what_is_refused(self):
        self.make_chain(*((2, 65536),) * 3)
        self.start()
        for arguments, wanted in (
            ({"device": "x"}, "Device 'x' not found"),
            ({"device": "b"}, "Need a root block node"),
            ({"base": "x"}, "Can't find 'x' in the backing chain"),
            ({"top": "x"}, "Top image file x not found"),
            ({"base-node": "x"}, "Cannot find device='' nor node-name='x'"),
            ({"top-node": "x"}, "Cannot find device='' nor node-name='x'"),
            ({"base-node": "c"}, "cannot commit an image into itself"),
            ({"top-node": "a"}, "cannot commit an image into itself"),
            ({"top-node": "a", "base-node": "b"}, "'b' is not in this backing file chain"),
            ({"top": "b.qcow2", "top-node": "b"}, "'top-node' and 'top' are mutually exclusive"),
            (
                {"base": "a.qcow2", "base-node": "a"},
                "'base-node' and 'base' are mutually exclusive",
            ),
            ({"backing-file": "x"}, "'backing-file' specified, but 'top' is the active layer"),
            ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
            ({"job-id": "1"}, "Invalid job ID '1'"),
            ({"top-node": "b", "filter-node-name": "b"}, "Duplicate nodes with node-name='b'"),
            ({"filter-node-name": "b"}, "Duplicate nodes with node-name='b'"),
        ):
            with self.subTest(wanted):
                answer = self.qmp.execute(
                    "block-commit", {"device": "c", "job-id": "job", **arguments}
                )
                self.assertEqual(answer["error"]["desc"], wanted)
        self.assertEqual(self.qmp.command("query-jobs"), [])
        self.server.stop()
        self.assert_disk()


if __name__ == "__main__":
    unittest.main()
