# SPDX-License-Identifier: Apache-2.0
"""An audit finds changes that a bitmap has missed, and leaves everything as it was."""

import json
import unittest

from backup_case import MIB, BackupCase, HeldUp
from tidemark import run, tool, wait_until


class Audit(BackupCase):
    size = 8 * MIB + 5 * 512

    def setUp(self):
        super().setUp()
        self.write_random(0, 3 * MIB)
        self.write_random(self.size - 1000, 1000)
        self.backup()
        self.zero(MIB, 4 << 16, discard=True)
        self.write_random(70000, 1)
        self.backup()

    def words(self, *words):
        return [
            *tool("audit"), "--qmp", self.server.qmp_path, "--node", "disk",
            "--to", self.repository, *words,
        ]  # fmt: skip

    def audit(self, status=0):
        result = run(*self.words("--output=json"), check=False)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assert_settled()
        self.assert_clean_directory()
        return json.loads(result.stdout)

    def miss(self, offset, data):
        """A change that is not recorded."""
        self.write(offset, data)
        (name,) = self.own_bitmaps()
        self.server.qmp.command("block-dirty-bitmap-clear", node="disk", name=name)

    def assert_next_is_incremental(self):
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assertIsNone(manifest["reason"])
        self.assert_restores(manifest, self.model)

    def test_a_right_bitmap(self):
        found = self.audit()
        self.assertEqual((found["missed-bytes"], found["marked-bytes"]), (0, 0))
        self.assertEqual(found["compared-bytes"], self.size)
        self.write_random(5 * MIB, 10)
        self.write_random(0, 10)
        found = self.audit()
        self.assertEqual((found["missed-bytes"], found["marked-bytes"]), (0, 2 << 16))
        text = run(*self.words()).stdout
        self.assertIn("The bitmap is right.", text)
        self.assertEqual(len(self.list_backups()), 2)
        self.assert_next_is_incremental()

    def test_missed_changes(self):
        tail = self.size - self.size % 65536
        for offset, data, areas in (
            (2 * MIB + 7, b"x", [(2 * MIB, 65536)]),
            (6 * MIB, b"x" * 100000, [(6 * MIB, 2 << 16)]),
            (131072, bytes(65536), [(131072, 65536)]),
            (self.size - 1, b"y", [(tail, self.size - tail)]),
        ):
            self.miss(offset, data)
            found = self.audit(status=2)
            self.assertEqual([(a["offset"], a["length"]) for a in found["areas"]], areas)
            self.assertEqual(found["missed-bytes"], sum(length for _, length in areas))
            manifest = self.backup("--compare")
            self.assert_restores(manifest, self.model)
            self.assertEqual(self.audit()["missed-bytes"], 0)

    def test_writes_meanwhile_are_neither_missed_nor_lost(self):
        held = self.own(HeldUp(self.words()))
        wait_until(self.own_exports, "the export")
        self.write_random(3 * MIB, MIB)
        status, said = held.release()
        self.assertEqual(status, 0, said)
        self.assert_settled()
        self.assert_next_is_incremental()

    def test_one_that_is_killed_leaves_the_next_backup_incremental(self):
        held = HeldUp(self.words())
        wait_until(self.own_exports, "the export")
        self.write_random(3 * MIB, MIB)
        held.kill()
        self.write_random(5 * MIB, MIB)
        self.assert_next_is_incremental()
        self.assert_settled()

    def test_an_image_that_is_not_in_use(self):
        self.write_random(5 * MIB, 10)
        self.server.stop()
        words = [*tool("audit"), "--image", self.image, "-f", "qcow2",
                 "--to", self.repository, "--output=json"]  # fmt: skip
        found = json.loads(run(*words).stdout)
        self.assertEqual((found["missed-bytes"], found["marked-bytes"]), (0, 65536))
        self.start()
        self.assert_next_is_incremental()

    def test_what_cannot_be_audited(self):
        (name,) = self.own_bitmaps()
        self.server.qmp.command("block-dirty-bitmap-remove", node="disk", name=name)
        result = run(*self.words(), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("There is nothing to audit: bitmap", result.stderr)
        self.repository = self.path("other")
        result = run(*self.words(), check=False)
        self.assertIn("There is nothing to audit: there is no earlier backup", result.stderr)
        result = run(*tool("audit"), "--qmp", "x", check=False)
        self.assertIn("expecting --to", result.stderr)


if __name__ == "__main__":
    unittest.main()
