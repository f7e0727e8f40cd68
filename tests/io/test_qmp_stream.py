# SPDX-License-Identifier: Apache-2.0
"""block-stream: copies what backing files have into an image in use, and drops them."""

import json
import os
import threading
import unittest

import nbd
import tidemark
from chain_case import MIB, ChainCase, Guest

IMAGES = ((24, 65536), (16, 4096), (32, 2 * MIB), (32, 65536))
STARTED = ["created", "running"]
ENDED = ["waiting", "pending", "COMPLETED", "concluded", "null"]


class StreamTest(ChainCase):
    def stream(self, device="d", job="job", **more):
        self.qmp.command("block-stream", device=device, job_id=job, **more)

    def test_a_guest_writes_meanwhile(self):
        self.make_chain(*IMAGES)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.stream(base_node="a", speed=40 * MIB)
        self.assertEqual(self.events("job"), STARTED + ENDED)
        self.assertEqual((self.last["len"], self.last["offset"]), (32 * MIB, 32 * MIB))
        self.assertGreater(guest.stop(), 20)
        self.assertEqual(self.backing("d"), (self.path("a.qcow2"), "qcow2"))
        self.qmp.command("blockdev-del", node_name="c")
        self.qmp.command("blockdev-del", node_name="b")
        self.server.stop()
        for name in "bc":
            tidemark.run("truncate", "-s0", self.path(name + ".qcow2"))
        self.names = "ad"
        self.assert_disk()

    def test_the_whole_chain(self):
        self.make_chain(*IMAGES)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.stream()
        self.assertEqual(self.events("job"), STARTED + ENDED)
        guest.stop()
        self.assertEqual(self.backing("d"), (None, None))
        self.server.stop()
        self.assert_disk()
        for name in "abc":
            tidemark.run("truncate", "-s0", self.path(name + ".qcow2"))
        self.names = "d"
        self.assert_disk()


    # How it ends.

    def test_bitmaps_have_the_writes_in_flight_at_its_end(self):
        """Each bitmap that is added to the image is a chance to miss one."""
        self.make_chain((64, "4k"), (64, "4k"))
        bitmaps = [f"bitmap{n}" for n in range(40)]
        for name in bitmaps:
            tidemark.img("bitmap", "--add", "-f", "qcow2", "-g", "4k", self.path("a.qcow2"), name)
        self.start()
        self.stream(auto_finalize=False, device="b")
        self.events("job", "pending")
        threads = [threading.Thread(target=self.write_blocks, args=(n, 8)) for n in range(8)]
        self.written, self.ending = set(), threading.Event()
        for thread in threads:
            thread.start()
        tidemark.wait_until(lambda: len(self.written) > 20, "writes")
        self.qmp.command("job-finalize", id="job")
        self.events("job")
        self.ending.set()
        for thread in threads:
            thread.join(60)
        self.server.stop()
        self.assertGreater(len(self.written), 50)
        for name in bitmaps[::-3]:
            dirty = set()
            for extent in self.bitmap_extents(self.path("b.qcow2"), name):
                if not extent["data"]:
                    dirty.update(range(extent["start"], extent["start"] + extent["length"], 4096))
            self.assertFalse(self.written - dirty, name)

    def write_blocks(self, number, count):
        """Blocks of 4 KiB, each once."""
        client = nbd.NBD()
        client.connect_uri(self.uri)
        for block in range(number, 64 * MIB // 4096, count):
            client.pwrite(bytes([number + 1]) * 4096, block * 4096)
            self.written.add(block * 4096)
            if self.ending.is_set():
                break
        client.shutdown()

    def test_what_no_image_has_is_not_allocated(self):
        """Nor does a piece with some data allocate all of itself."""
        self.names = "ab"
        self.create("a.qcow2", "4M")
        self.create("b.qcow2", "4M", options=["-b", "a.qcow2", "-F", "qcow2"])
        for at in "0 64k", "192k 64k", "3M 4k":
            tidemark.io(self.path("a.qcow2"), f"write -P 3 {at}", fmt="qcow2")
        self.start()
        self.stream("b")
        self.assertEqual(self.events("job"), STARTED + ENDED)
        self.server.stop()
        found = json.loads(tidemark.img("map", "--output=json", self.path("b.qcow2")).stdout)
        self.assertEqual(
            [(part["start"], part["length"]) for part in found if part["present"]],
            [(0, 65536), (192 * 1024, 65536), (3 * MIB, 65536)],
        )

    def test_the_offset_is_where_the_error_is(self):
        """Though pieces behind it are copied at the same time."""
        self.names = "ab"
        self.create("a.qcow2", "8M")
        self.create("b.qcow2", "8M", options=["-b", "a.qcow2", "-F", "qcow2"])
        tidemark.io(self.path("a.qcow2"), "write -P 3 0 8M", fmt="qcow2")
        place = json.loads(
            tidemark.img("map", "--output=json", self.path("a.qcow2")).stdout
        )[0]["offset"]
        rule = {"event": "read_aio", "sector": (place + MIB) // 512, "once": True}
        self.start(
            file_options={
                "a": lambda file: {"driver": "blkdebug", "image": file, "inject-error": [rule]}
            }
        )
        self.stream("b", on_error="stop")
        self.events("job", "paused")
        self.assertEqual((self.job()["offset"], self.job()["len"]), (MIB, 8 * MIB))
        self.qmp.command("block-job-resume", device="job")
        self.events("job")
        self.assertEqual(self.last["offset"], 8 * MIB)
        self.server.stop()

    def test_without_backing_file_it_ends_at_once(self):
        self.make_chain((2, 65536))
        self.start()
        self.stream("a")
        self.assertEqual(self.events("job"), STARTED + ENDED)
        self.assertEqual((self.last["len"], self.last["offset"]), (0, 0))

    def test_cancelled_it_changes_no_more_than_what_is_copied(self):
        self.make_chain(*IMAGES)
        self.start()
        guest = Guest(self.uri, self.disk)
        self.stream(speed=4 * MIB)
        self.wait_offset(2 * MIB)
        self.qmp.command("block-job-cancel", device="job")
        self.assertEqual(
            self.events("job"), STARTED + ["aborting", "CANCELLED", "concluded", "null"]
        )
        self.assertLess(self.last["offset"], self.last["len"])
        guest.stop()
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    def test_pause_and_speed(self):
        self.make_chain(*IMAGES)
        self.start()
        self.stream(speed=1 * MIB)
        self.wait_offset(1)
        self.qmp.command("job-pause", id="job")
        tidemark.wait_until(lambda: self.job()["status"] == "paused", "the pause")
        offset = self.job()["offset"]
        self.qmp.command("block-job-set-speed", device="job", speed=0)
        self.assertEqual(self.job()["offset"], offset)
        self.qmp.command("job-resume", id="job")
        self.assertEqual(self.events("job"), STARTED + ["paused", "running"] + ENDED)
        self.server.stop()
        self.assert_disk()

    def test_the_end_of_the_daemon_cancels_it(self):
        self.make_chain(*IMAGES)
        self.start()
        self.stream(speed=1)
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    # Errors.

    def broken(self, event, **rule):
        """One error below the image "b" or, of writes, "d"."""

        def wrap(file):
            return {"driver": "blkdebug", "image": file, "inject-error": [{"event": event, **rule}]}

        return {"b" if "read" in event else "d": wrap}

    def start_broken(self, event, **rule):
        self.make_chain(*((4, 65536),) * 4)
        self.start(file_options=self.broken(event, once=True, **rule))

    def test_an_error_is_reported(self):
        for event in "read_aio", "write_aio":
            with self.subTest(event=event):
                self.start_broken(event)
                self.stream(on_error="report")
                self.assertEqual(
                    self.events("job"),
                    STARTED + ["ERROR", "aborting", "COMPLETED", "concluded", "null"],
                )
                self.assertEqual(self.last["error"], "Input/output error")
                self.server.stop()
                self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
                self.assert_disk()

    def test_an_error_that_is_ignored_keeps_the_backing_file(self):
        self.start_broken("read_aio")
        self.stream(on_error="ignore")
        self.assertEqual(
            self.events("job"), STARTED + ["ERROR", "aborting", "COMPLETED", "concluded", "null"]
        )
        self.assertEqual(self.last["error"], "Input/output error")
        self.assertEqual(self.last["offset"], self.last["len"])
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    def test_an_error_stops_until_it_is_resumed(self):
        for event, policy, errno, status in (
            ("write_aio", "stop", 5, "failed"),
            ("write_aio", "enospc", 28, "nospace"),
            ("flush_to_disk", "enospc", 28, "nospace"),
        ):
            with self.subTest(event=event, policy=policy):
                self.start_broken(event, errno=errno)
                self.stream(on_error=policy)
                self.assertEqual(
                    self.events("job", "paused"), STARTED + ["ERROR", "paused"]
                )
                self.assertEqual(self.job()["io-status"], status)
                self.qmp.command("block-job-resume", device="job")
                self.assertEqual(self.events("job"), ["running"] + ENDED)
                self.server.stop()
                self.assertEqual(self.backing("d"), (None, None))
                self.assert_disk()

    def test_a_guest_does_not_see_an_error_of_the_copy(self):
        self.make_chain(*((4, 65536),) * 4)
        self.start(file_options=self.broken("write_aio", iotype="write"))
        self.stream(on_error="stop")
        self.events("job", "paused")
        tidemark.io(self.uri, "read 0 4M", fmt="raw")
        self.qmp.command("job-cancel", id="job")
        self.events("job")
        self.server.stop(expect=None)

    def test_a_flush_that_may_have_lost_data_fails_the_job(self):
        self.start_broken("flush_to_disk")
        self.stream(on_error="stop")
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
        self.stream(base_node="b", backing_file="x" * 1024)
        self.assertEqual(
            self.events("job"), STARTED + ["waiting", "pending", "aborting", "COMPLETED",
                                           "concluded", "null"]
        )
        self.assertIn("1024 bytes", self.last["error"])
        self.assertIn("busy", self.refused_del("c"))
        self.server.stop()
        self.assertEqual(self.backing("d"), ("c.qcow2", "qcow2"))
        self.assert_disk()

    def refused_del(self, name):
        return self.refused("blockdev-del", node_name=name).replace("in use", "busy")

    # Several jobs, other nodes.

    def test_two_parts_of_a_chain_at_once(self):
        """One of them into an image that is read-only otherwise."""
        self.make_chain(*((4, 65536),) * 5)
        self.start(read_only="abcd")
        self.stream("e", "upper", base_node="c", auto_finalize=False)
        self.stream("c", "lower", base_node="a", speed=65536)
        self.assertEqual(
            self.refused("block-stream", device="d", job_id="third", base_node="b"),
            "Node 'd' is busy: block device is in use by block job: stream",
        )
        guest = Guest(self.uri, self.disk)
        self.qmp.command("block-job-set-speed", device="lower", speed=0)
        tidemark.wait_until(
            lambda: {"id": "upper", "status": "pending"}.items()
            <= self.qmp.command("query-jobs")[0].items(),
            "the upper job to be pending",
        )
        self.qmp.command("job-finalize", id="upper")
        ended = 0
        while ended < 2:
            event = self.next_event(20)
            ended += event["event"] == "BLOCK_JOB_COMPLETED"
            self.assertNotIn("error", event["data"])
        tidemark.wait_until(lambda: not self.qmp.command("query-jobs"), "the end")
        guest.stop()
        self.assertTrue(self.qmp.node("c")["ro"])
        self.assertEqual(self.backing("e"), (self.path("c.qcow2"), "qcow2"))
        self.assertEqual(self.backing("c"), (self.path("a.qcow2"), "qcow2"))
        for name in "d", "b":
            self.qmp.command("blockdev-del", node_name=name)
        self.server.stop()
        self.names = "ace"
        self.assert_disk()

    def test_below_a_filter_of_the_user(self):
        self.make_chain(*((4, 65536),) * 3)
        self.start()
        self.qmp.command("blockdev-add", driver="copy-on-read", node_name="cor", file="b")
        self.qmp.command("blockdev-del", node_name="cor")
        self.qmp.command("blockdev-add", driver="blkdebug", node_name="filter", image="a")
        self.assertIn("is not a backing image", self.refused(
            "block-stream", device="c", job_id="job", base_node="filter"))
        self.qmp.command("blockdev-del", node_name="filter")
        self.stream("c", bottom="b", backing_file="a.qcow2")
        self.assertEqual(self.events("job"), STARTED + ENDED)
        self.assertEqual(self.backing("c"), ("a.qcow2", "qcow2"))
        self.server.stop()
        self.names = "ac"
        self.assert_disk()

    def test_mask_protocol(self):
        self.names = "b"
        tidemark.img("create", "-q", "-f", "raw", self.path("raw-base"), "4M")
        self.create("b.qcow2", "4M")
        self.disk = bytearray(4 * MIB)
        for mask, wanted in (True, "raw"), (False, "file"):
            self.nbd = self.path("nbd.sock")
            self.server = self.daemon()
            self.qmp = self.server.qmp
            base = {"driver": "file", "filename": self.path("raw-base"), "node-name": "base"}
            file = {"driver": "file", "filename": self.path("b.qcow2")}
            self.qmp.command(
                "blockdev-add", driver="qcow2", node_name="b", file=file, backing=base
            )
            self.stream("b", base_node="base", backing_mask_protocol=mask)
            self.assertEqual(self.events("job"), STARTED + ENDED)
            self.assertEqual(self.backing("b"), (self.path("raw-base"), wanted))
            self.server.stop()

    def test_names_lead_from_the_folder_of_the_overlay(self):
        """The daemon runs elsewhere, with relative names."""
        os.mkdir(self.path("images"))
        self.make_chain(*((4, 65536),) * 3)
        for name in "abc":
            os.rename(self.path(name + ".qcow2"), self.path(f"images/{name}.qcow2"))
        server = self.daemon(cwd=self.dir)
        self.qmp = server.qmp
        file = {"driver": "file", "filename": "images/c.qcow2"}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="c", file=file)
        self.qmp.command("block-stream", device="c", job_id="job", base="a.qcow2")
        self.assertEqual(self.events("job"), STARTED + ENDED)
        server.stop()
        self.assertEqual(self.backing("images/c")[0], "a.qcow2")
        os.rename(self.path("images"), self.path("moved"))
        self.names = ["moved/a", "moved/c"]
        self.assert_disk()

    # What is refused.

    def test_what_is_refused(self):
        self.make_chain(*((2, 65536),) * 3)
        self.start()
        for arguments, wanted in (
            ({"device": "x"}, "Cannot find device='x' nor node-name='x'"),
            ({"base": "x"}, "Can't find 'x' in the backing chain"),
            ({"base-node": "x"}, "Cannot find device='' nor node-name='x'"),
            ({"base-node": "c"}, "Node 'c' is not a backing image of 'c'"),
            ({"device": "b", "base-node": "c"}, "Node 'c' is not a backing image of 'b'"),
            ({"bottom": "x"}, "Cannot find device='' nor node-name='x'"),
            ({"device": "b", "bottom": "c"}, "Node 'c' is not in a chain starting from 'b'"),
            ({"backing-file": "x"}, "backing file specified, but streaming the entire chain"),
            ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
            ({"job-id": "1"}, "Invalid job ID '1'"),
            (
                {"base": "a.qcow2", "base-node": "a"},
                "'base' and 'base-node' cannot be specified at the same time",
            ),
            (
                {"bottom": "b", "base-node": "a"},
                "'bottom' and 'base-node' cannot be specified at the same time",
            ),
            (
                {"filter-node-name": "b"},
                "Could not create node: Duplicate nodes with node-name='b'",
            ),
        ):
            with self.subTest(wanted):
                answer = self.qmp.execute(
                    "block-stream", {"device": "c", "job-id": "job", **arguments}
                )
                self.assertEqual(answer["error"]["desc"], wanted)
                # QEMU looks at the speed when the job is there.
                seen = [e["data"]["status"] for e in self.qmp.events]
                self.assertEqual(seen, ["created", "null"] if "speed" in arguments else [])
                self.qmp.events.clear()
        self.assertEqual(self.qmp.command("query-jobs"), [])


if __name__ == "__main__":
    unittest.main()
