# SPDX-License-Identifier: Apache-2.0
"""A disk that is resized between backups: one chain, in which every point in time has its size."""

import json
import os

from backup_case import MIB, BackupCase
from tidemark import Process, can_connect, qemu_img, run, tool, wait_until

CLUSTER = 65536


class ResizedDisk(BackupCase):
    size = 8 * MIB

    def resize(self, size):
        self.server.qmp.command("block_resize", node_name="disk", size=size)
        self.resize_model(size)

    def resize_model(self, size):
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def take(self, *words):
        manifest = self.backup(*words)
        self.assertEqual(manifest["virtual-size"], len(self.model))
        self.points[manifest["id"]] = bytes(self.model)
        return manifest

    def setUp(self):
        super().setUp()
        self.points = {}

    def assert_all_restore(self):
        for backup in self.list_backups():
            self.assert_restores(backup, self.points[backup["id"]])
            target = self.path("by-qemu.raw")
            qemu_img("convert", "-f", "qcow2", "-O", "raw", self.image_of(backup), target)
            with open(target, "rb") as f:
                self.assertTrue(f.read() == self.points[backup["id"]], backup["id"])
        self.assert_sound()

    def keep(self, *ids):
        """Remove all others."""
        words = [w for i in self.points if i not in ids for w in ("--remove", i)]
        run(*tool("prune"), self.repository, *words)
        self.points = {i: self.points[i] for i in ids}
        self.assertEqual([b["id"] for b in self.list_backups()], list(ids))


class TestGrowth(ResizedDisk):
    def test_a_disk_that_has_grown_goes_on_by_its_bitmap(self):
        self.write_random(0, 4 * MIB)
        self.take()
        self.resize(10 * MIB + 512)
        self.write_random(9 * MIB, 100000)
        self.write_random(10 * MIB, 512)
        self.write_random(MIB, 4096)
        manifest = self.take()
        self.assertEqual((manifest["kind"], manifest.get("reason")), ("incremental", None))
        # 9 MiB and 1.6 clusters more, the end, 1 MiB; and the last cluster that is not marked.
        self.assertEqual(manifest["moved-bytes"], 4 * CLUSTER + 512)
        self.write_random(10 * MIB, 512)
        manifest = self.take()
        self.assertEqual(manifest["moved-bytes"], 512)
        self.assert_all_restore()
        self.assert_settled()

    def test_a_short_last_cluster_becomes_a_whole_one(self):
        self.resize(8 * MIB + 512)
        self.write_random(8 * MIB, 512)
        self.take()
        self.resize(8 * MIB + 4096)
        self.take()
        self.resize(9 * MIB)
        self.write_random(8 * MIB + 8192, 512)
        self.take()
        self.assert_all_restore()
        ids = list(self.points)
        self.keep(ids[0], ids[2])
        self.assert_all_restore()

    def test_what_is_added_and_empty_takes_no_space(self):
        self.write_random(0, MIB)
        self.take()
        self.server.qmp.command("block_resize", node_name="disk", size=1 << 43)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assertEqual((manifest["changed-bytes"], manifest["moved-bytes"]), (0, CLUSTER))
        self.assertLess(manifest["stored-bytes"], MIB)
        run(*tool("prune"), self.repository, "--keep-last", "1")
        (only,) = self.list_backups()
        self.assertEqual(only["virtual-size"], 1 << 43)
        self.assertLess(only["stored-bytes"], 4 * MIB)
        self.assert_sound()

    def test_writes_during_the_backup_do_not_get_into_it(self):
        self.write_random(0, 4 * MIB)
        self.take()
        self.resize(12 * MIB)
        self.write_random(9 * MIB, 2 * MIB)
        self.write_random(MIB, MIB)
        before = bytes(self.model)
        held = self.hold_backup("--output=json")
        self.write_random(9 * MIB, MIB)
        self.write_random(MIB, MIB)
        status, said = held.release()
        self.assertEqual(status, 0, said)
        self.points[self.list_backups()[-1]["id"]] = before
        self.take()
        self.assert_all_restore()

    def test_an_audit_compares_what_was_there_before(self):
        self.write_random(0, 4 * MIB)
        self.take()
        self.resize(10 * MIB)
        self.write_random(8 * MIB, 2 * MIB)
        words = [*tool("audit"), "--qmp", self.server.qmp_path, "--node", "disk",
                 "--to", self.repository, "--output=json"]  # fmt: skip
        found = json.loads(run(*words).stdout)
        self.assertEqual((found["missed-bytes"], found["marked-bytes"]), (0, 2 * MIB))
        self.assertEqual(found["compared-bytes"], 8 * MIB)


class TestShrinking(ResizedDisk):
    def test_a_disk_that_has_shrunk_is_compared(self):
        self.write_random(0, 8 * MIB)
        self.take()
        self.resize(5 * MIB + 512)
        self.write_random(MIB, 4096)
        manifest = self.take()
        self.assertEqual(manifest["kind"], "incremental")
        self.assertIn("resized from 8 MiB to 5 MiB", manifest["reason"])
        self.assertLess(manifest["stored-bytes"], 8 * CLUSTER)
        self.assertIsNone(self.take()["reason"])
        self.assert_all_restore()

    def test_what_was_cut_off_does_not_come_back_with_growth(self):
        self.write_random(0, 8 * MIB)
        self.take()
        self.resize(5 * MIB + 512)
        self.take()
        self.resize(8 * MIB)
        self.take()
        self.write_random(6 * MIB, 4096)
        self.take()
        self.assert_all_restore()
        ids = list(self.points)
        for kept in ([ids[0], ids[2], ids[3]], [ids[0], ids[3]], [ids[3]]):
            self.keep(*kept)
            self.assert_all_restore()

    def test_between_two_backups_too(self):
        self.write_random(0, 8 * MIB)
        self.take()
        self.resize(5 * MIB + 512)
        self.resize(8 * MIB)
        self.take()
        self.resize(5 * MIB)
        self.resize(9 * MIB)
        self.take()
        self.assert_all_restore()


class TestOtherCommands(ResizedDisk):
    def setUp(self):
        super().setUp()
        self.write_random(0, 8 * MIB)
        self.first = self.take()
        self.resize(5 * MIB + 512)
        self.second = self.take()
        self.resize(12 * MIB)
        self.write_random(10 * MIB, MIB)
        self.third = self.take()

    def test_every_point_in_time_is_served_with_its_size(self):
        for number, model in enumerate(self.points.items()):
            where = self.path(f"serve{number}.sock")
            self.own(
                Process(
                    [*tool("serve"), self.repository, "--at", model[0], "-k", where],
                    self.path("serve.log"),
                )
            )
            wait_until(lambda: can_connect(where), "the server")  # noqa: B023
            target = self.path("served.raw")
            qemu_img("convert", "-O", "raw", f"nbd+unix:///?socket={where}", target)
            with open(target, "rb") as f:
                self.assertTrue(f.read() == model[1])

    def test_a_copy_has_them_all(self):
        copy = self.path("copy")
        run(*tool("copy"), self.repository, copy)
        self.repository = copy
        self.assert_all_restore()
        last = self.path("last")
        run(*tool("copy"), copy, last, "--last", "1")
        self.repository = last
        self.assert_all_restore()

    def test_checksums_and_manifests_are_made_again(self):
        for backup, name in ((self.second, "checksums"), (self.third, "manifest.json")):
            os.unlink(os.path.join(self.repository, backup["id"], name))
        run(*tool("repair"), self.repository)
        self.assert_all_restore()

    def test_damage_is_found(self):
        with open(self.image_of(self.third), "r+b") as f:
            f.seek(-40000, os.SEEK_END)
            f.write(b"x" * 100)
        result = run(*tool("verify"), self.repository, check=False)
        self.assertEqual(result.returncode, 2)
        target = self.path("never.raw")
        result = run(*tool("restore"), self.repository, target, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertFalse(os.path.exists(target))


class TestRandomSizes(ResizedDisk):
    def test_every_kept_backup_restores(self):
        for _ in range(30):
            size = self.random.choice((1, 3, 8, 12)) * MIB
            size += self.random.choice((0, 512, CLUSTER, 70144))
            what = self.random.randrange(8)
            if what < 3:
                self.resize(size)
            elif what < 5:
                offset = self.random.randrange(len(self.model) // 512) * 512
                self.write_random(offset, min(200000, len(self.model) - offset))
            elif what == 5:
                offset = self.random.randrange(len(self.model) // 512) * 512
                self.zero(offset, min(300000, len(self.model) - offset))
            elif what == 6 and len(self.points) > 2:
                ids = list(self.points)
                self.keep(self.random.choice(ids[:-1]), ids[-1])
            else:
                self.take(*self.random.choice(((), (), (), ("--compare",))))
        self.take()
        self.assert_all_restore()


class TestImages(ResizedDisk):
    def offline(self, image, fmt):
        return json.loads(
            run(
                *tool("backup"), "--image", image, "--format", fmt, "--to", self.repository,
                "--output=json",
            ).stdout
        )  # fmt: skip

    def test_an_image_that_is_resized_while_nobody_uses_it(self):
        self.write_random(0, 8 * MIB)
        self.take()
        self.server.quit()
        for size, kind in ((9 * MIB + 512, None), (7 * MIB, "resized")):
            qemu_img("resize", "-q", "--shrink", "-f", "qcow2", self.image, str(size))
            self.resize_model(size)
            manifest = self.offline(self.image, "qcow2")
            self.points[manifest["id"]] = bytes(self.model)
            self.assertEqual(manifest["kind"], "incremental")
            self.assertIn(kind or "None", str(manifest["reason"]))
        self.assert_all_restore()

    def test_a_bitmap_that_does_not_mark_what_was_cut_off_and_added_again(self):
        self.write_random(0, 8 * MIB)
        self.take()
        self.write_random(MIB, CLUSTER)
        self.server.quit()
        for size in (5 * MIB, 8 * MIB + 512):
            qemu_img("resize", "-q", "--shrink", "-f", "qcow2", self.image, str(size))
            self.resize_model(size)
        self.start()
        manifest = self.take()
        self.assertEqual((manifest["kind"], manifest["reason"]), ("incremental", None))
        self.assertEqual(manifest["moved-bytes"], 2 * CLUSTER)
        self.write_random(7 * MIB, CLUSTER)
        self.assertEqual(self.take()["moved-bytes"], CLUSTER)
        self.assert_all_restore()

    def test_what_was_cut_off_and_added_again_to_the_same_size(self):
        """Tidemark marks it; of what others do, an audit and --compare know."""
        self.write_random(0, 8 * MIB)
        self.take()
        for size in (5 * MIB, 8 * MIB):
            self.resize(size)
        self.assertEqual(self.take()["reason"], None)
        self.write_random(0, 8 * MIB)
        self.take()
        self.server.quit()
        for size in (5 * MIB, 8 * MIB):
            qemu_img("resize", "-q", "--shrink", "-f", "qcow2", self.image, str(size))
            self.resize_model(size)
        self.start()
        words = [*tool("audit"), "--qmp", self.server.qmp_path, "--node", "disk", "--to",
                 self.repository, "--output=json"]  # fmt: skip
        result = run(*words, check=False)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(json.loads(result.stdout)["missed-bytes"], 3 * MIB)
        self.take("--compare")
        self.assert_all_restore()

    def test_a_raw_file_is_compared(self):
        raw = self.path("disk.raw")
        self.server.quit()
        for size in (8 * MIB, 9 * MIB + 512, 5 * MIB + 4096, 6 * MIB):
            self.resize_model(size)
            self.model[size - 100 :] = self.random.randbytes(100)
            with open(raw, "wb") as f:
                f.write(self.model)
            manifest = self.offline(raw, "raw")
            self.points[manifest["id"]] = bytes(self.model)
        self.assertEqual([b["kind"] for b in self.list_backups()], ["full"] + ["incremental"] * 3)
        self.assert_all_restore()

