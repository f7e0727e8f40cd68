# SPDX-License-Identifier: Apache-2.0
"""Backups of disks of QEMU's own storage daemon, as it is."""

import json
import os
import time

from backup_case import MIB, BackupCase
from tidemark import can_connect, img, nbd_uri, qemu, qemu_img, run, tool, wait_until

CLUSTER = 65536


class QemuCase(BackupCase):
    """One monitor is the test's, another one that of backups: each serves one client."""

    size = 16 * MIB

    def start(self, driver="qcow2", server=True, **_):
        self.monitor = self.path("backup.qmp")
        super().start(
            driver,
            server,
            program=[
                qemu("qemu-storage-daemon"),
                "--chardev", f"socket,id=backup,path={self.monitor},server=on,wait=off",
                "--monitor", "chardev=backup",
            ],
        )  # fmt: skip
        wait_until(lambda: os.path.exists(self.monitor), "the second monitor")
        self.nbd_words = ["--nbd", nbd_uri(self.socket)] if server else []

    def backup_words(self, *words):
        return [
            *tool("backup"), "--qmp", self.monitor, "--node", "disk", "--to", self.repository,
            *self.nbd_words, *words,
        ]  # fmt: skip

    def own_jobs(self):
        return [j["id"] for j in self.server.qmp.command("query-jobs")]

    def assert_settled(self):
        super().assert_settled()
        self.assertEqual(self.own_jobs(), [])
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith(".tidemark")], [])


class TestPointsInTime(QemuCase):
    def test_each_backup_restores_to_its_own_point_in_time(self):
        taken = []
        self.write_random(0, 3 * MIB)
        self.write_random(self.size - 5000, 5000)
        taken.append((self.backup(), bytes(self.model)))
        self.write_random(1 * MIB + 512, 70000)
        self.write_random(10 * MIB, 4096)
        taken.append((self.backup(), bytes(self.model)))
        self.zero(2 * MIB, 256 * 1024)
        taken.append((self.backup(), bytes(self.model)))
        self.assertEqual(
            [(m["kind"], m["changed-bytes"]) for m, _ in taken],
            [("full", 49 * CLUSTER), ("incremental", 3 * CLUSTER), ("incremental", 4 * CLUSTER)],
        )
        for manifest, model in taken:
            self.assert_restores(manifest, model)
        self.assert_sound()
        self.assert_settled()
        self.assert_clean_directory()

    def test_a_backup_under_writes_is_the_state_of_one_moment(self):
        self.check_backups_under_writes(4 * MIB, 8 * MIB, count=2)

    def test_the_chain_goes_on_after_a_restart_and_in_our_daemon(self):
        self.write_random(0, MIB)
        self.backup()
        self.write_random(2 * MIB, 1000)
        self.server.quit()
        self.start()
        self.write_random(3 * MIB, 1000)
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, 2 * CLUSTER))
        self.assert_restores(manifest, self.model)
        self.server.quit()
        BackupCase.start(self)
        self.monitor, self.nbd_words = self.server.qmp_path, []
        self.write_random(4 * MIB, 1000)
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, CLUSTER))
        self.assert_restores(manifest, self.model)

    def test_a_raw_disk_is_compared_after_a_restart(self):
        self.server.quit()
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as f:
            f.truncate(self.size)
        self.start(driver="raw")
        self.write_random(0, MIB)
        self.backup()
        self.write_random(0, CLUSTER)
        self.assertIsNone(self.backup()["reason"])
        self.server.quit()
        self.start(driver="raw")
        self.write_random(0, CLUSTER)
        manifest = self.backup()
        self.assertIn("is not on node", manifest["reason"])
        self.assertEqual(manifest["changed-bytes"], CLUSTER)
        self.assert_restores(manifest, self.model)

    def resize(self, size):
        self.server.qmp.command("block_resize", node_name="disk", size=size)
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def test_a_disk_that_was_smaller_for_a_while_and_has_grown(self):
        """QEMU's bitmap does not mark what was cut off and added again."""
        for driver, cut in (("raw", 5 * MIB + 4096), ("qcow2", 6 * MIB)):
            self.server.quit()
            self.repository = self.path("backups-" + driver)
            self.image = self.path("disk." + driver)
            with open(self.path("disk.raw"), "wb") as f:
                self.model = bytearray(self.random.randbytes(self.size))
                f.write(self.model)
            if driver == "qcow2":
                img("convert", "-O", "qcow2", self.path("disk.raw"), self.image)
            self.start(driver=driver, server=False)
            taken = [(self.backup(), bytes(self.model))]
            self.resize(cut)
            self.resize(self.size + 512)
            taken.append((self.backup(), bytes(self.model)))
            if driver == "raw":
                self.assertIn("resized from 16777216 to 16777728", taken[1][0]["reason"])
            else:
                self.assertIsNone(taken[1][0]["reason"])
                self.assertEqual(taken[1][0]["moved-bytes"], CLUSTER)
            self.resize(cut)
            taken.append((self.backup(), bytes(self.model)))
            self.assertIn("resized", taken[2][0]["reason"])
            self.assertEqual(taken[2][0]["changed-bytes"], 0)
            for manifest, model in taken:
                self.assert_restores(manifest, model)
            self.assert_sound()
            self.assert_settled()

    def test_without_an_nbd_server_one_is_started_for_the_time_of_the_backup(self):
        self.server.quit()
        img("bench", "-w", "-c", "1", "-s", "65536", "-f", "qcow2", self.image)
        self.start(server=False)
        self.backup()
        self.assertEqual(self.backup()["kind"], "incremental")
        self.assert_settled()
        self.server.qmp.command(
            "nbd-server-start", addr={"type": "unix", "data": {"path": self.socket}}
        )
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("name its address with --nbd", result.stderr)
        self.assert_settled()
        self.nbd_words = ["--nbd", nbd_uri(self.socket)]
        self.assertIsNone(self.backup()["reason"])


class TestCutOff(QemuCase):
    def setUp(self):
        super().setUp()
        self.write_random(0, 8 * MIB)

    def check_recovery(self, first, model):
        self.write_random(self.random.randrange(12 * MIB), 5000)
        manifest = self.backup()
        self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)
        self.assert_restores(first, model)
        self.assert_sound()
        self.assert_settled()
        self.assert_clean_directory()

    def test_killed_with_the_job_in_place(self):
        first, model = self.backup(), bytes(self.model)
        self.write_random(0, 4 * MIB)
        self.hold_backup().kill()
        self.write_random(MIB, MIB)
        out = run(*tool("backup"), "--qmp", self.monitor, "--leftovers", "--output=json")
        (left,) = json.loads(out.stdout)
        self.assertEqual((left["node"], left["state"], left["bitmaps"]), ("disk", "cut-off", 2))
        self.assertTrue(os.path.exists(left["temporary-image"]))
        self.check_recovery(first, model)

    def test_a_guard_cleans_up_after_a_kill(self):
        self.backup()
        self.write_random(0, CLUSTER)
        self.hold_backup(guard=True).kill()
        wait_until(lambda: not self.own_jobs() and not self.own_nodes(), "the guard")
        wait_until(lambda: len(self.own_bitmaps()) == 1, "the bitmaps in order")
        manifest = self.backup()
        self.assertEqual((manifest["reason"], manifest["changed-bytes"]), (None, CLUSTER))
        self.assert_restores(manifest, self.model)
        self.assert_settled()

    def test_killed_at_any_time(self):
        first, model = self.backup(), bytes(self.model)
        for milliseconds in (10, 20, 40, 60, 100):
            self.write_random(self.random.randrange(8 * MIB), 4 * MIB)
            process = self.start_backup()
            time.sleep(milliseconds / 1000)
            process.kill()
        self.check_recovery(first, model)

    def test_abort_and_forget(self):
        self.backup()
        self.hold_backup().kill()
        run(*self.backup_words("--abort"))
        self.assert_settled()
        self.hold_backup().kill()
        (left,) = json.loads(
            run(*tool("backup"), "--qmp", self.monitor, "--leftovers", "--output=json").stdout
        )
        run(*tool("backup"), "--qmp", self.monitor, "--forget", left["repository"])
        self.assert_settled()
        self.assertEqual(self.own_bitmaps(), {})

    def test_the_daemon_is_killed(self):
        first, model = self.backup(), bytes(self.model)
        self.write_random(0, 4 * MIB)
        held = self.hold_backup()
        self.server.kill()
        status, said = held.release()
        # 3: everything was fetched before the end, and only the daemon could not be cleaned up.
        self.assertIn(status, (1, 3), said)
        self.assertEqual("is complete" in said, status == 3)
        wait_until(lambda: not can_connect(self.server.qmp_path), "the end of the daemon")
        qemu_img("check", "-q", "-r", "leaks", self.image)
        self.start()
        manifest = self.backup()
        self.assertRegex(manifest["reason"], "inconsistent|is not on node")
        self.assertLessEqual(manifest["changed-bytes"], 4 * MIB)
        self.assert_restores(manifest, self.model)
        self.assert_restores(first, model)
        self.assert_settled()

    def test_another_directory_takes_over(self):
        self.backup()
        self.hold_backup().kill()
        own, self.repository = self.repository, self.path("other")
        self.backup()
        self.assertEqual(self.own_jobs(), [])
        self.repository = own
        manifest = self.backup()
        self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)


class TestRefused(QemuCase):
    def test_no_such_node(self):
        words = [w if w != "disk" else "other" for w in self.backup_words()]
        result = run(*words, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("has no node 'other'", result.stderr)

    def test_a_limit_needs_a_guest(self):
        result = run(*self.backup_words("--cbw-timeout", "5"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("'disk' is used by 0", result.stderr)
        self.assert_settled()

    def test_a_checkpoint_that_is_refused_leaves_nothing(self):
        """Its job's name is taken."""
        self.write_random(0, MIB)
        first = self.backup()
        with open(os.path.join(self.repository, "repository.json"), encoding="utf-8") as f:
            repository = json.load(f)["id"]
        img("create", "-q", "-f", "qcow2", self.path("t.qcow2"), str(self.size))
        self.server.qmp.command(
            "blockdev-add", **{"driver": "qcow2", "node-name": "tidemark-" + repository + "-cbw",
                               "file": {"driver": "file", "filename": self.path("t.qcow2")}},
        )  # fmt: skip
        result = run(*self.backup_words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("Could not make a checkpoint of node 'disk'", result.stderr)
        self.server.qmp.command(
            "blockdev-del", **{"node-name": "tidemark-" + repository + "-cbw"}
        )
        self.assert_settled()
        self.assertEqual(list(self.own_bitmaps()), [first["bitmap"]])
        self.assertIsNone(self.backup()["reason"])
