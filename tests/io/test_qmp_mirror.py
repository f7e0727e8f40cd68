# SPDX-License-Identifier: Apache-2.0
"""Mirrors: what they copy, and how they follow guests."""

import os
import threading
import time

import tidemark
from mirror_case import BLOCK, MIB, SIZE, WRITE, Guest, MirrorCase
from nbd_raw import RawClient


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

    def test_a_first_block_does_not_fill_a_sparse_target(self):
        """Other programs write it when they create a file, to find out how it is aligned."""
        target = self.make("first", "raw")
        tidemark.io(target, "write -P 0 0 4k", fmt="raw")
        self.start("--blockdev", f"driver=raw,node-name=u,file.driver=file,file.filename={target}", fill=False)
        self.mirror(target="u")
        self.wait_ready()
        self.complete()
        self.assert_target_is(bytes(SIZE), target, "raw")
        self.assertLess(os.stat(target).st_blocks * 512, MIB)

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
                tidemark.wait_until(lambda: len(history) > 20, "the guest to write")
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
        tidemark.wait_until(lambda: sum(g.writes for g in self.guests) > writes + 9, "guests")
        self.qmp.command("job-finalize", id="j")
        self.wait_end()
        self.assertEqual(self.exported_node(), "t")
        time.sleep(0.1)
        self.stop_guests()
        self.assert_target_is(self.model)

    def flushes(self, node):
        """Those that have ended, and those that have begun."""
        for o in self.qmp.command("query-stats", target="node"):
            if o["labels"]["node"] == node:
                found = {s["name"]: s["value"] for s in o["stats"]}
                return found["flush-operations"], found["flush-operations"] + found["in-flight"]
        return 0, 0

    def test_what_guests_write_during_the_last_flush_is_flushed(self):
        """A guest's flush concerns the source; it counts for the target when the guest is there."""
        slow = {"event": "none", "iotype": "flush", "errno": 0, "delay-ns": 10**9}
        self.start()
        image = {"driver": "file", "filename": self.make("slow.raw", "raw")}
        self.qmp.command(
            "blockdev-add", driver="blkdebug", node_name="slow",
            **{"image": image, "inject-error": [slow]},
        )  # fmt: skip
        self.mirror(target="slow", auto_finalize=False)
        self.wait_ready()
        self.qmp.command("job-complete", id="j")
        self.qmp.wait_event("BLOCK_JOB_PENDING")
        ended, _ = self.flushes("slow")
        with self.server.connect() as monitor:
            finalize = threading.Thread(target=monitor.command, args=("job-finalize",), kwargs={"id": "j"})
            finalize.start()
            tidemark.wait_until(lambda: self.flushes("slow")[1] > ended, "the flush")
            guest = RawClient(self.nbd)
            guest.go(b"disk")
            guest.request(WRITE, 0, 4096, payload=bytes(4096))
            self.assertEqual(guest.error(), 0)
            _, begun = self.flushes("slow")
            finalize.join()
        self.wait_end()
        self.assertGreater(self.flushes("slow")[0], begun)
        guest.sock.close()

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

    def test_one_that_does_not_catch_up_says_so(self):
        self.start()
        self.start_guests(3, small=True)
        self.mirror(granularity=64 * 1024, speed=20 * MIB)
        self.server.wait_for(
            lambda: "job 'j' does not catch up: guests of node 's' write" in self.server.log(),
            "the warning", timeout=60,
        )  # fmt: skip
        self.qmp.command("block-job-change", id="j", type="mirror", copy_mode="write-blocking")
        self.wait_ready()
        self.complete()
        self.assertEqual(self.server.log().count("catch up"), 1)

    def test_zeroes_into_a_layer_of_its_own(self):
        """The target follows, so that the job comes to its end whatever guests discard."""
        base = self.make("base", "qcow2")
        self.start(source=self.make("top", "qcow2", None, "-b", base, "-F", "qcow2"))
        self.mirror(sync="top", copy_mode="write-blocking")
        self.wait_ready()
        self.qmp.command("job-pause", id="j")
        uri = tidemark.nbd_uri(self.nbd, "disk")
        tidemark.io(uri, "write -z 1M 256k", "discard 12M 256k", fmt="raw")
        self.assertTrue(self.job()["actively-synced"])
        self.qmp.command("job-resume", id="j")
        self.complete()
        self.model[MIB : MIB + 256 * 1024] = bytes(256 * 1024)
        self.model[12 * MIB : 12 * MIB + 256 * 1024] = bytes(256 * 1024)
        self.assert_target_is(self.model)

    def start_slow(self, *rules):
        """The target "slow", raw, as large as the source; its path."""
        path = self.make("slow.raw", "raw")
        self.start(fill=False)
        self.qmp.command(
            "blockdev-add", driver="blkdebug", node_name="slow",
            **{"image": {"driver": "file", "filename": path}, "inject-error": rules},
        )  # fmt: skip
        self.guest = RawClient(self.nbd)
        self.guest.go(b"disk")
        return path

    def slow_stats(self):
        for o in self.qmp.command("query-stats", target="node"):
            if o["labels"]["node"] == "slow":
                return {s["name"]: s["value"] for s in o["stats"]}
        return {}

    def write(self, offset, byte):
        self.model[offset : offset + BLOCK] = bytes([byte]) * BLOCK
        self.guest.request(WRITE, offset, BLOCK, payload=bytes([byte]) * BLOCK)
        self.assertEqual(self.guest.error(), 0)

    def complete_slow(self, path):
        self.wait_ready()
        self.complete()
        self.guest.sock.close()
        self.assert_target_is(self.model, path, "raw")

    def test_a_write_does_not_wait_for_other_parts_of_a_piece(self):
        """The part before the guest's is on its way to the target for long."""
        rule = {"event": "none", "iotype": "write", "sector": 0, "errno": 0, "delay-ns": 2 * 10**9}
        path = self.start_slow(rule)
        self.write(0, 1)
        self.write(256 * 1024, 2)  # so that the piece has several parts
        self.mirror(target="slow", copy_mode="write-blocking")
        tidemark.wait_until(lambda: self.job()["offset"] >= 15 * MIB, "the other pieces")
        self.write(768 * 1024, 3)
        self.assertLess(self.job()["offset"], 16 * MIB)
        self.complete_slow(path)

    def test_a_write_waits_for_one_request_of_a_piece_of_zeroes(self):
        """The target has data in between."""
        rule = {"event": "none", "iotype": "write-zeroes", "errno": 0, "delay-ns": 10**8}
        path = self.start_slow(rule)
        with open(path, "r+b") as file:
            for at in range(0, self.size, MIB):
                file.seek(at)
                file.write(b"old")
        self.mirror(target="slow", copy_mode="write-blocking")
        tidemark.wait_until(lambda: self.slow_stats()["in-flight"] > 0, "the first part")
        self.write(15 * MIB, 3)
        self.assertLess(self.slow_stats()["zeroes-operations"], 12)
        self.complete_slow(path)

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
