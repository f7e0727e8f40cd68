# SPDX-License-Identifier: Apache-2.0
"""Mirrors: verbs, errors, bitmaps, drive-mirror."""

import os
import shutil
import signal
import time

import tidemark
from mirror_case import MIB, SIZE, MirrorCase
from qmp import QmpError


class Verbs(MirrorCase):
    def statuses(self):
        return [
            e["data"]["status"] if e["event"] == "JOB_STATUS_CHANGE" else e["event"]
            for e in self.qmp.events
        ]

    def test_events(self):
        self.start()
        self.mirror()
        tidemark.wait_until(lambda: self.job()["ready"], "the job")
        self.qmp.command("job-complete", id="j")
        tidemark.wait_until(lambda: self.job() is None, "the end of the job")
        self.assertEqual(
            self.statuses(),
            "created running ready BLOCK_JOB_READY waiting pending BLOCK_JOB_COMPLETED concluded "
            "null".split(),
        )

    def test_events_of_a_soft_cancel(self):
        self.start()
        self.mirror()
        tidemark.wait_until(lambda: self.job()["ready"], "the job")
        self.qmp.command("block-job-cancel", device="j")
        tidemark.wait_until(lambda: self.job() is None, "the end of the job")
        self.assertEqual(
            self.statuses(),
            "created running ready BLOCK_JOB_READY waiting pending BLOCK_JOB_COMPLETED concluded "
            "null".split(),
        )

    def test_cancel_in_all_states(self):
        self.start()
        for state in "running", "paused", "ready", "standby":
            for command, more in (
                ("job-cancel", {"id": "j"}),
                ("block-job-cancel", {"device": "j", "force": True}),
            ):
                with self.subTest(state=state, command=command):
                    self.mirror(speed=0 if state in ("ready", "standby") else 1)
                    if state in ("ready", "standby"):
                        self.wait_ready()
                    if state in ("paused", "standby"):
                        self.qmp.command("job-pause", id="j")
                    tidemark.wait_until(lambda: self.job()["status"] == state, state)
                    self.qmp.command(command, **more)
                    self.wait_end("BLOCK_JOB_CANCELLED")
                    self.assertEqual(self.exported_node(), "s")
                    self.qmp.events.clear()
        self.assert_target_is(self.model, self.source)

    def test_soft_cancel_before_ready(self):
        self.start()
        self.mirror(speed=1)
        self.qmp.command("block-job-cancel", device="j")
        self.wait_end("BLOCK_JOB_CANCELLED")

    def test_cancel_after_complete_does_not_pivot(self):
        self.start()
        self.mirror()
        self.wait_ready()
        self.qmp.command("job-pause", id="j")
        tidemark.wait_until(lambda: self.job()["status"] == "standby", "standby")
        self.qmp.command("job-complete", id="j")
        with self.assertRaisesRegex(QmpError, "The block job for device 'j' is currently paused"):
            self.qmp.command("block-job-cancel", device="j")
        self.assertEqual(self.job()["status"], "standby")
        self.qmp.command("block-job-cancel", device="j", force=True)
        self.wait_end("BLOCK_JOB_CANCELLED")
        self.assertEqual(self.exported_node(), "s")

    def test_complete_while_paused(self):
        self.start()
        self.mirror()
        self.wait_ready()
        self.qmp.command("job-pause", id="j")
        tidemark.wait_until(lambda: self.job()["status"] == "standby", "standby")
        self.qmp.command("job-complete", id="j")
        time.sleep(0.2)
        self.assertEqual(self.job()["status"], "standby")
        self.qmp.command("job-resume", id="j")
        self.wait_end()
        self.assertEqual(self.exported_node(), "t")

    def test_verbs_that_are_refused(self):
        self.start()
        self.mirror(speed=1)
        with self.assertRaisesRegex(
            QmpError, "Job 'j' in state 'running' cannot accept command verb 'complete'"
        ):
            self.qmp.command("job-complete", id="j")
        with self.assertRaisesRegex(QmpError, "Job type does not support change"):
            self.qmp.command("block-job-change", id="j", type="backup")
        with self.assertRaisesRegex(QmpError, "Block job 'nope' not found"):
            self.qmp.command(
                "block-job-change", id="nope", type="mirror", copy_mode="background"
            )

    def test_speed(self):
        self.start()
        begin = time.monotonic()
        self.mirror(speed=5 * MIB)
        self.wait_ready()
        # 4.1 MiB of data, of which the first slice is free
        self.assertGreater(time.monotonic() - begin, 0.5)
        self.qmp.command("job-cancel", id="j")
        self.wait_end("BLOCK_JOB_CANCELLED")

    def test_a_paused_job_runs_again_before_a_cancel_is_answered(self):
        self.start()
        self.mirror(speed=1)
        self.qmp.command("job-pause", id="j")
        tidemark.wait_until(lambda: self.job()["status"] == "paused", "the pause")
        self.qmp.events.clear()
        self.qmp.command("job-cancel", id="j")
        states = [e["data"]["status"] for e in self.qmp.events if e["event"] == "JOB_STATUS_CHANGE"]
        self.assertEqual(states[:1], ["running"])
        self.wait_end("BLOCK_JOB_CANCELLED")

    def test_source_is_used(self):
        self.start()
        self.mirror()
        self.wait_ready()
        for node in "s", "t":
            with self.assertRaises(QmpError):
                self.qmp.command("blockdev-del", node_name=node)
        with self.assertRaisesRegex(QmpError, "Permission conflict on node 't'"):
            self.qmp.command("block-export-add", type="nbd", id="e2", node_name="t", name="t2")
        self.assert_refused("Need a root block node", job_id="j2", target="t-file")

    def test_errors_of_arguments(self):
        self.start()
        granularity = "Parameter 'granularity' expects a value in range [512B, 64MB]"
        self.assert_refused(granularity, granularity=256)
        self.assert_refused(granularity, granularity=128 * MIB)
        self.assert_refused("Parameter 'granularity' expects a power of 2", granularity=1000)
        self.assert_refused("Invalid parameter 'buf-size'", buf_size=-1)
        self.assert_refused("Parameter 'speed' expects a non-negative value", speed=-1)
        self.assert_refused("Can't mirror node into itself", target="s")
        self.assert_refused("Cannot find device='nope' nor node-name='nope'", target="nope")
        self.assert_refused("Cannot find device='nope' nor node-name='nope'", device="nope")
        self.assert_refused("Failed to find node with node-name='nope'", replaces="nope")
        self.assert_refused(
            "Failed to find node with node-name='nope'", replaces="nope", buf_size=-1
        )
        self.assert_refused("Need a root block node", device="s-file")
        for node in "t", "s-file":
            self.assert_refused(
                f"Cannot replace '{node}' by a node mirrored from 's', because it cannot be "
                "guaranteed that doing so would not lead to an abrupt change of visible data",
                replaces=node,
            )
        self.assert_refused("Duplicate nodes with node-name='t'", filter_node_name="t")
        self.assert_refused("Invalid job ID '1'", job_id="1")
        self.assert_refused("Parameter 'sync' does not accept value 'x'", sync="x")
        with self.assertRaisesRegex(QmpError, "does not accept value 'mirror_top'"):
            self.qmp.command(
                "blockdev-add", driver="mirror_top", node_name="m", file="s", target="t"
            )
        self.assertEqual(self.exported_node(), "s")
        # Nothing is left of all that.
        self.mirror(filter_node_name="above")
        self.assertEqual(self.exported_node(), "above")
        self.wait_ready()
        self.complete()
        self.assert_target_is(self.model)

    def test_sizes_differ(self):
        for size in SIZE - 512, SIZE + 512:
            with self.subTest(size):
                target = self.make("t", "qcow2", size)
                self.model[:] = bytes(SIZE)
                self.start(target=target)
                self.mirror()
                self.assertEqual(
                    self.wait_end()["error"], "Source and target image have different sizes"
                )
                self.assertEqual(self.exported_node(), "s")
                self.server.quit()

    def test_target_in_use(self):
        self.start()
        self.qmp.command("block-export-add", type="nbd", id="other", node_name="t", name="t")
        for _ in range(2):
            with self.assertRaisesRegex(QmpError, "Permission conflict on node 't'"):
                self.mirror()
            self.assertEqual(self.exported_node(), "s")
            # The job was there for a moment, as in QEMU.
            states = [e["data"]["status"] for e in self.qmp.events]
            self.assertEqual(states, ["created", "null"])
            self.qmp.events.clear()

    def test_replaces(self):
        """A copy of a quorum takes the place of one of its children."""
        children = [self.make(n, "qcow2") for n in ("c0", "c1")]
        for path in children:
            self.fill(path)
        self.source = children[0]
        self.target = self.make("t", "qcow2")
        self.server = self.daemon(
            *self.blockdev("c0", children[0], "qcow2"),
            *self.blockdev("c1", children[1], "qcow2"),
            *self.blockdev("t", self.target, "qcow2"),
            "--blockdev",
            "driver=quorum,node-name=q,vote-threshold=1,children.0=c0,children.1=c1",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=export,node-name=q,name=disk,writable=on",
        )
        self.qmp = self.server.qmp
        self.start_guests(3)
        self.mirror(device="q", replaces="c1", copy_mode="write-blocking")
        self.wait_ready()
        self.complete()
        self.assertEqual(self.exported_node(), "q")
        self.qmp.command("blockdev-del", node_name="c1")
        time.sleep(0.1)
        self.stop_guests()
        self.server.quit()
        for path in children[0], self.target:
            self.assert_same(self.contents(path, "qcow2"), bytes(self.model))

    def start_quorum(self, child, *filters):
        """Of c0 and `child`, which is c1 or a filter above it."""
        self.server = self.daemon(
            *self.blockdev("c0", self.make("c0", "qcow2"), "qcow2"),
            *self.blockdev("c1", self.make("c1", "qcow2"), "qcow2"),
            *self.blockdev("t", self.make("t", "qcow2"), "qcow2"),
            *filters,
            "--blockdev",
            f"driver=quorum,node-name=q,vote-threshold=1,children.0=c0,children.1={child}",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
        )
        self.qmp = self.server.qmp

    def mirror_to_replace_a_child(self, *words):
        """Refused while c1 has users."""
        self.start_quorum(*words)
        self.qmp.command("block-export-add", id="e", type="nbd", node_name="c1")
        self.assert_refused(
            "Cannot replace 'c1' by a node mirrored from 'q', because it cannot be guaranteed that "
            "doing so would not lead to an abrupt change of visible data",
            device="q",
            replaces="c1",
        )
        self.qmp.command("block-export-del", id="e", mode="hard")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.mirror(device="q", replaces="c1")
        self.wait_ready()

    def test_a_child_with_another_parent_is_not_replaced(self):
        """Who uses a child of a quorum by itself would see other data."""
        self.mirror_to_replace_a_child("c1")
        self.qmp.command("block-export-add", id="e", type="nbd", node_name="c1")
        self.qmp.command("job-complete", id="j")
        self.assertEqual(
            self.wait_end()["error"],
            "Can no longer replace 'c1' by 't', because it can no longer be guaranteed that doing "
            "so would not lead to an abrupt change of visible data",
        )
        self.qmp.command("blockdev-del", node_name="t")

    def test_a_pivot_that_fails_leaves_the_bitmap(self):
        """In the mode on-success."""
        self.start_quorum("c1")
        self.qmp.command("block-export-add", id="d", type="nbd", node_name="q", name="disk", writable=True)
        self.qmp.command("block-dirty-bitmap-add", node="q", name="b")
        tidemark.io(tidemark.nbd_uri(self.nbd, "disk"), "write -P 1 1M 1M", fmt="raw")
        self.mirror(device="q", replaces="c1", sync="bitmap", bitmap="b", bitmap_mode="on-success")
        self.wait_ready()
        self.qmp.command("block-export-add", id="e", type="nbd", node_name="c1")
        self.qmp.command("job-complete", id="j")
        self.assertIn("Can no longer replace 'c1'", self.wait_end()["error"])
        self.assertEqual(self.qmp.bitmaps("q")["b"]["count"], MIB)

    def test_a_node_below_a_filter_in_a_quorum_with_another_parent_is_not_replaced(self):
        self.mirror_to_replace_a_child(
            "f",
            "--object",
            "throttle-group,id=g",
            "--blockdev",
            "driver=throttle,node-name=f,throttle-group=g,file=c1",
        )
        self.complete()
        self.qmp.command("blockdev-del", node_name="c1")

    def test_users_that_come_meanwhile_get_the_target(self):
        """Also those of the source itself, below the filter of the job."""
        self.start()
        self.mirror()
        self.wait_ready()
        self.qmp.command("blockdev-add", driver="raw", node_name="late", file="s", read_only=True)
        self.complete()
        self.assertEqual(self.exported_node(), "t")
        self.qmp.command("blockdev-del", node_name="s")
        self.qmp.command("block-export-del", id="export", mode="hard")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        with self.assertRaisesRegex(QmpError, "Block device t is in use"):
            self.qmp.command("blockdev-del", node_name="t")


class Errors(MirrorCase):
    """blkdebug below the source or the target."""

    def faulty(self, node, *rules, **more):
        """Options of a node whose file fails by these rules."""
        path = self.make(node, "raw")
        options = {
            "driver": "raw", "node-name": node, "discard": "unmap", "file.driver": "blkdebug",
            "file.node-name": node + "-debug",
            "file.image.driver": "file", "file.image.filename": path,
        }
        for i, rule in enumerate(rules):
            options.update({f"file.inject-error.{i}.{k}": v for k, v in rule.items()})
        return path, ("--blockdev", ",".join(f"{k}={v}" for k, v in options.items()))

    def start_with(self, faulty, *rules):
        self.source_format = self.target_format = "raw"
        path, debug = self.faulty(faulty, *rules)
        other = "t" if faulty == "s" else "s"
        good = self.make(other, "raw")
        self.source, self.target = (path, good) if faulty == "s" else (good, path)
        self.fill(self.source, "raw")
        threads = [w for i in range(self.reactors) for w in ("--object", f"iothread,id=io{i}")]
        self.server = self.daemon(
            *threads,
            *debug,
            *self.blockdev(other, good, "raw"),
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=export,node-name=s,name=disk,writable=on",
        )
        self.qmp = self.server.qmp

    def test_report(self):
        for node, event, operation in ("t", "write_aio", "write"), ("s", "read_aio", "read"):
            with self.subTest(node):
                self.model[:] = bytes(SIZE)
                self.start_with(node, {"event": event, "errno": 5, "once": "on"})
                self.mirror()
                error = self.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
                self.assertEqual(
                    error, {"device": "j", "operation": operation, "action": "report"}
                )
                self.assertEqual(self.wait_end()["error"], "Input/output error")
                self.assertEqual(self.exported_node(), "s")
                self.assert_target_is(self.model, self.source, "raw")

    def test_ignore_tries_again(self):
        for node, event in ("t", "write_aio"), ("s", "read_aio"):
            with self.subTest(node):
                self.model[:] = bytes(SIZE)
                self.start_with(node, {"event": event, "errno": 5, "once": "on"})
                self.mirror(on_source_error="ignore", on_target_error="ignore")
                self.wait_ready()
                self.complete()
                self.assert_target_is(self.model)

    def test_stop_and_resume(self):
        for node, event in ("t", "write_aio"), ("s", "read_aio"):
            with self.subTest(node):
                self.model[:] = bytes(SIZE)
                self.start_with(node, {"event": event, "errno": 28, "once": "on"})
                self.mirror(on_source_error="stop", on_target_error="enospc")
                tidemark.wait_until(lambda: self.job()["status"] == "paused", "the stop")
                self.assertEqual(self.job()["io-status"], "nospace")
                self.qmp.command("job-resume", id="j")
                self.wait_ready()
                self.complete()
                self.assert_target_is(self.model)

    def test_dead_target_does_not_harm_guests(self):
        """Writes of guests succeed, the job ends by its policy."""
        for mode in "background", "write-blocking":
            with self.subTest(mode):
                self.model[:] = bytes(SIZE)
                rule = {"event": "write_aio", "errno": 5, "sector": 8 * MIB // 512}
                self.start_with("t", rule)
                self.mirror(copy_mode=mode)
                self.wait_ready()
                uri = tidemark.nbd_uri(self.nbd, "disk")
                tidemark.io(uri, "write -P 77 8M 8k", fmt="raw")
                self.model[8 * MIB : 8 * MIB + 8192] = bytes([77]) * 8192
                self.assertEqual(self.wait_end()["error"], "Input/output error")
                self.assertEqual(self.exported_node(), "s")
                self.assert_target_is(self.model, self.source, "raw")

    def test_soft_cancel_with_a_dead_target_ends(self):
        for policy in "ignore", "stop", "report":
            with self.subTest(policy):
                self.model[:] = bytes(SIZE)
                rule = {"event": "write_aio", "errno": 5, "sector": 8 * MIB // 512}
                self.start_with("t", rule)
                self.mirror(on_target_error="ignore")
                self.wait_ready()
                uri = tidemark.nbd_uri(self.nbd, "disk")
                tidemark.io(uri, "write -P 77 8M 8k", fmt="raw")
                self.model[8 * MIB : 8 * MIB + 8192] = bytes([77]) * 8192
                self.qmp.wait_event("BLOCK_JOB_ERROR")
                self.qmp.command("block-job-cancel", device="j")
                self.assertEqual(self.wait_end()["error"], "Input/output error")
                self.assert_target_is(self.model, self.source, "raw")

    def test_force_cancel_with_a_dead_target(self):
        self.start_with("t", {"event": "write_aio", "errno": 5})
        self.mirror(on_target_error="ignore")
        self.qmp.wait_event("BLOCK_JOB_ERROR")
        self.qmp.command("job-cancel", id="j")
        self.wait_end("BLOCK_JOB_CANCELLED")

    def test_guests_leave_a_source_that_cannot_be_flushed(self):
        """The target has been flushed, and has all."""
        self.start_with("s", {"event": "none", "iotype": "flush", "errno": 5})
        self.mirror()
        self.wait_ready()
        uri = tidemark.nbd_uri(self.nbd, "disk")
        tidemark.io(uri, "write -P 77 8M 8k", fmt="raw", check=False)
        self.model[8 * MIB : 8 * MIB + 8192] = bytes([77]) * 8192
        self.complete()
        self.assertEqual(self.exported_node(), "t")
        self.server.quit(expect=1)  # the file of the source is closed
        self.assertIn("node 's' could not be flushed before it was left", self.server.log())
        self.assert_same(self.contents(self.target, "raw"), bytes(self.model))

    def test_guests_stay_where_the_target_needs_what_cannot_be_flushed(self):
        """As its backing node: a guest's flush would concern the target alone."""
        self.start_with("s", {"event": "none", "iotype": "flush", "errno": 5})
        self.qmp.command(
            "drive-mirror", job_id="j", device="s", sync="none", target=self.path("top"), format="qcow2"
        )
        self.wait_ready()
        uri = tidemark.nbd_uri(self.nbd, "disk")
        tidemark.io(uri, "write -P 77 8M 8k", fmt="raw", check=False)
        self.qmp.command("job-complete", id="j")
        self.assertIn("Could not flush node 's'", self.wait_end()["error"])
        self.assertEqual(self.exported_node(), "s")
        self.server.quit(expect=1)

    def test_failing_flush(self):
        self.start_with("t", {"event": "flush_to_disk", "errno": 5, "once": "on"})
        self.mirror()
        self.assertEqual(self.wait_end()["error"], "Input/output error")


class Bitmaps(MirrorCase):
    """sync=bitmap and sync=incremental: the target has all but what the bitmap says."""

    def begin(self, **more):
        """Copy all, then let a guest write with a bitmap that records."""
        self.start(**more)
        self.uri = tidemark.nbd_uri(self.nbd, "disk")
        self.qmp.command("block-dirty-bitmap-add", node="s", name="b", persistent=True)
        self.mirror()
        self.wait_ready()
        self.qmp.command("block-job-cancel", device="j")
        self.wait_end()
        self.qmp.events.clear()
        self.write(6 * MIB, MIB, 21)

    def write(self, offset, length, byte):
        tidemark.io(self.uri, f"write -P {byte} {offset} {length}", fmt="raw")
        self.model[offset : offset + length] = bytes([byte]) * length

    def count(self):
        return self.qmp.bitmaps("s")["b"]["count"]

    def test_incremental(self):
        self.begin()
        self.mirror(sync="incremental", bitmap="b")
        self.assertTrue(self.qmp.bitmaps("s")["b"]["busy"])
        self.wait_ready()
        self.assertEqual(self.job()["len"], MIB)
        self.write(8 * MIB, 65536, 22)
        self.complete()
        self.assertEqual(self.count(), 0)
        self.assertFalse(self.qmp.bitmaps("s")["b"]["busy"])
        self.assert_target_is(self.model)

    def test_zeroes_hide_a_backing_file_that_comes_later(self):
        """What has changed goes to an empty image, which gets the rest as its backing file."""
        self.begin()
        tidemark.io(self.uri, f"write -z {MIB} {MIB}", fmt="raw")
        self.model[MIB : 2 * MIB] = bytes(MIB)
        path = self.make("changes", "qcow2")
        file = {"driver": "file", "filename": path}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="changes", file=file)
        self.mirror(sync="incremental", bitmap="b", target="changes")
        self.wait_ready()
        self.qmp.command("block-job-cancel", device="j")
        self.wait_end()
        self.server.quit()
        tidemark.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", self.target, path)
        self.assert_same(self.contents(path, "qcow2"), bytes(self.model))

    def test_modes_with_success(self):
        for mode, left in ("on-success", 0), ("never", MIB + 65536), ("always", 0):
            with self.subTest(mode):
                self.model[:] = bytes(SIZE)
                self.begin()
                self.mirror(sync="bitmap", bitmap="b", bitmap_mode=mode)
                self.wait_ready()
                self.write(8 * MIB, 65536, 22)
                self.qmp.command("block-job-cancel", device="j")
                self.wait_end()
                self.assertEqual(self.count(), left)
                self.write(9 * MIB, 65536, 23)
                self.assertEqual(self.count(), left + 65536)
                self.server.quit()
                listed = tidemark.img("info", "--output=json", self.source).stdout
                self.assertNotIn("in-use", listed)

    def test_modes_with_cancel(self):
        """always: what was copied before the cancel, and flushed, is not dirty any more."""
        for mode in "on-success", "never", "always":
            with self.subTest(mode):
                self.model[:] = bytes(SIZE)
                self.begin()
                self.mirror(sync="bitmap", bitmap="b", bitmap_mode=mode, speed=256 * 1024)
                tidemark.wait_until(lambda: self.job()["offset"] >= 128 * 1024, "a part")
                self.write(8 * MIB, 65536, 22)
                self.qmp.command("job-cancel", id="j")
                copied = self.wait_end("BLOCK_JOB_CANCELLED")["offset"]
                left = MIB + 65536 - (copied if mode == "always" else 0)
                self.assertEqual(self.count(), left)
                self.qmp.events.clear()
                # The bitmap is right: what it has makes the target complete.
                self.mirror(sync="incremental", bitmap="b")
                self.wait_ready()
                self.complete()
                self.assert_target_is(self.model)

    def test_arguments(self):
        self.start()
        self.qmp.command("block-dirty-bitmap-add", node="s", name="b")
        self.assert_refused(
            "must provide a valid bitmap name for 'bitmap' sync mode", sync="bitmap"
        )
        self.assert_refused(
            "Bitmap 'x' could not be found", sync="bitmap", bitmap="x", bitmap_mode="never"
        )
        self.assert_refused(
            "Bitmap sync mode must be given when providing a bitmap", sync="bitmap", bitmap="b"
        )
        self.assert_refused(
            "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
            sync="incremental",
            bitmap="b",
            bitmap_mode="never",
        )
        self.assert_refused("Sync mode 'full' not supported with a bitmap", bitmap="b")
        self.assert_refused(
            "Cannot specify bitmap sync mode without a bitmap", bitmap_mode="never"
        )


class Remote(MirrorCase):
    """The target is on another server, which ends or hangs."""

    def begin(self, **more):
        self.target = self.make("t", "qcow2")
        self.source = self.make("s", "qcow2")
        self.fill(self.source)
        remote = self.path("remote.sock")
        command = [*tidemark.tool("nbd"), "-t", "-k", remote, "-f", "qcow2", self.target]
        self.remote = self.own(tidemark.Process(command, self.path("remote.log")))
        self.remote.wait_for(lambda: tidemark.can_connect(remote), "the server")
        self.server = self.daemon(
            *self.blockdev("s", self.source, "qcow2"),
            "--blockdev",
            f"driver=nbd,node-name=t,server.type=unix,server.path={remote}",
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=export,node-name=s,name=disk,writable=on",
        )
        self.qmp = self.server.qmp
        self.mirror(**more)
        self.wait_ready()
        self.start_guests(2)

    def test_pivot(self):
        self.begin(copy_mode="write-blocking")
        self.complete()
        self.stop_guests()
        self.server.quit()
        self.remote.stop(expect=None)
        self.assert_same(self.contents(self.target, "qcow2"), bytes(self.model))

    def test_server_ends(self):
        for mode in "background", "write-blocking":
            with self.subTest(mode):
                self.model[:] = bytes(SIZE)
                self.begin(copy_mode=mode)
                self.remote.kill()
                self.assertIn("error", self.wait_end())
                self.assertEqual(self.exported_node(), "s")
                time.sleep(0.1)
                self.stop_guests()
                self.server.quit(expect=1)  # the node of the target cannot be flushed
                self.assert_same(self.contents(self.source, "qcow2"), bytes(self.model))
                os.unlink(self.path("remote.sock"))

    def test_server_hangs(self):
        """A cancel waits for the server, and nothing else does."""
        for mode in "background", "write-blocking":
            with self.subTest(mode):
                self.model[:] = bytes(SIZE)
                self.begin(copy_mode=mode)
                tidemark.freeze(self.remote.pid)
                time.sleep(0.1)
                self.qmp.command("job-cancel", id="j")
                for _ in range(10):
                    self.assertIsNotNone(self.exported_node())
                    time.sleep(0.02)
                if mode == "background":
                    # Guests never wait for the target.
                    before = [g.writes for g in self.guests]
                    tidemark.wait_until(
                        lambda: all(g.writes > b for g, b in zip(self.guests, before)), "guests"
                    )
                os.kill(self.remote.pid, signal.SIGCONT)
                self.wait_end("BLOCK_JOB_CANCELLED")
                self.assertEqual(self.exported_node(), "s")
                self.stop_guests()
                self.assert_target_is(self.model, self.source)
                self.remote.stop(expect=None)


class DriveMirror(MirrorCase):
    """The target is made, or opened, by its filename, and gets its backing file in the end."""

    compat = "1.1"

    def chain(self):
        self.base = self.make("base", "qcow2")
        tidemark.io(self.base, f"write -P 50 0 {SIZE}", fmt="qcow2")
        source = self.make("top", "qcow2", None, "-b", self.base, "-F", "qcow2")
        self.model[:] = bytes([50]) * SIZE
        self.fill(source)
        self.start(source=source, fill=False)
        self.target = self.path("new")

    def drive_mirror(self, **more):
        named = {"job_id": "j", "device": "s", "target": self.target, "format": "qcow2", **more}
        return self.qmp.command("drive-mirror", **named)

    def backing(self):
        return tidemark.img("info", "-U", self.target).stdout

    def check(self, sync, mode):
        self.drive_mirror(sync=sync, mode=mode, node_name="n")
        self.wait_ready()
        self.start_guests(3, small=True, span=8 * MIB)
        uri = tidemark.nbd_uri(self.nbd, "disk")
        time.sleep(0.2)
        self.complete()
        self.assertEqual(self.exported_node(), "n")
        self.stop_guests()
        # The running image has its backing file.
        self.assert_same(self.contents(uri, "raw"), bytes(self.model))
        self.assert_target_is(self.model)

    def test_absolute_paths(self):
        for sync, backing in ("top", "base"), ("none", "top"), ("full", None):
            with self.subTest(sync):
                self.chain()
                self.check(sync, "absolute-paths")
                if backing:
                    self.assertIn("backing file: " + self.path(backing), self.backing())
                else:
                    self.assertNotIn("backing file", self.backing())
                os.unlink(self.target)

    def test_existing_with_backing(self):
        """What the source's own zeroes cover must not show in the target's backing file."""
        for compat in "1.1", "0.10":
            for sync in "top", "full":
                for mode in "background", "write-blocking":
                    with self.subTest(sync=sync, compat=compat, mode=mode):
                        self.chain()
                        tidemark.img(
                            "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b",
                            self.base, "-F", "qcow2", self.target, SIZE,
                        )
                        self.check(sync, "existing")

    def test_backing_file_that_comes_last(self):
        """It has to be there when the job is completed, and no earlier."""
        self.chain()
        other = self.path("other")
        tidemark.img(
            "create", "-q", "-u", "-f", "qcow2", "-b", other, "-F", "qcow2", self.target, SIZE
        )
        for copied in False, True:
            with self.subTest(copied=copied):
                self.drive_mirror(sync="top", mode="existing", node_name="n")
                self.wait_ready()
                if not copied:
                    self.qmp.command("job-complete", id="j")
                    self.assertIn("No such file", self.wait_end()["error"])
                    self.assertEqual(self.exported_node(), "s")
                    continue
                shutil.copyfile(self.base, other)
                self.complete()
                self.assert_target_is(self.model)

    def test_backing_node_before_the_job_is_finalized(self):
        """blockdev-snapshot puts the copied layer onto its backing node, while guests write."""
        self.chain()
        tidemark.img("create", "-q", "-f", "qcow2", self.target, SIZE)
        self.qmp.command(
            "blockdev-add", driver="qcow2", node_name="n", backing=None,
            file={"driver": "file", "filename": self.target},
        )
        self.qmp.command(
            "blockdev-add", driver="qcow2", node_name="base", read_only=True,
            file={"driver": "file", "filename": self.base},
        )
        self.mirror(target="n", sync="top", auto_finalize=False)
        self.wait_ready()
        self.start_guests(3, small=True, span=8 * MIB)
        self.qmp.command("job-complete", id="j")
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.qmp.command("blockdev-snapshot", node="base", overlay="n")
        time.sleep(0.1)
        self.qmp.command("job-finalize", id="j")
        self.wait_end()
        self.assertEqual(self.exported_node(), "n")
        self.stop_guests()
        uri = tidemark.nbd_uri(self.nbd, "disk")
        self.assert_same(self.contents(uri, "raw"), bytes(self.model))

    def test_larger_clusters(self):
        """Writes of guests that are smaller than a cluster of the target, which has no backing
        file yet."""
        self.chain()
        tidemark.img(
            "create", "-q", "-f", "qcow2", "-o", "cluster_size=1M", "-b", self.base, "-F",
            "qcow2", self.target, SIZE,
        )
        self.drive_mirror(sync="top", mode="existing", copy_mode="write-blocking", node_name="n")
        self.wait_ready()
        self.start_guests(3, small=True, span=8 * MIB)
        time.sleep(0.3)
        self.complete()
        self.stop_guests()
        self.assert_target_is(self.model)

    def test_raw(self):
        self.chain()
        self.target_format = "raw"
        self.drive_mirror(sync="full", format="raw")
        self.wait_ready()
        self.complete()
        self.assert_target_is(self.model)

    def test_refused(self):
        self.chain()
        for desc, more in (
            ("Unknown file format 'nope'", {"format": "nope"}),
            ("Backing file not supported for file format 'raw'", {"sync": "top", "format": "raw"}),
            ("Duplicate nodes with node-name='s'", {"node_name": "s"}),
            (
                "a node-name must be provided when replacing a named node of the graph",
                {"replaces": "s"},
            ),
            ("Could not create '/nonexistent/x': No such file or directory",
             {"target": "/nonexistent/x"}),
        ):
            with self.subTest(desc), self.assertRaises(QmpError) as caught:
                self.drive_mirror(**{"sync": "full", **more})
            self.assertEqual(caught.exception.desc, desc)
        self.assertEqual(self.qmp.events, [])
        self.assertEqual(self.exported_node(), "s")
