# SPDX-License-Identifier: Apache-2.0
"""Several jobs in one backing chain: what they keep from each other, and what they do not."""

import os
import unittest

import tidemark
from chain_case import MIB, ChainCase, Guest

BUSY = "Node '{}' is busy: block device is in use by block job: {}"


class ChainJobsTest(ChainCase):
    """a <- b <- c <- d <- e <- f, with a guest on f."""

    def start_six(self, guest=True):
        self.make_chain(*((8, 65536),) * 6, each=MIB)
        self.start(read_only="abcde")
        self.guest = Guest(self.uri, self.disk) if guest else None

    def commit(self, job, top, base, device="f", **more):
        self.qmp.command(
            "block-commit", device=device, job_id=job, top_node=top, base_node=base, **more
        )

    def stream(self, job, device, base, **more):
        self.qmp.command("block-stream", device=device, job_id=job, base_node=base, **more)

    def below(self, name):
        """The name of the backing node."""
        graph = self.qmp.command("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        for edge in graph["edges"]:
            if names[edge["parent"]] == name and edge["name"] == "backing":
                return names[edge["child"]]
        return None

    def unlimited(self, *jobs):
        for job in jobs:
            self.qmp.command("block-job-set-speed", device=job, speed=0)

    def wait_for_the_end(self):
        tidemark.wait_until(lambda: not self.qmp.command("query-jobs"), "the end of all jobs")
        for event in self.qmp.events:
            self.assertNotIn("error", event["data"])

    def assert_chain(self, *names):
        """These images are left, each records the next one, and none of the others is needed."""
        if self.guest:
            self.guest.stop()
        for above, below in zip(names, names[1:]):
            self.assertEqual(self.backing(above)[0].rpartition("/")[2], below + ".qcow2")
            self.assertEqual(self.below(above), below)
        self.assertEqual([n for n in "abcde" if not self.qmp.node(n)["ro"]], [])
        gone = [name for name in reversed(self.names) if name not in names]
        for name in gone:
            self.qmp.command("blockdev-del", node_name=name)
        self.server.stop()
        for name in gone:
            tidemark.run("truncate", "-s0", self.path(name + ".qcow2"))
        self.names = "".join(sorted(names))
        self.assert_disk()

    # A stream above a commit, as far as the commit's filter: the stream needs nothing below it.

    def test_a_commit_ends_before_the_stream_above(self):
        self.start_six()
        self.commit("commit", "c", "a", filter_node_name="filter", speed=65536)
        self.stream("stream", "e", "filter", speed=65536)
        self.unlimited("commit")
        self.events("commit")
        self.assertEqual(self.below("d"), "a")
        self.unlimited("stream")
        self.wait_for_the_end()
        self.assert_chain("f", "e", "a")

    def test_a_commit_ends_after_the_stream_above(self):
        """The stream's image has become the one above the commit."""
        self.start_six()
        self.commit("commit", "c", "a", filter_node_name="filter", speed=65536)
        self.stream("stream", "e", "filter")
        self.events("stream")
        self.assertEqual(self.backing("e")[0], self.path("c.qcow2"))
        self.unlimited("commit")
        self.wait_for_the_end()
        self.assert_chain("f", "e", "a")

    def finalize_both(self, *order):
        self.start_six()
        self.commit("commit", "c", "a", filter_node_name="filter", auto_finalize=False)
        self.stream("stream", "e", "filter", auto_finalize=False)
        tidemark.wait_until(
            lambda: [j["status"] for j in self.qmp.command("query-jobs")] == ["pending"] * 2,
            "both jobs to be pending",
        )
        for job in order:
            self.qmp.command("job-finalize", id=job)
        self.wait_for_the_end()
        self.assert_chain("f", "e", "a")

    def test_both_are_finalized_the_commit_first(self):
        self.finalize_both("commit", "stream")

    def test_both_are_finalized_the_stream_first(self):
        self.finalize_both("stream", "commit")

    def test_a_cancelled_commit_leaves_the_stream_its_base(self):
        self.start_six()
        self.commit("commit", "c", "a", filter_node_name="filter", speed=65536)
        self.stream("stream", "e", "filter", speed=65536)
        self.qmp.command("block-job-cancel", device="commit")
        self.events("commit")
        self.unlimited("stream")
        self.wait_for_the_end()
        self.assert_chain("f", "e", "c", "b", "a")

    def test_a_base_below_the_filter_of_a_commit_is_refused(self):
        """The stream would need the link to a filter that goes before the stream ends."""
        self.start_six()
        self.commit("commit", "c", "a", filter_node_name="filter", speed=65536)
        self.assertEqual(
            self.refused("block-stream", device="e", job_id="stream", base_node="c"),
            "Cannot freeze 'backing' link to 'filter'",
        )
        self.unlimited("commit")
        self.wait_for_the_end()
        self.assert_chain("f", "e", "d", "a")

    # Commits.

    def test_another_commit_of_the_same_device(self):
        self.start_six()
        self.commit("lower", "b", "a", speed=65536)
        self.assertEqual(
            self.refused("block-commit", device="f", job_id="upper", top_node="d", base_node="c"),
            BUSY.format("f", "commit"),
        )
        self.unlimited("lower")
        self.wait_for_the_end()
        self.assert_chain("f", "e", "d", "c", "a")

    def test_an_active_commit_above_a_stream(self):
        self.start_six()
        self.stream("stream", "c", "a", speed=65536)
        self.qmp.command("block-commit", device="f", job_id="commit", base_node="d")
        self.assertEqual(
            self.refused("block-stream", device="e", job_id="third", base_node="d"),
            BUSY.format("e", "commit"),
        )
        self.unlimited("stream")
        self.events("stream")
        tidemark.wait_until(lambda: self.job("commit")["status"] == "ready", "the commit")
        self.qmp.command("block-job-complete", device="commit")
        self.wait_for_the_end()
        self.guest.stop()
        self.guest = None
        for name in "f", "e", "b":
            self.qmp.command("blockdev-del", node_name=name)
        self.server.stop()
        self.names = "acd"
        self.assert_disk()

    # What is refused, and which node is named.

    def test_nodes_of_a_stream(self):
        self.start_six(guest=False)
        self.stream("stream", "d", "a", filter_node_name="filter", speed=1)
        for command, arguments, busy in (
            ("block-stream", {"device": "e", "base-node": "c"}, "filter"),
            ("block-stream", {"device": "c", "base-node": "b"}, "c"),
            ("block-stream", {"device": "d"}, "filter"),
            ("block-commit", {"device": "f", "base-node": "d"}, "filter"),
            ("block-commit", {"device": "f", "top-node": "c", "base-node": "a"}, "c"),
        ):
            with self.subTest(command=command, **arguments):
                arguments = {key.replace("-", "_"): value for key, value in arguments.items()}
                wanted = "d" if arguments["device"] == "d" else busy
                self.assertEqual(
                    self.refused(command, job_id="j", **arguments), BUSY.format(wanted, "stream")
                )
        self.qmp.command("job-cancel", id="stream")
        self.events("stream")
        # A commit that would write the header of an image that the stream takes out.
        self.stream("stream", "d", "b", speed=1)
        self.assertEqual(
            self.refused("block-commit", device="f", job_id="j", top_node="b", base_node="a"),
            BUSY.format("c", "stream"),
        )
        self.server.stop()
        self.assert_disk()

    def test_nodes_of_a_commit(self):
        self.start_six(guest=False)
        self.commit("commit", "d", "b", filter_node_name="filter", speed=1)
        for device, base, busy in (
            ("b", "a", "b"), ("e", "a", "d"), ("c", "a", "c"), ("e", "c", "d"), ("f", "e", "f")
        ):
            with self.subTest(device=device, base=base):
                self.assertEqual(
                    self.refused("block-stream", device=device, job_id="j", base_node=base),
                    BUSY.format(busy, "commit"),
                )
        self.server.stop()
        self.assert_disk()

    def test_links_that_a_job_needs_stay(self):
        self.start_six(guest=False)
        self.stream("stream", "e", "b", speed=1)
        nodes = {node["node-name"]: node for node in self.blockdevs(read_only="abcde")}
        self.assertEqual(
            self.refused("blockdev-reopen", options=[{**nodes["d"], "backing": "b"}]),
            "Cannot change frozen 'backing' link from 'd' to 'c'",
        )
        self.server.stop()
        self.assert_disk()

    def start_five(self):
        self.make_chain(*((2, 65536),) * 5)
        self.server = self.daemon()
        self.qmp = self.server.qmp
        self.qmp.command("blockdev-add", **self.nested("abcde"))

    def test_the_chain_down_to_a_bottom_stays(self):
        self.start_five()
        filter_ = {"driver": "copy-on-read", "node-name": "filter", "file": "e", "bottom": "c"}
        self.qmp.command("blockdev-add", **filter_)
        self.qmp.command("blockdev-add", driver="null-co", node_name="t", size=2 * MIB)
        d_c, e_d, c_ = "from 'd' to 'c'", "from 'e' to 'd'", "Cannot change 'backing' link to 'c'"
        create, replace = "Could not create node: ", "Could not replace node: "
        snapshot = {"node_name": "e", "snapshot_file": self.path("x"), "snapshot_node_name": "x"}
        for desc, command, more in (
            (c_, "block-commit", {"device": "filter", "top_node": "c", "base_node": "a"}),
            ("Cannot change 'file' link from 'filter' to 'e'", "block-commit",
             {"device": "filter", "base_node": "a"}),
            (f"{create}Cannot change 'backing' link {e_d}", "block-stream",
             {"device": "e", "base_node": "a"}),
            (f"{create}Cannot change 'backing' link {d_c}", "block-stream", {"device": "d"}),
            (replace + c_, "block-stream", {"device": "c", "base_node": "a"}),
            (replace + "Cannot change 'file' link to 'e'", "blockdev-backup",
             {"device": "e", "target": "t", "sync": "full"}),
            ("Cannot change 'file' link to 'e'", "blockdev-snapshot-sync", snapshot),
            ("Cannot change 'file' link from 'filter' to 'e'", "blockdev-add",
             {**filter_, "file": "filter", "node-name": "other"}),
        ):  # fmt: skip
            more = more if command.endswith(("add", "sync")) else {"job_id": "job", **more}
            with self.subTest(command, **more):
                self.assertEqual(self.refused(command, **more), desc)
        reopened = {**self.nested("abcde"), "backing": "b"}
        self.assertEqual(
            self.refused("blockdev-reopen", options=[reopened]),
            f"Cannot change frozen 'backing' link {e_d}",
        )
        self.assertFalse(os.path.exists(self.path("x")))
        # What leaves the chain as it is, or changes what is below it.
        for command, more in (
            ("block-commit", {"device": "filter", "top_node": "b", "base_node": "a"}),
            ("blockdev-mirror", {"device": "filter", "target": "t", "sync": "top"}),
        ):
            self.qmp.command(command, job_id=command, **more)
            if command == "blockdev-mirror":
                self.qmp.wait_event("BLOCK_JOB_READY")
                self.qmp.command("job-cancel", id=command)
            self.assertEqual(self.events(command)[-2:], ["concluded", "null"])
        self.qmp.command("blockdev-del", node_name="filter")
        self.qmp.command("block-stream", job_id="job", device="e")
        self.assertEqual(self.events("job")[-3:], ["COMPLETED", "concluded", "null"])
        self.qmp.command("blockdev-del", node_name="t")
        self.server.quit()

    def test_no_bottom_below_what_a_job_changes(self):
        self.start_five()
        filter_ = {"driver": "copy-on-read", "node-name": "filter", "file": "e", "bottom": "b"}
        throttle = {"driver": "throttle", "throttle-group": "g", "file": filter_}
        self.qmp.command("object-add", qom_type="throttle-group", id="g")
        for wanted, command, more in (
            ("Cannot freeze 'backing' link to 'job-filter'", "block-commit",
             {"device": "e", "top_node": "c", "base_node": "a"}),
            ("Cannot change 'file' link from 'job-filter' to 'd'", "block-stream",
             {"device": "d", "base_node": "a"}),
        ):  # fmt: skip
            self.qmp.command(
                command, job_id="job", auto_finalize=False, filter_node_name="job-filter", **more
            )
            self.qmp.wait_event("BLOCK_JOB_PENDING")
            for options in filter_, {**throttle, "node-name": "throttle"}:
                with self.subTest(command, **options):
                    self.assertEqual(self.refused("blockdev-add", **options), wanted)
                    self.assertIsNone(self.qmp.node("filter"))
            self.qmp.command("job-cancel", id="job")
            self.events("job")
        self.server.quit()

    def test_a_mirror_of_a_backing_image(self):
        """Of two mistakes, that which QEMU reports."""
        self.start_five()
        for target in "b", "d":
            self.assertEqual(
                self.refused("blockdev-mirror", device="c", target=target, sync="full", job_id="j"),
                "Need a root block node",
            )
        self.server.quit()

    def test_a_backing_image_is_not_deleted(self):
        self.start_six(guest=False)
        self.assertEqual(
            self.refused("blockdev-del", node_name="c"),
            "Node 'c' is busy: node is used as backing hd of 'd'",
        )
        self.server.stop()

    def test_a_job_needs_an_id(self):
        self.start_six(guest=False)
        self.qmp.command("blockdev-add", driver="null-co", node_name="t", size=8 * MIB)
        for command, more in (
            ("block-stream", {}), ("block-commit", {}),
            ("blockdev-backup", {"target": "t", "sync": "full"}),
            ("blockdev-mirror", {"target": "t", "sync": "full"}),
        ):
            with self.subTest(command=command):
                self.assertEqual(self.refused(command, device="f", **more), "Invalid job ID ''")
        self.server.stop()

    def nested(self, images, **more):
        """The options of the last image, with those of all that are below it."""
        node = None
        for name in images:
            file = {"driver": "file", "node-name": name + "-file",
                    "filename": self.path(name + ".qcow2")}  # fmt: skip
            node = {"driver": "qcow2", "node-name": name, "file": file, "backing": node,
                    **more.get(name, {})}  # fmt: skip
        return node

    def test_images_that_stay_are_reopened_with_the_one_above(self):
        """As before those between them left."""
        for command, more in (
            ("block-stream", {"base_node": "a"}),
            ("block-commit", {"top_node": "b", "base_node": "a"}),
        ):
            with self.subTest(command):
                self.make_chain(*((2, 65536),) * 3)
                self.server = self.daemon()
                self.qmp = self.server.qmp
                self.qmp.command("blockdev-add", **self.nested("abc"))
                self.qmp.command(command, job_id="job", device="c", **more)
                self.assertEqual(self.events("job")[-3:], ["COMPLETED", "concluded", "null"])
                self.assertEqual(self.qmp.node("a")["detect_zeroes"], "off")
                changed = self.nested("ac", a={"detect-zeroes": "on"}, c={"read-only": True})
                self.qmp.command("blockdev-reopen", options=[changed])
                self.assertEqual(self.qmp.node("a")["detect_zeroes"], "on")
                self.assertTrue(self.qmp.node("c")["ro"])
                self.server.stop()
                self.assert_disk()


if __name__ == "__main__":
    unittest.main()
