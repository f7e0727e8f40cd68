# SPDX-License-Identifier: Apache-2.0
"""Verifying a little at a time: the order, the limit, and going on where the last run was."""

import fcntl
import json
import os
import signal
import subprocess
import time
import unittest

from backup_case import MIB, BackupCase, HeldUp, heed_signals
from tidemark import freeze, run, tool


class VerifyCase(BackupCase):
    size = 32 * MIB

    def setUp(self):
        super().setUp()
        self.write_random(0, 24 * MIB)
        self.first = self.backup()
        self.write_random(0, MIB)
        self.second = self.backup()
        self.state = os.path.join(self.repository, ".tidemark-verified")

    def verify(self, *words, status=0):
        result = run(*tool("verify"), "--output=json", *words, self.repository, check=False)
        self.assertEqual(result.returncode, status, result.stderr)
        return json.loads(result.stdout)

    def recorded(self):
        with open(self.state, encoding="utf-8") as f:
            return json.load(f)

    def set_recorded(self, value):
        with open(self.state, "w", encoding="utf-8") as f:
            json.dump(value, f)

    def damage(self, manifest):
        path = self.image_of(manifest)
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damage")


class Order(VerifyCase):
    size = 4 * MIB

    def setUp(self):
        BackupCase.setUp(self)
        self.write_random(0, MIB)
        self.first = self.backup()
        self.write_random(0, MIB)
        self.second = self.backup()
        self.state = os.path.join(self.repository, ".tidemark-verified")

    def test_what_was_not_verified_for_longest_comes_first(self):
        ids = [self.first["id"], self.second["id"]]
        self.assertEqual([v["id"] for v in self.verify("--for", "1h")], ids)
        state = self.recorded()
        self.assertAlmostEqual(state[ids[0]]["at"], time.time(), delta=60)
        state[ids[0]]["at"] += 100
        self.set_recorded(state)
        self.assertEqual([v["id"] for v in self.verify("--for=2m")], ids[::-1])
        self.assertEqual([v["id"] for v in self.verify()], ids)

    def test_a_check_of_a_time_to_come_was_long_ago(self):
        ids = [self.first["id"], self.second["id"]]
        self.verify("--for", "1h")
        state = self.recorded()
        state[ids[1]]["at"] += 86400 * 3650
        self.set_recorded(state)
        self.assertEqual([v["id"] for v in self.verify("--for", "1h")], ids[::-1])
        self.assertLessEqual(self.recorded()[ids[1]]["at"], time.time())

    def test_when_the_time_is_up_the_rest_is_left(self):
        held = self.own(HeldUp([*tool("verify"), "--for", "1s", self.repository]))
        time.sleep(1.2)
        self.assertEqual(held.release()[0], 0)
        self.assertEqual(list(self.recorded()), [self.first["id"]])
        self.assertEqual([v["id"] for v in self.verify("--for", "1h")][0], self.second["id"])

    def test_former_damage_counts_for_what_builds_on_it(self):
        self.damage(self.first)
        self.assertEqual(
            [v["sound"] for v in self.verify("--for", "1h", status=2)], [False, False]
        )
        state = self.recorded()
        self.assertFalse(state[self.first["id"]]["sound"])
        state[self.first["id"]]["at"] += 100
        del state[self.second["id"]]
        self.set_recorded(state)
        second = self.verify("--for", "1h", status=2)[0]
        self.assertEqual((second["id"], second["sound"]), (self.second["id"], False))

    def listed(self, *words):
        return json.loads(run(*tool("backups"), "--output=json", *words).stdout)

    def test_damage_that_was_found_is_listed_and_not_built_on(self):
        root = os.path.dirname(self.repository)
        self.damage(self.second)
        self.assertNotIn("problem", self.listed(root)["repositories"][0])
        self.verify(status=2)
        first, second = self.listed(self.repository)
        self.assertNotIn("problem", first)
        self.assertIn("'tidemark verify' found damage at", second["problem"])
        self.assertIn(second["verified-utc"], second["problem"])
        self.assertIn("damaged: 'tid", run(*tool("backups"), self.repository).stdout)
        row = self.listed(root)["repositories"][0]
        self.assertEqual(row["problem"], f"the newest backup, {self.second['id']}, is damaged")
        self.assertEqual((row["damaged"], row["newest-sound"]), (1, self.first["id"]))
        figures = run(*tool("metrics"), self.repository).stdout
        for name in "backups_damaged", "repository_problem":
            self.assertRegex(figures, rf"(?m)^tidemark_{name}{{.*}} 1$")
        third = self.backup()
        self.assertEqual(third["kind"], "full")
        self.assertIn(f"has found backup {self.second['id']} damaged", third["reason"])
        self.damage(self.first)
        self.verify(status=2)
        first, second, third = self.listed(self.repository)
        self.assertIn(f"builds on backup {self.first['id']}, which is damaged", second["problem"])
        self.assertNotIn("problem", third)
        self.assertEqual(self.backup()["kind"], "incremental")

    def test_damage_that_was_found_is_not_counted_by_prune(self):
        third = self.backup("--full")
        fourth = self.backup()
        self.damage(third)
        words = [*tool("prune"), self.repository, "--keep-last=1"]
        self.verify(status=2)
        result = run(*words, check=False)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("'tidemark verify' found damage", result.stdout)
        ids = [self.second["id"], third["id"], fourth["id"]]
        self.assertEqual([b["id"] for b in self.listed(self.repository)], ids)
        run(*tool("restore"), self.repository, "--at", ids[0], self.path("out.raw"))
        # What is damaged goes when it is named.
        run(*words, "--remove", third["id"], "--remove", fourth["id"])
        self.assertEqual([b["id"] for b in self.listed(self.repository)], ids[:1])
        self.assertEqual(self.backup()["kind"], "incremental")

    def test_a_file_that_may_not_be_read_is_no_damaged_one(self):
        self.verify()
        as_other, program = [], [os.path.abspath(w) if "/" in w else w for w in tool("verify")]
        if os.geteuid() == 0:
            as_other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
            os.chmod(self.dir, 0o755)
            for folder, _, names in os.walk(self.repository):
                for name in [folder, *(os.path.join(folder, n) for n in names)]:
                    os.chown(name, 65534, 65534)
        for manifest in self.second, self.first:
            path = self.image_of(manifest)
            if as_other:
                os.chown(path, 0, 0)
            os.chmod(path, 0)
            result = run(*as_other, *program, self.repository, check=False)
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("NOT CHECKED: ", result.stdout)
            self.assertIn("Permission denied", result.stdout)
            self.assertNotIn("is damaged", result.stdout)
            self.assertNotIn("DAMAGED", result.stdout)
            for state in self.recorded().values():
                self.assertTrue(state["sound"])

    def test_nor_is_one_that_another_program_has_locked(self):
        self.verify()
        with open(self.image_of(self.first), "rb") as f:
            fcntl.lockf(f, fcntl.LOCK_SH, 1, 101)  # as QEMU does to write
            first, second = self.verify(status=1)
        self.assertEqual([v["checked"] for v in (first, second)], [False, False])
        self.assertIn("lock", first["problem"])
        self.assertIn("could not be read", second["problem"])
        for state in self.recorded().values():
            self.assertTrue(state["sound"])
        self.assertEqual(self.backup()["kind"], "incremental")

    def test_the_record_is_not_trusted(self):
        for text in "", "[]", "{", '{"%s": {"at": "x", "position": -1}}' % self.first["id"]:
            with open(self.state, "w", encoding="utf-8") as f:
                f.write(text)
            self.assertEqual(len(self.verify("--for", "1h")), 2)
        state = self.recorded()
        state[self.first["id"]]["position"] = 1 << 60
        self.set_recorded(state)
        self.damage(self.first)
        self.assertEqual(len(self.verify("--for", "1h", status=2)), 2)
        os.unlink(self.state)
        os.symlink(self.path("elsewhere"), self.state)
        self.verify("--for", "1h", status=2)
        self.assertFalse(os.path.exists(self.path("elsewhere")))

    def test_a_record_of_another_image_does_not_count(self):
        self.verify()
        state = self.recorded()
        state[self.first["id"]].update({"position": 5, "image-sha256": "0" * 64})
        self.set_recorded(state)
        first = self.verify("--for", "1h")[0]
        self.assertEqual(first["id"], self.first["id"])
        self.assertNotIn("from-bytes", first)

    def test_times(self):
        for text in "", "0", "x", "-1", "1w", "1 h", "1000000001":
            result = run(*tool("verify"), "--for", text, self.repository, check=False)
            self.assertEqual(result.returncode, 1, text)
            self.assertIn("--for needs a time", result.stderr)


class Resume(VerifyCase):
    def half_way(self, limit):
        """A run that stands still in the middle of the first backup."""
        process = subprocess.Popen(
            [*tool("verify"), "--for", limit, self.repository],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heed_signals,
        )  # fmt: skip
        with open(f"/proc/{process.pid}/io", encoding="ascii") as io:
            while True:
                io.seek(0)
                if int(io.readline().split()[1]) > 10 * MIB:
                    break
        freeze(process.pid)
        return process

    def stop_half_way(self):
        process = self.half_way("1s")
        time.sleep(1.1)
        process.send_signal(signal.SIGCONT)
        self.assertEqual(process.wait(20), 0)

    def test_a_check_goes_on_where_it_was(self):
        for _ in range(10):
            self.stop_half_way()
            state = self.recorded().get(self.first["id"], {"position": 0})
            if state["position"]:
                break
            os.unlink(self.state)
        self.assertGreater(state["position"], 0)
        self.assertLess(state["position"], 24 * MIB >> 16)
        self.assertEqual(state["at"], 0)
        verified = self.verify("--for", "1h")
        self.assertEqual(verified[0]["from-bytes"], state["position"] << 16)
        self.assertTrue(all(v["sound"] for v in verified))
        self.assertNotIn("from-bytes", self.verify("--for", "1h")[0])
        self.assertEqual(self.recorded()[self.first["id"]]["position"], 0)

    def test_a_signal_keeps_the_place_too(self):
        for _ in range(10):
            process = self.half_way("1h")
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            status = process.wait(20)
            place = self.recorded().get(self.first["id"], {}).get("position", 0)
            if status and place:
                break
            os.unlink(self.state)
        self.assertEqual(status, 4)
        self.assertGreater(place, 0)

    def test_damage_in_the_part_before_is_found(self):
        self.verify()
        state = self.recorded()
        state[self.first["id"]]["position"] = (24 * MIB >> 16) - 1
        self.set_recorded(state)
        self.damage(self.first)
        self.assertFalse(self.verify("--for", "1h", status=2)[0]["sound"])


if __name__ == "__main__":
    unittest.main()
