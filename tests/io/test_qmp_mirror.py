# SPDX-License-Identifier: Apache-2.0
"""Mirrors: what they copy, how they follow guests, how they end."""

import os
import random
import struct
import threading
import time

import tidemark
from nbd_raw import RawClient
from qmp import QmpError

MIB = 1 << 20
SIZE = 16 * MIB + 3 * 512  # an end inside a cluster
BLOCK = 4096
READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6


class Guest(threading.Thread):
    """Writes stamped blocks through a connection of its own, of which `count` share the disk, and
    reads them again. `model` has what was acknowledged."""

    def __init__(self, path, name, model, index=0, count=1, seed=1, small=False):
        super().__init__(daemon=True)
        self.client = RawClient(path)
        self.client.go(name)
        self.model, self.index, self.count = model, index, count
        self.random = random.Random(f"{seed}.{index}")
        self.small = small
        self.stamp = 0
        self.writes = 0
        self.slowest = 0
        self.failure = None
        self.halt = threading.Event()

    def block(self):
        blocks = len(self.model) // BLOCK // self.count
        return (self.random.randrange(blocks) * self.count + self.index) * BLOCK

    def write_once(self):
        offset, length = self.block(), BLOCK
        if self.small:
            length = self.random.choice((512, 1024, 1536, BLOCK))
            offset += self.random.randrange(0, BLOCK - length + 1, 512)
        if self.random.random() < 0.1:
            self.client.request(ZEROES, offset, length)
            data = bytes(length)
        else:
            self.stamp += 1
            data = struct.pack("<QII", offset, self.index, self.stamp) * (length // 16)
            self.client.request(WRITE, offset, length, payload=data)
        error = self.client.error()
        if error:
            raise AssertionError(f"write at {offset}: error {error}")
        self.model[offset : offset + length] = data
        self.writes += 1

    def read_once(self):
        offset = self.block()
        self.client.request(READ, offset, BLOCK)
        seen = bytearray(BLOCK)
        for kind, payload in self.client.chunks():
            at = struct.unpack(">Q", payload[:8])[0] - offset if payload else 0
            if kind == 1:
                seen[at : at + len(payload) - 8] = payload[8:]
            elif kind & 0x8000:
                raise AssertionError(f"read at {offset}: {payload}")
        if seen != self.model[offset : offset + BLOCK]:
            raise AssertionError(f"read at {offset}: not what was written last")

    def run(self):
        try:
            while not self.halt.is_set():
                before = time.monotonic()
                self.write_once()
                self.slowest = max(self.slowest, time.monotonic() - before)
                if self.random.random() < 0.2:
                    self.read_once()
        except Exception as e:  # the test looks at it
            self.failure = e

    def stop(self):
        self.halt.set()
        self.join(20)
        if self.failure:
            raise self.failure
        if self.is_alive():
            raise AssertionError("the guest hangs")
        self.client.sock.close()


class MirrorCase(tidemark.TestCase):
    """A daemon with the node "s" (source), exported as "disk", and "t" (target)."""

    source_format = target_format = "qcow2"
    size = SIZE
    reactors = 3

    def setUp(self):
        super().setUp()
        self.model = bytearray(self.size)
        self.nbd = self.path("nbd.sock")
        self.guests = []

    def make(self, name, fmt=None, size=None, *options):
        path = self.path(name)
        tidemark.img("create", "-q", "-f", fmt or self.source_format, *options, path, size or self.size)
        return path

    def fill(self, path, fmt=None):
        """Some data, zeroes over data, and holes."""
        def write(offset, length, byte):
            self.model[offset : offset + length] = bytes([byte]) * length
            return f"write -P {byte} {offset} {length}"

        tidemark.io(
            path,
            write(0, 3 * MIB, 1),
            write(5 * MIB + 1024, 70000 // 512 * 512, 2),
            write(7 * MIB, 64 * 1024, 0),
            write(9 * MIB + 4096, 4096, 3),
            write(12 * MIB, MIB, 4),
            write(self.size - 5 * 512, 5 * 512, 5),
            fmt=fmt or self.source_format,
        )

    def blockdev(self, node, path, fmt, **more):
        options = {"driver": fmt, "node-name": node, "file.driver": "file", "file.filename": path}
        options.update({"file.node-name": node + "-file", "discard": "unmap", **more})
        return "--blockdev", ",".join(f"{k}={v}" for k, v in options.items())

    def start(self, *more, source=None, target=None, fill=True):
        self.source = source or self.make("s", self.source_format)
        self.target = target or self.make("t", self.target_format)
        if fill:
            self.fill(self.source)
        threads = [w for i in range(self.reactors) for w in ("--object", f"iothread,id=io{i}")]
        self.server = self.daemon(
            *threads,
            *self.blockdev("s", self.source, self.source_format),
            *self.blockdev("t", self.target, self.target_format),
            *more,
            "--nbd-server",
            f"addr.type=unix,addr.path={self.nbd}",
            "--export",
            "type=nbd,id=export,node-name=s,name=disk,writable=on",
        )
        self.qmp = self.server.qmp

    def mirror(self, **more):
        named = {"job_id": "j", "device": "s", "target": "t", "sync": "full", **more}
        return self.qmp.command("blockdev-mirror", **named)

    def job(self):
        for job in self.qmp.command("query-block-jobs"):
            if job["device"] == "j":
                return job
        return None

    def wait_ready(self):
        return self.qmp.wait_event("BLOCK_JOB_READY")

    def wait_end(self, event="BLOCK_JOB_COMPLETED"):
        data = self.qmp.wait_event(event)["data"]
        tidemark.wait_until(lambda: self.job() is None, "the end of the job")
        return data

    def complete(self):
        self.qmp.command("job-complete", id="j")
        data = self.wait_end()
        self.assertNotIn("error", data)
        return data

    def exported_node(self, export="export"):
        for e in self.qmp.command("query-block-exports"):
            if e["id"] == export:
                return e["node-name"]
        return None

    def start_guests(self, count=1, **more):
        self.guests = [
            Guest(self.nbd, b"disk", self.model, i, count, **more) for i in range(count)
        ]
        for guest in self.guests:
            guest.start()

    def stop_guests(self):
        for guest in self.guests:
            guest.stop()
        self.guests = []

    def contents(self, path, fmt):
        raw = self.path("contents.raw")
        tidemark.img("convert", "-U", "-f", fmt, "-O", "raw", path, raw)
        with open(raw, "rb") as f:
            data = f.read()
        os.unlink(raw)
        return data

    def assert_same(self, seen, wanted):
        self.assertEqual(len(seen), len(wanted))
        if seen != wanted:
            for at in range(0, len(wanted), 512):
                if seen[at : at + 512] != wanted[at : at + 512]:
                    self.fail(f"differs at {at}: {seen[at:at+16]}, not {wanted[at:at+16]}")

    def assert_target_is(self, model, path=None, fmt=None):
        """After the daemon has ended."""
        self.server.quit()
        path, fmt = path or self.target, fmt or self.target_format
        self.assert_same(self.contents(path, fmt), bytes(model))
        if fmt == "qcow2":
            tidemark.img("check", "-q", path)

    def assert_refused(self, desc, **more):
        with self.assertRaises(QmpError) as caught:
            self.mirror(**more)
        self.assertEqual(caught.exception.desc, desc)


class Contents(MirrorCase):
    """What is in the target at the end."""

    def mirror_idle(self, **more):
        self.start()
        self.mirror(**more)
        self.wait_ready()
        self.complete()
        self.assertEqual(self.exported_node(), "t")
        self.assert_target_is(self.model)

    def test_full_qcow2(self):
        self.mirror_idle()
        # sparse as the source
        self.assertLess(os.stat(self.target).st_blocks * 512, 5 * MIB)

    def test_full_raw(self):
        self.source_format = self.target_format = "raw"
        self.mirror_idle()
        self.assertLess(os.stat(self.target).st_blocks * 512, 5 * MIB)

    def test_small_buffers_and_granularity(self):
        self.mirror_idle(buf_size=5, granularity=512)

    def test_large_granularity(self):
        self.mirror_idle(granularity=4 * MIB, copy_mode="write-blocking")

    def test_old_data_in_the_target_is_gone(self):
        for fmt in "qcow2", "raw":
            with self.subTest(fmt):
                self.target_format = fmt
                target = self.make("old." + fmt, fmt)
                tidemark.io(target, f"write -P 99 0 {SIZE}", fmt=fmt)
                self.model[:] = bytes(SIZE)
                self.start(target=target)
                self.mirror()
                self.wait_ready()
                self.complete()
                self.assert_target_is(self.model)
                self.assertLess(os.stat(target).st_blocks * 512, 6 * MIB)

    def test_zeroes_are_written_only_where_needed(self):
        self.start(fill=False)
        before = os.stat(self.target).st_size
        self.mirror()
        self.wait_ready()
        self.complete()
        self.assert_target_is(bytes(SIZE))
        self.assertEqual(os.stat(self.target).st_size, before)

    def test_target_is_zero_is_believed(self):
        """Zeroes are not written to a target that cannot tell what it has."""
        self.target_format = "raw"
        target = self.make("t", "raw")
        tidemark.io(target, "write -P 9 4M 4k", fmt="raw")  # the user was wrong: this stays
        self.start(target=target)
        self.mirror(target_is_zero=True)
        self.wait_ready()
        self.complete()
        self.model[4 * MIB : 4 * MIB + 4096] = bytes([9]) * 4096
        self.assert_target_is(self.model)

    def test_guest_zeroes_after_the_copy(self):
        """The answer of target-is-zero holds until the first write only."""
        for mode in "background", "write-blocking":
            with self.subTest(mode):
                self.model[:] = bytes(SIZE)
                self.start()
                self.mirror(target_is_zero=True, copy_mode=mode)
                self.wait_ready()
                uri = tidemark.nbd_uri(self.nbd, "disk")
                tidemark.io(uri, "write -z 0 1M", "discard 1M 1M", fmt="raw")
                self.model[: 2 * MIB] = bytes(2 * MIB)
                self.complete()
                self.assert_target_is(self.model)

    def overlay(self, *, target_has_backing):
        base = self.make("base", "qcow2")
        tidemark.io(base, f"write -P 50 0 {SIZE}", fmt="qcow2")
        source = self.make("top", "qcow2", None, "-b", base, "-F", "qcow2")
        options = ("-b", base, "-F", "qcow2") if target_has_backing else ()
        target = self.make("t", "qcow2", None, *options)
        self.model[:] = bytes([50]) * SIZE
        self.fill(source)
        self.start(source=source, target=target, fill=False)

    def test_top_with_backing(self):
        self.overlay(target_has_backing=True)
        self.mirror(sync="top")
        self.wait_ready()
        self.start_guests(2, small=True)
        time.sleep(0.2)
        self.complete()
        self.stop_guests()
        self.assert_target_is(self.model)

    def test_full_of_a_chain(self):
        self.overlay(target_has_backing=False)
        self.mirror()
        self.wait_ready()
        self.complete()
        self.assert_target_is(self.model)

    def test_none(self):
        """Only what guests write comes into the target, over its backing file."""
        self.overlay(target_has_backing=True)
        self.mirror(sync="none")
        self.wait_ready()
        old = bytearray([50]) * SIZE
        uri = tidemark.nbd_uri(self.nbd, "disk")
        tidemark.io(uri, "write -P 8 4M 4k", "write -P 9 6M 64k", fmt="raw")
        old[4 * MIB : 4 * MIB + 65536] = bytes([50]) * 65536
        old[4 * MIB : 4 * MIB + 4096] = bytes([8]) * 4096
        old[6 * MIB : 6 * MIB + 65536] = bytes([9]) * 65536
        self.qmp.command("block-job-cancel", device="j")
        self.wait_end()
        self.assert_target_is(old)



class UnderLoad(MirrorCase):
    """Guests write and read all the time: nothing that was acknowledged is lost."""

    def pivot_under_load(self, **more):
        self.start()
        self.start_guests(4, small=True)
        self.mirror(**more)
        self.wait_ready()
        time.sleep(0.3)
        self.complete()
        self.assertEqual(self.exported_node(), "t")
        time.sleep(0.1)
        self.stop_guests()
        self.assert_target_is(self.model)

    def test_background(self):
        self.pivot_under_load()

    def test_write_blocking(self):
        self.pivot_under_load(copy_mode="write-blocking")

    def test_raw(self):
        self.source_format = self.target_format = "raw"
        self.pivot_under_load(copy_mode="write-blocking", granularity=512)

    def test_several_in_turn(self):
        """Back and forth, with every change of the mode, as fast as it goes."""
        self.start()
        self.start_guests(4)
        for round_ in range(6):
            device, target = ("s", "t") if round_ % 2 == 0 else ("t", "s")
            self.mirror(
                device=device, target=target, copy_mode=["background", "write-blocking"][round_ % 2]
            )
            for mode in "write-blocking", "background", "write-blocking":
                self.qmp.command("block-job-change", id="j", type="mirror", copy_mode=mode)
            self.wait_ready()
            self.complete()
            self.assertEqual(self.exported_node(), target)
        self.stop_guests()
        uri = tidemark.nbd_uri(self.nbd, "disk")
        seen = self.contents(uri, "raw")
        self.assert_same(seen, bytes(self.model))

    def test_soft_cancel_leaves_a_moment(self):
        """A copy of one moment: what each guest wrote up to some point, and nothing after it."""
        for mode in "background", "write-blocking":
            with self.subTest(mode):
                self.model[:] = bytes(SIZE)
                self.start()
                history = []
                guest = Guest(self.nbd, b"disk", self.model, seed=mode)
                write_once = guest.write_once

                def write_and_note():
                    before = bytes(self.model)
                    write_once()
                    for at in range(0, SIZE - BLOCK, BLOCK):
                        if self.model[at : at + BLOCK] != before[at : at + BLOCK]:
                            history.append((at, bytes(self.model[at : at + BLOCK])))
                            break

                guest.write_once = write_and_note
                image = bytearray(self.model)
                self.guests = [guest]
                guest.start()
                self.mirror(copy_mode=mode)
                self.wait_ready()
                time.sleep(0.3)
                self.qmp.command("block-job-cancel", device="j")
                data = self.wait_end()
                self.assertNotIn("error", data)
                self.assertEqual(self.exported_node(), "s")
                self.stop_guests()
                self.server.quit()
                copy = self.contents(self.target, "qcow2")
                self.assert_same(self.contents(self.source, "qcow2"), bytes(self.model))
                moments = 1 + len(history)
                for at, data in [*history, (0, None)]:
                    if copy == image:
                        break
                    moments -= 1
                    image[at : at + BLOCK] = data or b""
                else:
                    self.fail("the copy is of no moment")
                self.assertGreater(len(history), 10)

    def test_pending_follows(self):
        """With auto-finalize off guests go on, and move at job-finalize."""
        self.start()
        self.start_guests(3)
        self.mirror(auto_finalize=False)
        self.wait_ready()
        self.qmp.command("job-complete", id="j")
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.assertNotEqual(self.exported_node(), "t")
        writes = sum(g.writes for g in self.guests)
        time.sleep(0.3)
        self.assertGreater(sum(g.writes for g in self.guests), writes)
        self.qmp.command("job-finalize", id="j")
        self.wait_end()
        self.assertEqual(self.exported_node(), "t")
        time.sleep(0.1)
        self.stop_guests()
        self.assert_target_is(self.model)

    def test_pending_cancelled(self):
        self.start()
        self.start_guests(2)
        self.mirror(auto_finalize=False)
        self.wait_ready()
        self.qmp.command("job-complete", id="j")
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        self.qmp.command("job-cancel", id="j")
        self.wait_end("BLOCK_JOB_CANCELLED")
        self.assertEqual(self.exported_node(), "s")
        self.stop_guests()
        self.assert_target_is(self.model, self.source)

    def test_graph_changes_meanwhile(self):
        """Drains of the source and the target by others wait for no job, and stop nothing."""
        self.start()
        self.start_guests(3)
        self.mirror(copy_mode="write-blocking", speed=8 * MIB)
        for i in range(20):
            for node in "s", "t":
                self.qmp.transaction(
                    ("block-dirty-bitmap-add", {"node": node, "name": f"b{i}"}),
                    ("block-dirty-bitmap-add", {"node": node, "name": f"c{i}"}),
                )
            self.qmp.transaction(
                ("block-dirty-bitmap-remove", {"node": "s", "name": f"b{i}"}),
                ("block-dirty-bitmap-remove", {"node": "t", "name": f"b{i}"}),
            )
        self.qmp.command("block-job-set-speed", device="j", speed=0)
        self.wait_ready()
        self.complete()
        self.stop_guests()
        self.assert_target_is(self.model)

    def test_quit_with_jobs(self):
        self.start()
        self.start_guests(2)
        self.mirror(speed=1)
        self.qmp.command("job-pause", id="j")
        for guest in self.guests:
            guest.halt.set()
            guest.join()
        self.assert_target_is(self.model, self.source)


class Convergence(MirrorCase):
    def test_small_writes_into_large_granules(self):
        """In the mode write-blocking the job comes to its end, whatever guests do."""
        self.start()
        self.start_guests(3, small=True)
        self.mirror(copy_mode="write-blocking", granularity=64 * 1024, speed=20 * MIB)
        self.wait_ready()
        tidemark.wait_until(lambda: self.job()["actively-synced"], "both to be the same")
        before = self.job()
        time.sleep(0.3)
        after = self.job()
        # In sync for good: nothing is copied by the job any more.
        self.assertEqual(before["len"], after["len"])
        self.assertTrue(after["actively-synced"])
        self.complete()
        self.stop_guests()
        self.assert_target_is(self.model)

    def test_change_to_write_blocking(self):
        """A mirror that does not catch up does so when its mode changes."""
        self.start()
        self.start_guests(3)
        self.mirror(speed=2 * MIB)
        time.sleep(0.5)
        self.assertEqual(self.job()["status"], "running")
        self.assertFalse(self.job()["actively-synced"])
        self.qmp.command("block-job-change", id="j", type="mirror", copy_mode="write-blocking")
        self.qmp.command("block-job-set-speed", device="j", speed=30 * MIB)
        self.wait_ready()
        tidemark.wait_until(lambda: self.job()["actively-synced"], "both to be the same")
        self.qmp.command("block-job-change", id="j", type="mirror", copy_mode="background")
        self.assertFalse(self.job()["actively-synced"])
        self.complete()
        self.stop_guests()
        self.assert_target_is(self.model)

    def test_complete_ends_under_load(self):
        """From job-complete on the end comes, though the job copies slower than guests write."""
        self.start(fill=False)
        self.mirror()
        self.wait_ready()
        self.qmp.command("block-job-set-speed", device="j", speed=16 * MIB)
        self.start_guests(4)
        time.sleep(0.3)
        self.complete()
        self.stop_guests()
        self.assert_target_is(self.model)


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
        with self.assertRaisesRegex(QmpError, "Permission conflict on node 't'"):
            self.mirror()
        self.assertEqual(self.exported_node(), "s")
        self.assertEqual(self.qmp.events, [])

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
