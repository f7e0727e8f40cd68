# SPDX-License-Identifier: Apache-2.0
"""Backups of a disk in use: points in time, what a backup survives, what it says when it can't."""

import glob
import json
import os
import resource
import shutil
import signal
import socket
import threading
import time

import nbd

from backup_case import MIB, BackupCase
from tidemark import (
    TestCase, can_connect, freeze, img, nbd_uri, qemu_img, qemu_io, run, tool,
    wait_until,
)  # fmt: skip

CLUSTER = 65536


class TestPointsInTime(BackupCase):
    def test_each_backup_restores_to_its_own_point_in_time(self):
        taken = []
        self.write_random(0, 3 * MIB)
        self.write_random(20 * MIB + 4096, 100000)
        self.write_random(self.size - 5000, 5000)
        taken.append((self.backup(), bytes(self.model)))
        self.write_random(1 * MIB + 512, 70000)
        self.write_random(40 * MIB, 4096)
        taken.append((self.backup(), bytes(self.model)))
        self.zero(2 * MIB, 256 * 1024)
        self.zero(20 * MIB, MIB, discard=True)
        self.write_random(40 * MIB + 4096, 4096)
        taken.append((self.backup(), bytes(self.model)))
        kinds = [m["kind"] for m, _ in taken]
        self.assertEqual(kinds, ["full", "incremental", "incremental"])
        for manifest, model in taken:
            self.assert_restores(manifest, model)
        self.assert_sound()
        self.assert_settled()
        self.assert_clean_directory()

    def test_qemu_img_reads_the_chain(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(MIB // 2, MIB)
        self.zero(0, CLUSTER)
        last = self.backup()
        target = self.path("by-qemu.raw")
        qemu_img("check", "-f", "qcow2", self.image_of(last))
        qemu_img("convert", "-f", "qcow2", "-O", "raw", self.image_of(last), target)
        with open(target, "rb") as f:
            self.assertTrue(f.read() == self.model)
        info = json.loads(qemu_img("info", "--output=json", self.image_of(last)).stdout)
        self.assertEqual(info["backing-filename-format"], "qcow2")
        self.assertEqual(info["format-specific"]["data"]["compression-type"], "zstd")

    def test_an_incremental_backup_moves_only_what_changed(self):
        self.write_random(0, 16 * MIB)
        full = self.backup()
        self.write_random(5 * MIB, 100)
        self.write_random(30 * MIB, CLUSTER)
        incremental = self.backup()
        nothing = self.backup()
        self.assertEqual(full["moved-bytes"], 16 * MIB)
        self.assertEqual(incremental["changed-bytes"], 2 * CLUSTER)
        self.assertEqual(incremental["moved-bytes"], 2 * CLUSTER)
        self.assertLess(incremental["stored-bytes"], 8 * CLUSTER)
        self.assertEqual(nothing["changed-bytes"], 0)
        self.assert_restores(nothing, self.model)

    def test_discarded_areas_cost_nothing_to_move(self):
        self.write_random(0, 16 * MIB)
        self.backup()
        self.zero(0, 16 * MIB, discard=True)
        manifest = self.backup()
        self.assertEqual(manifest["changed-bytes"], 16 * MIB)
        self.assertEqual(manifest["moved-bytes"], 0)
        self.assert_restores(manifest, self.model)

    def test_a_backup_under_writes_is_the_state_of_one_moment(self):
        self.check_backups_under_writes(24 * MIB, 32 * MIB, count=4)

    def test_the_chain_goes_on_after_the_daemon_was_restarted(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(2 * MIB, 1000)
        self.server.quit()
        self.start()
        self.write_random(3 * MIB, 1000)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assertEqual(manifest["changed-bytes"], 2 * CLUSTER)
        self.assert_restores(manifest, self.model)

    def test_full_is_taken_when_asked_for(self):
        self.write_random(0, MIB)
        self.backup()
        manifest = self.backup("--full")
        self.assertEqual((manifest["kind"], manifest["reason"]), ("full", "asked for"))
        self.write_random(0, 100)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)


class TestOtherDisks(BackupCase):
    size = 8 * MIB + 512

    def test_a_disk_that_ends_within_a_cluster(self):
        self.write_random(0, self.size)
        self.backup()
        self.write_random(self.size - 512, 512)
        self.assert_restores(self.backup(), self.model)
        self.assert_sound()

    def test_a_raw_disk_has_a_bitmap_for_the_life_of_the_daemon(self):
        self.server.quit()
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as f:
            f.truncate(self.size)
        self.start(driver="raw")
        self.write_random(0, MIB)
        self.backup()
        self.write_random(4096, 4096)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)

    def test_a_daemon_without_nbd_server_gets_one_for_the_time_of_the_backup(self):
        self.server.quit()
        self.start(server=False)
        self.assertEqual(self.backup()["kind"], "full")
        self.server.qmp.command(
            "nbd-server-start",
            addr={"type": "unix", "data": {"path": self.socket}},
        )
        self.assertEqual(self.backup()["kind"], "incremental")


class TestExports(BackupCase):
    def add_export(self, name, writable):
        self.server.qmp.command(
            "block-export-add",
            **{"type": "nbd", "id": name, "node-name": "disk", "name": name, "writable": writable},
        )

    def test_all_exports_of_the_disk_move_to_the_filter_and_back(self):
        self.add_export("reader", False)
        reader = nbd.NBD()
        reader.connect_uri(nbd_uri(self.socket, "reader"))
        self.write_random(0, MIB)
        self.backup()
        self.write_random(0, MIB)
        self.assert_restores(self.backup(), self.model)
        self.assertTrue(reader.pread(MIB, 0) == self.model[:MIB])
        reader.shutdown()
        self.assert_settled()

    def test_two_exports_that_write(self):
        self.add_export("writer", True)
        self.write_random(0, MIB)
        self.backup()
        second = nbd.NBD()
        second.connect_uri(nbd_uri(self.socket, "writer"))
        data = self.random.randbytes(MIB)
        second.pwrite(data, 5 * MIB)
        second.shutdown()
        self.model[5 * MIB : 6 * MIB] = data
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)
        self.assert_settled()

    def test_a_backup_that_can_not_begin_changes_nothing(self):
        """Somebody writes to the disk through another node, past any filter."""
        self.write_random(0, MIB)
        self.backup()
        before = self.own_bitmaps()
        self.server.qmp.command(
            "blockdev-add", **{"driver": "raw", "node-name": "above", "file": "disk"}
        )
        self.server.qmp.command(
            "block-export-add",
            **{"type": "nbd", "id": "above", "node-name": "above", "writable": True},
        )
        self.backup_fails_at_once(why="Permission conflict")
        self.assertEqual(self.own_bitmaps(), before)
        self.assert_clean_directory()
        self.server.qmp.command("block-export-del", id="above")
        self.server.qmp.command("blockdev-del", **{"node-name": "above"})
        self.write_random(MIB, MIB)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)


class TestReasons(BackupCase):
    """Why everything is read although there is an earlier backup."""

    def reason(self, kind="full"):
        manifest = self.backup()
        self.assertEqual(manifest["kind"], kind)
        self.assert_restores(manifest, self.model)
        self.assert_settled()
        self.last = manifest
        return manifest["reason"]

    def compared(self):
        """Without a bitmap, what has other checksums than in the last backup is stored."""
        reason = self.reason(kind="incremental")
        self.assertEqual(self.last["parent"], self.first["id"])
        self.assertEqual(self.last["changed-bytes"], MIB)
        self.assertEqual(self.last["moved-bytes"], 2 * MIB)
        self.assert_sound()
        return reason

    def setUp(self):
        super().setUp()
        self.write_random(0, MIB)
        self.first = self.backup()
        self.write_random(MIB, MIB)

    def test_bitmap_is_gone(self):
        self.server.qmp.command(
            "block-dirty-bitmap-remove", node="disk", name=self.first["bitmap"]
        )
        self.assertIn(f"'{self.first['bitmap']}' of the last backup is not on", self.compared())

    def test_bitmap_was_disabled(self):
        self.server.qmp.command(
            "block-dirty-bitmap-disable", node="disk", name=self.first["bitmap"]
        )
        self.assertIn("was disabled", self.compared())

    def test_a_disabled_bitmap_stays_unused_when_the_next_backup_fails(self):
        """It lacks changes, although another one has recorded since."""
        self.server.qmp.command(
            "block-dirty-bitmap-disable", node="disk", name=self.first["bitmap"]
        )
        self.write_random(5 * MIB, CLUSTER)
        self.hold_backup().kill()
        self.assertRegex(self.reason(kind="incremental"), "is not on node|was disabled")

    def kill_daemon(self):
        self.server.kill()
        # The kernel closes the sockets of a process when its last I/O has ended.
        wait_until(lambda: not can_connect(self.server.qmp_path), "the end of the daemon")

    def test_bitmap_is_inconsistent(self):
        """A program without an activity log has crashed."""
        self.kill_daemon()
        qemu_io(self.image, "read 0 4k", fmt="qcow2")  # clears the autoclear bit
        self.start()
        self.assertIn("inconsistent", self.compared())

    def test_daemon_was_killed(self):
        """The bitmap is complete after that: a superset, and what was written is small."""
        self.kill_daemon()
        self.start()
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)
        self.assert_settled()

    def shrink(self, size):
        self.server.quit()
        qemu_img("resize", "-q", "--shrink", "-f", "qcow2", self.image, str(size))
        del self.model[size:]
        self.start()

    def test_disk_has_shrunk(self):
        self.shrink(self.size - MIB)
        self.assertIn("resized from 64 MiB to 63 MiB", self.reason(kind="incremental"))
        self.assert_sound()
        self.shrink(self.size - MIB - 512)
        reason = self.reason(kind="incremental")
        self.assertIn("resized from 66060288 to 66059776 bytes", reason)

    def test_an_earlier_file_is_gone(self):
        os.unlink(self.image_of(self.first))
        self.assertIn("is gone", self.reason())

    def test_an_earlier_file_was_cut(self):
        os.truncate(self.image_of(self.first), 100000)
        self.assertIn("was changed", self.reason())

    def test_an_earlier_manifest_is_damaged(self):
        path = os.path.join(self.repository, self.first["id"], "manifest.json")
        with open(path, "w", encoding="utf-8") as f:
            f.write("{}")
        self.assertIn("damaged", self.reason())


class TestRate(BackupCase):
    size = 8 * MIB

    def test_reading_is_limited(self):
        self.write_random(0, 4 * MIB)
        begin = time.monotonic()
        manifest = self.backup("--rate", "4M")
        # The first read of each worker need not wait.
        self.assertGreater(time.monotonic() - begin, 0.8)
        self.assert_restores(manifest, self.model)
        result = run(*self.backup_words("--rate", "0"), check=False)
        self.assertEqual(result.returncode, 1)


class TestComparing(BackupCase):
    """Incremental by checksum."""

    def compare(self):
        manifest = self.backup("--compare")
        self.assertEqual((manifest["kind"], manifest["reason"]), ("incremental", "asked for"))
        self.assert_restores(manifest, self.model)
        return manifest

    def test_only_what_differs_is_stored(self):
        self.write_random(0, 8 * MIB)
        self.backup()
        self.write(MIB, bytes(self.model[MIB : 2 * MIB]))
        self.write_random(3 * MIB, 100)
        self.write_random(30 * MIB, CLUSTER)
        self.write_random(5 * MIB, CLUSTER)
        manifest = self.compare()
        self.assertEqual(manifest["changed-bytes"], 3 * CLUSTER)
        self.assertEqual(manifest["moved-bytes"], 8 * MIB + CLUSTER)
        self.assertLess(manifest["stored-bytes"], 12 * CLUSTER)
        self.assert_sound()

    def test_zeroes_in_the_place_of_data_and_data_in_that_of_zeroes(self):
        self.write_random(0, 8 * MIB)
        self.backup()
        self.zero(0, MIB, discard=True)
        self.write(2 * MIB, bytes(MIB))
        self.zero(20 * MIB, MIB)
        self.write_random(40 * MIB, MIB)
        self.assertEqual(self.compare()["changed-bytes"], 3 * MIB)
        self.write_random(0, 3 * MIB)
        self.zero(40 * MIB, MIB)
        self.assertEqual(self.compare()["changed-bytes"], 4 * MIB)
        self.assertEqual(self.compare()["changed-bytes"], 0)
        self.assert_sound()

    def test_it_compares_with_the_whole_chain(self):
        self.write_random(0, 4 * MIB)
        for i in range(6):
            self.write_random(i * MIB // 2 + 4096, 300000)
            self.zero(i * MIB + CLUSTER, CLUSTER)
            self.backup()
        before = bytes(self.model)
        self.write_random(0, 4 * MIB)
        self.backup()
        self.write(0, before[: 2 * MIB])
        self.assertEqual(self.compare()["changed-bytes"] // CLUSTER, 2 * MIB // CLUSTER)
        self.write_random(0, 100)
        manifest = self.backup()
        self.assertNotIn("reason", [k for k, v in manifest.items() if v])
        self.assert_restores(manifest, self.model)
        self.assert_sound()

    def test_what_a_bitmap_marks_is_stored_only_where_it_differs(self):
        self.write_random(0, 8 * MIB)
        self.backup()
        self.write(MIB, bytes(self.model[MIB : 4 * MIB]))
        self.write_random(2 * MIB, 100)
        self.zero(20 * MIB, MIB)
        self.write(30 * MIB, bytes(MIB))
        self.zero(6 * MIB, CLUSTER, discard=True)
        self.write(7 * MIB, bytes(CLUSTER))
        self.write_random(40 * MIB, CLUSTER)
        out = run(*self.backup_words()).stdout
        manifest = self.list_backups()[-1]
        self.assertEqual((manifest["kind"], manifest["reason"]), ("incremental", None))
        self.assertEqual(manifest["changed-bytes"], 4 * CLUSTER)
        self.assertLess(manifest["stored-bytes"], 12 * CLUSTER)
        self.assertIn("marks more than what differs", out)
        self.assert_restores(manifest, self.model)
        self.write(0, bytes(self.model[: 4 * MIB]))
        manifest = self.backup()
        self.assertEqual((manifest["changed-bytes"], manifest["moved-bytes"]), (0, 4 * MIB))
        self.assert_restores(manifest, self.model)
        self.assert_sound()

    def test_the_reason_is_shown(self):
        self.write_random(0, MIB)
        self.backup()
        out = run(*self.backup_words("--compare")).stdout
        self.assertNotIn("marks more", out)
        self.assertIn("incremental, builds on", out)
        self.assertIn("read and compared the whole disk: asked for", out)


class TestCutOff(BackupCase):
    """What a run leaves that was killed, and that the next one finds its way."""

    def setUp(self):
        super().setUp()
        self.write_random(0, 40 * MIB)

    def check_recovery(self, first, model):
        """The next run works, and earlier backups are what they were."""
        self.write_random(self.random.randrange(50 * MIB), 5000)
        manifest = self.backup()
        self.assert_restores(manifest, self.model)
        self.assert_restores(first, model)
        self.assert_sound()
        self.assert_settled()
        self.assert_clean_directory()
        return manifest

    def kill_when(self, condition, what, full=True):
        process = self.start_backup(*(["--full"] if full else []))
        process.wait_for(condition, what)
        process.kill()

    def test_killed_with_the_filter_in_place(self):
        first, model = self.backup(), bytes(self.model)
        self.write_random(0, 30 * MIB)
        self.kill_when(self.own_nodes, "the filter", full=False)
        self.assertNotEqual(self.own_nodes(), [])
        self.write_random(10 * MIB, 1 * MIB)
        manifest = self.check_recovery(first, model)
        self.assertEqual(manifest["kind"], "incremental")
        self.assertGreaterEqual(manifest["changed-bytes"], 30 * MIB)

    def test_killed_while_it_fetches(self):
        first, model = self.backup(), bytes(self.model)
        self.write_random(0, 30 * MIB)
        self.kill_when(self.own_exports, "the export", full=False)
        self.assertEqual(self.check_recovery(first, model)["kind"], "incremental")

    def test_killed_during_the_first_backup(self):
        self.kill_when(self.own_exports, "the export")
        self.write_random(0, 5000)
        manifest = self.backup()
        self.assertEqual(manifest["reason"], "there is no earlier backup")
        self.assert_restores(manifest, self.model)
        self.assert_settled()
        self.assert_clean_directory()

    def test_killed_right_after_the_backup_was_complete(self):
        first, model = self.backup(), bytes(self.model)
        self.write_random(0, 30 * MIB)

        def complete():
            return len([n for n in os.listdir(self.repository) if n[0] == "2"]) > 1

        self.kill_when(complete, "the second backup", full=False)
        self.assertEqual(len(self.list_backups()), 2)
        manifest = self.check_recovery(first, model)
        self.assertEqual(manifest["kind"], "incremental")
        self.assertLess(manifest["changed-bytes"], MIB)

    def test_killed_at_any_time(self):
        first, model = self.backup(), bytes(self.model)
        for milliseconds in (1, 5, 10, 20, 30, 50, 70, 100, 150, 200, 300):
            self.write_random(self.random.randrange(30 * MIB), 10 * MIB)
            process = self.start_backup()
            time.sleep(milliseconds / 1000)
            process.kill()
        self.check_recovery(first, model)

    def test_killed_and_then_the_daemon_restarted(self):
        first, model = self.backup(), bytes(self.model)
        self.write_random(0, 30 * MIB)
        self.kill_when(self.own_exports, "the export", full=False)
        self.write_random(10 * MIB, 1 * MIB)
        self.server.quit()
        self.start()
        self.assertEqual(self.check_recovery(first, model)["kind"], "incremental")

    def test_stopped_by_the_user(self):
        first, model = self.backup(), bytes(self.model)
        self.write_random(0, 30 * MIB)
        held = self.hold_backup()
        held.process.send_signal(signal.SIGINT)
        status, said = held.release()
        self.assertEqual(status, 1)
        self.assertIn("was stopped", said)
        self.assert_settled()
        self.assert_clean_directory()
        self.assertEqual(len(self.own_bitmaps()), 1)
        self.assertEqual(self.check_recovery(first, model)["kind"], "incremental")

    def test_stopped_while_the_daemon_does_not_answer(self):
        """What is given up then is no failure whose cause is worth a guess."""
        process = self.start_backup("--rate=2M")
        made = os.path.join(self.repository, ".tidemark-tmp*", "checksums")
        process.wait_for(lambda: any(map(os.path.getsize, glob.glob(made))), "the first digests")
        freeze(self.server.pid)
        self.addCleanup(self.server.process.send_signal, signal.SIGCONT)
        process.process.send_signal(signal.SIGTERM)
        process.wait_for(lambda: "connection is cut" in process.log(), "the end of waiting")
        self.server.process.send_signal(signal.SIGCONT)
        self.assertEqual(process.wait(), 1)
        self.assertIn("was stopped", process.log())
        self.assertNotIn("old data", process.log())
        self.assert_settled()

    def test_two_runs_at_once(self):
        process = self.start_backup()
        process.wait_for(self.own_nodes, "the filter")
        freeze(process.process.pid)
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("is under way", result.stderr)
        process.process.send_signal(signal.SIGCONT)
        self.assertEqual(process.wait(), 0, process.log())


class TestFailures(BackupCase):
    def test_no_space_for_the_backup(self):
        """In a mount namespace of its own the repository lies on a small file system."""
        fleece = self.path("fleece")
        os.mkdir(fleece)
        os.mkdir(self.repository)
        self.write_random(0, MIB)
        words = " ".join(self.backup_words("--fleece-dir", fleece))
        change = " ".join([*tool("io"), "-f", "raw"])
        uri = nbd_uri(self.socket, "disk")
        script = f"""
            mount -t tmpfs -o size=8m tmpfs {self.repository}
            {words}
            head -c 6m /dev/urandom > {self.path("noise")}
            {change} -c 'write -s {self.path("noise")} 10M 6M' '{uri}'
            head -c 5m /dev/zero > {self.repository}/.tidemark-filler
            if {words}; then exit 7; fi
            {change} -c 'write -P 1 20M 64k' '{uri}'
            rm {self.repository}/.tidemark-filler
            {words}
            {" ".join(tool("verify"))} {self.repository}
            {" ".join(tool("backups"))} {self.repository}
            {" ".join(tool("restore"))} {self.repository} {self.path("restored.raw")}
        """
        how = "-m" if os.geteuid() == 0 else "-rm"
        result = run("unshare", how, "sh", "-ec", script)
        self.assertIn("No space left", result.stderr)
        self.assertIn("incremental, builds on", result.stdout)
        self.assertEqual(os.listdir(fleece), [])
        with open(self.path("noise"), "rb") as f:
            self.model[10 * MIB : 16 * MIB] = f.read()
        self.model[20 * MIB : 20 * MIB + CLUSTER] = b"\1" * CLUSTER
        with open(self.path("restored.raw"), "rb") as f:
            self.assertTrue(f.read() == self.model)
        self.assert_settled()

    def test_no_space_for_old_data_ends_the_backup_and_not_the_guest(self):
        """The daemon may write 36 MiB of a file: enough for the disk's image, not for the
        temporary one, in which old data keeps its offset."""
        self.write_random(38 * MIB, 24 * MIB)
        self.server.quit()

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (36 * MIB, 36 * MIB))

        self.start(preexec_fn=limit)
        first = self.backup()
        self.write_random(38 * MIB, 24 * MIB)
        process = self.start_backup()
        process.wait_for(self.own_nodes, "the filter")
        freeze(process.process.pid)
        self.write_random(61 * MIB, MIB)
        process.process.send_signal(signal.SIGCONT)
        self.assertEqual(process.wait(), 1, process.log())
        self.assertIn("Could not", process.log())
        self.assertIn("can't be read any more", self.server.log())
        self.assert_settled()
        manifest = self.backup()
        self.assertEqual(manifest["parent"], first["id"])
        self.assert_restores(manifest, self.model)

    def test_a_failed_full_backup_keeps_the_chain(self):
        self.write_random(0, MIB)
        first = self.backup()
        self.write_random(0, 40 * MIB)
        process = self.start_backup("--full")
        process.wait_for(self.own_exports, "the export")
        self.server.qmp.command("block-export-del", id=self.own_exports()[0], mode="hard")
        self.assertEqual(process.wait(), 1, process.log())
        self.assert_settled()
        manifest = self.backup()
        self.assertEqual(manifest["parent"], first["id"])
        self.assert_restores(manifest, self.model)

    def test_words_for_what_is_wrong(self):
        def fails(*words, why):
            result = run(*tool("backup"), *words, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn(why, result.stderr)

        qmp = ["--qmp", self.server.qmp_path]
        to = ["--to", self.repository]
        fails(*to, "--node", "disk", why="--qmp is missing")
        fails("--qmp", "/nowhere", "--node", "disk", *to, why="Could not connect to QMP socket")
        fails(*qmp, "--node", "dusk", *to, why="has no node 'dusk'")
        fails(*qmp, "--node", "disk", "--to", self.dir, why="is not empty")
        self.backup()
        self.server.qmp.command(
            "blockdev-add", **{"driver": "null-co", "node-name": "other", "size": MIB}
        )
        fails(*qmp, "--node", "other", *to, why="holds backups of node 'disk', not of 'other'")


class TestStrangeDaemons(TestCase):
    """What answers at the QMP socket is no daemon of ours."""

    GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'

    def backup_from(self, *answers):
        """A server that sends one of `answers` at once and then one for each line it gets."""
        path = self.path("strange.sock")

        def serve():
            with listener.accept()[0] as peer, peer.makefile("rb") as lines:
                for answer in answers:
                    for part in answer if isinstance(answer, tuple) else (answer,):
                        peer.sendall(part)
                        time.sleep(0.01 if part is not answer else 0)
                    if not lines.readline():
                        return

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            thread = threading.Thread(target=serve)
            thread.start()
            result = run(
                *tool("backup"), "--qmp", path, "--node", "disk", "--to", self.path("to"),
                check=False,
            )  # fmt: skip
            thread.join(30)
        os.unlink(path)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(os.listdir(self.path("to")) if os.path.exists(self.path("to")) else [], [])
        return result.stderr

    def test_it_hangs_up(self):
        self.assertIn("closed the connection", self.backup_from())

    def test_it_speaks_something_else(self):
        self.assertIn("is no QMP message", self.backup_from(b"220 mail ESMTP\r\n"))

    def test_it_sends_json_that_is_no_greeting(self):
        self.assertIn("is no QMP socket", self.backup_from(b"{}\n"))

    def test_it_sends_other_json_than_objects(self):
        self.assertIn("is no QMP message", self.backup_from(b"[1, 2]\n"))

    def test_a_monitor_that_has_something_left_for_its_former_client(self):
        answer = b'{"error": {"class": "GenericError", "desc": "go away"}, "id": 0}\n'
        for left in (
            b'{"return": {}, "id": 3}\r\n',
            b'{"event": "SHUTDOWN", "data": {}}\r\n{"return": [{"name": "x"}], "id": 9}\r\n',
            b'turn": {"a": [{"b": 1}]}, "id": 3}\r\n{"return": {}}\r\n',
            b'7}, "id": 3}\r\n',
            b'"}\r\n',
            b"}\r\n",
        ):
            self.assertIn("go away", self.backup_from(left + self.GREETING, answer), left)
            parts = (left, self.GREETING)
            self.assertIn("go away", self.backup_from(parts, answer), left)

    def test_it_refuses(self):
        answer = b'{"error": {"class": "GenericError", "desc": "go away"}, "id": 0}\n'
        self.assertIn("go away", self.backup_from(self.GREETING, answer))

    def test_it_answers_neither_yes_nor_no(self):
        self.assertIn("an answer that is none", self.backup_from(self.GREETING, b'{"id": 0}\n'))


class TestReading(BackupCase):
    """restore, verify and backups on what is not as it should be."""

    def setUp(self):
        super().setUp()
        self.write_random(0, 2 * MIB)
        self.first = self.backup()
        self.write_random(MIB, 4096)
        self.second = self.backup()

    def flip(self, manifest, name, offset):
        path = os.path.join(self.repository, manifest["id"], name)
        with open(path, "r+b") as f:
            f.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
            byte = f.read(1)
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 0x40]))

    def verify(self, status):
        result = run(*tool("verify"), self.repository, check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result.stdout

    def test_verify_names_the_damaged_file_and_what_builds_on_it(self):
        self.flip(self.first, "disk.qcow2", MIB)
        out = self.verify(2).splitlines()
        self.assertIn(f"{self.first['id']}/disk.qcow2' was changed", out[0])
        self.assertIn(f"Backup {self.first['id']}, which it builds on, is damaged", out[1])

    def test_verify_with_only_the_last_one_damaged(self):
        self.flip(self.second, "checksums", 70)
        out = self.verify(2).splitlines()
        self.assertIn("sound", out[0])
        self.assertIn(f"{self.second['id']}/checksums' was changed", out[1])

    def test_verify_notices_a_changed_manifest(self):
        path = os.path.join(self.repository, self.second["id"], "manifest.json")
        with open(path, encoding="utf-8") as f:
            text = f.read().replace('"disk"', '"dusk"')
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        self.assertIn("checksum does not match", self.verify(2))

    def test_verify_notices_a_missing_parent(self):
        shutil.rmtree(os.path.join(self.repository, self.first["id"]))
        self.assertIn("which is gone", self.verify(2))

    def test_restore_notices_damage_and_leaves_no_file(self):
        self.flip(self.first, "disk.qcow2", 3 * MIB // 2)
        target = self.path("out.raw")
        result = run(*tool("restore"), self.repository, target, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"{self.first['id']}/disk.qcow2", result.stderr)
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith("out")], [])

    def test_restore_never_follows_the_backing_name_of_an_image(self):
        secret = self.path("secret.qcow2")
        img("create", "-q", "-f", "qcow2", secret, str(self.size))
        qemu_img("rebase", "-u", "-b", secret, "-F", "qcow2", "-f", "qcow2",
                 self.image_of(self.second))  # fmt: skip
        os.chmod(secret, 0)
        self.assert_restores(self.second, self.model)
        self.assertIn("was changed", self.verify(2))

    def test_restore_makes_sparse_files(self):
        target = self.path("out.raw")
        run(*tool("restore"), self.repository, target)
        self.assertLess(os.stat(target).st_blocks * 512, 3 * MIB)
        self.assertEqual(os.stat(target).st_size, self.size)

    def test_restore_to_qcow2(self):
        target = self.path("out.qcow2")
        run(*tool("restore"), self.repository, "-f", "qcow2", target)
        qemu_img("compare", "-f", "qcow2", "-F", "qcow2", target, self.image_of(self.second))

    def test_restore_overwrites_only_when_told(self):
        target = self.path("out.raw")
        with open(target, "w", encoding="utf-8") as f:
            f.write("mine")
        result = run(*tool("restore"), self.repository, target, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("exists already", result.stderr)
        with open(target, encoding="utf-8") as f:
            self.assertEqual(f.read(), "mine")
        run(*tool("restore"), self.repository, "--force", target)
        self.assertEqual(os.stat(target).st_size, self.size)

    def test_restore_of_an_unknown_id(self):
        result = run(
            *tool("restore"), self.repository, "--at", "1999", self.path("out.raw"), check=False
        )
        self.assertEqual(result.returncode, 1)
        self.assertIn("There is no backup '1999'", result.stderr)

    def test_list_shows_each_backup(self):
        out = run(*tool("backups"), self.repository).stdout.splitlines()
        self.assertEqual(len(out), 3)
        self.assertIn("full", out[1])
        self.assertIn("incremental", out[2])
        with open(os.path.join(self.repository, self.first["id"], "manifest.json"), "wb") as f:
            f.write(b"\0")
        out = run(*tool("backups"), self.repository).stdout
        self.assertIn("damaged", out)

    def test_progress_is_shown_when_asked_for(self):
        result = run(*tool("restore"), self.repository, "-p", self.path("out.raw"))
        self.assertIn("100.0%", result.stderr)
        result = run(*tool("restore"), self.repository, self.path("out2.raw"))
        self.assertEqual(result.stderr, "")

    def test_a_directory_without_backups(self):
        for face in ("backups", "verify"):
            result = run(*tool(face), self.path("nothing"), check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("Could not open directory", result.stderr)
            os.makedirs(self.path("empty/inner"), exist_ok=True)
            result = run(*tool(face), self.path("empty"), check=False)
            self.assertEqual(result.returncode, 1)
            self.assertIn("holds no backups", result.stderr)
