# SPDX-License-Identifier: Apache-2.0
"""Prune: which backups stay, that they stay what they were, and that no kill changes that."""

import datetime
import json
import os
import random
import re
import shutil
import subprocess
import unittest

from made_repository import CLUSTER, KEPT, MadeRepository
from tidemark import TestCase, img, qemu_img, run, tool

UTC = datetime.timezone.utc
START = datetime.datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
HOUR = datetime.timedelta(hours=1)
# Calls that change a directory or make something stable, and those that fill files.
CALLS = "rename,renameat,renameat2,unlinkat,mkdirat,fsync,fdatasync,ftruncate,fallocate,pwrite64"
# Kills per run of the suite; TIDEMARK_PRUNE_KILLS=200 by hand.
KILLS = int(os.environ.get("TIDEMARK_PRUNE_KILLS", "4"))


class PruneCase(TestCase):
    def setUp(self):
        super().setUp()
        self.random = random.Random(self.id())
        self.made = MadeRepository(self.path("repository"))
        self.environment = {**os.environ, "TZ": "UTC"}

    def changes(self):
        return {
            n: self.random.choice([None, self.random.randbytes(CLUSTER)])
            for n in self.random.sample(range(16), 3)
        }

    def fill(self, count, step=HOUR):
        for i in range(count):
            self.made.add(START + i * step, self.changes())

    def prune(self, *words, status=0, path=None):
        result = run(*tool("prune"), "--output=json", *words, path or self.made.path,
                     check=False, env=self.environment)  # fmt: skip
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.said = result.stderr
        return json.loads(result.stdout)

    def kept(self, result):
        return [b["id"] for b in result["backups"] if b["fate"] == "kept"]

    def ids(self, path=None):
        listed = run(*tool("backups"), "--output=json", path or self.made.path).stdout
        return [b["id"] for b in json.loads(listed)]

    def assert_restores(self, ident, path=None):
        out = self.path("out.raw")
        run(*tool("restore"), path or self.made.path, "--at", ident, "--force", out)
        with open(out, "rb") as f:
            self.assertEqual(f.read(), self.made.models[ident], ident)

    def assert_all_restore(self, path=None):
        for ident in self.ids(path):
            self.assert_restores(ident, path)

    def assert_sound(self, path=None):
        run(*tool("verify"), path or self.made.path)


class Rules(PruneCase):
    def test_newest_of_each_hour_day_week_month_and_year_is_kept(self):
        self.fill(60, datetime.timedelta(days=5, hours=1))
        order = self.made.order
        at = {i: START + n * datetime.timedelta(days=5, hours=1) for n, i in enumerate(order)}
        newest = list(reversed(order))

        def buckets(key, count):
            found = {}
            for ident in newest:
                found.setdefault(key(at[ident]), ident)
            return set(list(found.values())[:count])

        rules = {
            "--keep-last": set(newest[:3]),
            "--keep-hourly": set(newest[:3]),
            "--keep-daily": set(newest[:3]),
            "--keep-weekly": buckets(lambda t: t.isocalendar()[:2], 3),
            "--keep-monthly": buckets(lambda t: (t.year, t.month), 3),
            "--keep-yearly": buckets(lambda t: t.year, 3),
        }
        for option, expected in rules.items():
            result = self.prune(option, "3", "--dry-run")
            self.assertEqual(set(self.kept(result)), expected | {newest[0]}, option)
        self.assertEqual(self.ids(), order)

    def test_rules_add_up_and_say_which_of_them_keeps_a_backup(self):
        self.fill(40, 3 * HOUR)
        result = self.prune("--keep-last=2", "--keep-daily=3", "--dry-run")
        reasons = {b["id"]: b["reasons"] for b in result["backups"] if b["fate"] == "kept"}
        newest = self.made.order[-1]
        self.assertEqual(reasons[newest], ["last", "daily", "newest"])
        self.assertEqual(len(reasons), 4)

    def test_span_counts_from_the_newest_backup(self):
        self.fill(30, datetime.timedelta(days=1))
        for span, count in (("7d", 8), ("48h", 3), ("1m", 30), ("1y2m3d4h", 30), ("0d", 1)):
            result = self.prune("--keep-within", span, "--dry-run")
            self.assertEqual(len(self.kept(result)), count, span)

    def test_span_does_not_count_from_a_time_to_come(self):
        now = datetime.datetime.now(UTC).replace(microsecond=0)
        for days in (30, 3, 2, 1):
            self.made.add(now - datetime.timedelta(days=days), self.changes())
        self.made.add(now + datetime.timedelta(days=3650), self.changes())
        self.made.add(now - datetime.timedelta(hours=20), self.changes())
        result = self.prune("--keep-within=7d")
        self.assertEqual(self.kept(result), self.made.order[1:])
        self.assert_all_restore()

    def test_days_are_those_of_local_time(self):
        # 23:30 and 00:30 UTC are two days in London and one in Tokyo.
        for t in ("2026-01-05T23:30:00", "2026-01-06T00:30:00"):
            self.made.add(datetime.datetime.fromisoformat(t + "+00:00"), self.changes())
        for zone, count in (("UTC", 2), ("Asia/Tokyo", 1)):
            self.environment["TZ"] = zone if zone == "UTC" else "JST-9"
            result = self.prune("--keep-daily=5", "--dry-run")
            self.assertEqual(len(self.kept(result)), count, zone)

    def test_a_clock_that_stepped_back_keeps_what_each_hour_has_newest(self):
        for hours in (0, 1, 2, 0, 1, 2):
            self.made.add(START + hours * HOUR, self.changes())
        result = self.prune("--keep-hourly=3")
        self.assertEqual(self.kept(result), self.made.order[3:])
        self.assert_all_restore()

    def test_wrong_rules_are_refused(self):
        self.fill(2)
        for words in (["--keep-within", "3x"], ["--keep-within", ""], ["--keep-last", "-1"], []):
            result = run(*tool("prune"), *words, self.made.path, check=False)
            self.assertEqual(result.returncode, 1, words)
        result = run(*tool("prune"), "--keep-last=1", self.path("absent"), check=False)
        self.assertEqual(result.returncode, 1)
        os.mkdir(self.path("empty"))
        result = run(*tool("prune"), "--keep-last=1", self.path("empty"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(os.listdir(self.path("empty")), [])


class Contents(PruneCase):
    def test_what_is_kept_restores_as_before_and_qemu_img_reads_it(self):
        self.fill(12)
        before = sum(os.path.getsize(os.path.join(d, f))
                     for d, _, files in os.walk(self.made.path) for f in files)  # fmt: skip
        result = self.prune("--keep-last=3", "--remove", self.made.order[-2])
        self.assertEqual(self.ids(), [self.made.order[-3], self.made.order[-1]])
        self.assertEqual(result["removed"], 10)
        self.assertLess(result["stored-bytes-after"], before)
        self.assert_all_restore()
        self.assert_sound()
        for ident in self.ids():
            disk = os.path.join(self.made.path, ident, "disk.qcow2")
            qemu_img("convert", "-O", "raw", disk, self.path("q.raw"))
            with open(self.path("q.raw"), "rb") as f:
                self.assertEqual(f.read(), self.made.models[ident])
            checked = json.loads(img("check", "--output=json", disk).stdout)
            self.assertEqual(checked["check-errors"], 0)
        modes = {os.stat(os.path.join(self.made.path, i)).st_mode & 0o777 for i in self.ids()}
        self.assertEqual(modes, {0o700})

    def test_chain_grows_on_after_a_prune_again_and_again(self):
        for i in range(30):
            self.made.add(START + i * HOUR, self.changes())
            if i % 3 == 2:
                self.prune("--keep-last=4")
        self.assertEqual(self.ids(), self.made.order[-4:])
        kinds = [b["kind"] for b in json.loads(
            run(*tool("backups"), "--output=json", self.made.path).stdout)]  # fmt: skip
        self.assertEqual(kinds, ["full"] + ["incremental"] * (len(kinds) - 1))
        self.assert_all_restore()
        self.assert_sound()

    def test_older_chains_go_without_a_merge(self):
        self.fill(3)
        self.made.add(START + 5 * HOUR, {0: b"x" * CLUSTER}, full=True)
        self.made.add(START + 6 * HOUR, self.changes())
        result = self.prune("--keep-last=2")
        self.assertEqual([b["takes-over"] for b in result["backups"]], [0] * 5)
        self.assertEqual(self.ids(), self.made.order[-2:])
        self.assert_all_restore()

    def test_long_chain_gets_a_full_backup_of_what_is_stored(self):
        self.fill(10)
        result = self.prune("--keep-last=10", "--max-chain=4")
        full = [b["id"] for b in result["backups"] if b["becomes-full"]]
        self.assertEqual(full, [self.made.order[4], self.made.order[8]])
        self.assertEqual(self.ids(), self.made.order)
        self.assert_all_restore()
        self.assert_sound()

    def test_a_thousand_increments_restore(self):
        for i in range(1000):
            content = bytes([i % 255 + 1]) * CLUSTER
            self.made.add(START + i * HOUR, {i % 16: content}, keep_model=i == 999)
        self.assert_restores(self.made.order[-1])

    def test_many_increments_merge(self):
        self.fill(60)
        self.prune("--keep-last=1", "--max-chain=0")
        self.assertEqual(self.ids(), [self.made.order[-1]])
        self.assert_all_restore()
        self.assert_sound()

    def test_id_of_a_removed_backup_does_not_mean_another_of_that_second(self):
        gone = self.made.add(START, self.changes())
        second = self.made.add(START, self.changes())
        newest = self.made.add(START + HOUR, self.changes())
        self.assertEqual(second, gone + "-2")
        self.prune("--remove", gone)
        out = self.path("never.raw")
        for words in (["restore", self.made.path, out], ["verify", self.made.path],
                      ["copy", self.made.path, self.path("copy")]):  # fmt: skip
            result = run(*tool(words[0]), *words[1:], "--at", gone, check=False)
            self.assertEqual((words[0], result.returncode), (words[0], 1))
            self.assertIn(f"There is no backup '{gone}'", result.stderr)
        self.assertFalse(os.path.exists(out))
        self.prune("--remove", gone, status=1)
        self.assertEqual(self.ids(), [second, newest])
        self.assertEqual(self.prune("--remove", gone[:-1])["removed"], 1)
        self.assertEqual(self.ids(), [newest])

    def test_newest_backup_is_never_removed(self):
        self.fill(3)
        result = self.prune("--remove", self.made.order[-1], status=1)
        self.assertIn("newest", result["error"]["message"])
        self.assertEqual(self.ids(), self.made.order)

    def test_file_systems_without_an_exchange(self):
        self.fill(6)
        run("strace", "-f", "-o", "/dev/null", "-e", "inject=renameat2:error=EINVAL",
            *tool("prune"), "--keep-last=2", self.made.path)  # fmt: skip
        self.assertEqual(self.ids(), self.made.order[-2:])
        self.assert_all_restore()
        self.assert_sound()

    def test_nothing_goes_before_what_replaces_it_is_stable(self):
        self.fill(6)
        path, newest = os.path.realpath(self.made.path), self.made.order[-1]
        left = os.path.join(path, ".tidemark-tmp-" + newest)
        # The first sync of the directory is that of the exchange; then that before the next run
        # removes what is left.
        for _ in range(2):
            run("strace", "-f", "-o", "/dev/null", "-P", path, "-e", "trace=fsync",
                "-e", "inject=fsync:error=EIO:when=1", *tool("prune"), "--keep-last=1", path,
                check=False)  # fmt: skip
            self.assertEqual(sorted(os.listdir(left)), ["checksums", "disk.qcow2", "manifest.json"])
            self.assert_all_restore()
        self.prune("--keep-last=1")
        self.assertFalse(os.path.exists(left))
        self.assertEqual(self.ids(), [newest])
        self.assert_all_restore()

    def test_full_file_system_loses_nothing(self):
        self.fill(6)
        for call in ("pwrite64", "fsync", "mkdirat", "renameat2"):
            copy = self.path("copy-" + call)
            shutil.copytree(self.made.path, copy)
            result = run(
                "strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:error=ENOSPC",
                *tool("prune"), "--keep-last=2", copy,
                check=False, env={**self.environment, "TIDEMARK_LOOP": "epoll"},
            )  # fmt: skip
            self.assertEqual(result.returncode, 1, call)
            self.assertRegex(result.stderr, r"needs up to \d+ MiB next to those .* 'tidemark copy")
            self.assert_all_restore(copy)
            self.assertEqual(self.ids(copy), self.made.order)


class Damage(PruneCase):
    def damage(self, ident, name, at=-1000):
        path = os.path.join(self.made.path, ident, name)
        with open(path, "r+b") as f:
            f.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
            byte = f.read(1)
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 1]))

    def test_damaged_contents_are_not_merged_and_nothing_is_removed(self):
        self.fill(5)
        self.damage(self.made.order[0], "disk.qcow2", at=5 * CLUSTER + 7)
        result = self.prune("--keep-last=2", status=1)
        self.assertEqual(result["error"]["kind"], "damaged")
        self.assertEqual(self.ids(), self.made.order)

    def test_damaged_backups_are_not_counted_and_stay(self):
        self.fill(4)
        self.made.add(START + 5 * HOUR, self.changes(), full=True)
        self.made.add(START + 6 * HOUR, self.changes())
        self.damage(self.made.order[1], "manifest.json", at=40)
        result = self.prune("--keep-last=2", status=2)
        fates = [b["fate"] for b in result["backups"]]
        self.assertEqual(fates, ["kept", "damaged", "damaged", "damaged", "kept", "kept"])
        self.assertIn("problem", result["backups"][0])
        self.assertIn("problem", result["backups"][2])
        # What can't be restored goes when it is named, the newest first.
        self.prune("--remove", self.made.order[3], status=2)
        self.prune("--remove", self.made.order[2], status=2)
        self.prune("--remove", self.made.order[1])
        self.prune("--keep-last=2")
        self.assertEqual(self.ids(), self.made.order[4:])
        self.assert_all_restore()

    def test_what_a_lost_manifest_needs_stays_until_a_repair(self):
        self.fill(5)
        self.made.add(START + 6 * HOUR, self.changes(), full=True)
        self.damage(self.made.order[2], "manifest.json", at=40)
        result = self.prune("--keep-last=1", status=2)
        self.assertEqual(result["backups"][1]["problem"], "a damaged backup builds on it")
        run(*tool("repair"), self.made.path)
        self.assertEqual(self.ids(), self.made.order[1:])
        self.assert_all_restore()
        self.assert_sound()

    def test_one_that_a_damaged_one_names_stays(self):
        self.fill(4)
        self.made.add(START + 5 * HOUR, self.changes(), full=True)
        shutil.rmtree(os.path.join(self.made.path, self.made.order[1]))
        for more in (["--dry-run"], []):
            result = self.prune("--remove", self.made.order[2], *more, status=1)
            self.assertIn("builds on it", result["error"]["message"])
        self.prune("--remove", self.made.order[2], "--remove", self.made.order[3])
        self.assertEqual(self.ids(), [self.made.order[0], self.made.order[4]])

    def test_links_in_the_place_of_backups_are_not_followed(self):
        self.fill(3)
        victim = self.path("victim")
        os.mkdir(victim)
        for name in ("a", "manifest.json", "disk.qcow2", "checksums"):
            with open(os.path.join(victim, name), "w", encoding="utf-8") as f:
                f.write("precious")
        ident = START.strftime("%Y%m%dT000000Z")
        os.symlink(victim, os.path.join(self.made.path, ident))
        os.symlink(victim, os.path.join(self.made.path, ".tidemark-tmp-1"))
        os.symlink(victim, os.path.join(self.made.path, ".tidemark-old-1"))
        self.prune("--keep-last=1", status=2)
        self.prune("--remove", ident)
        self.assertEqual(self.ids(), [self.made.order[-1]])
        self.assertEqual(len(os.listdir(victim)), 4)
        self.assertTrue(os.path.exists(os.path.join(victim, "a")))


class OfAnotherUser(PruneCase):
    def test_backups_that_may_not_be_read_are_no_damaged_ones(self):
        self.fill(3)
        as_other, path = [], self.made.path
        if os.geteuid() == 0:
            as_other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
            os.chmod(self.dir, 0o755)
            for folder, _, names in os.walk(path):
                for name in [folder, *(os.path.join(folder, n) for n in names)]:
                    os.chown(name, 65534, 65534)
            os.chown(os.path.join(path, self.made.order[2]), 0, 0)
        os.chmod(os.path.join(path, self.made.order[2]), 0 if not as_other else 0o700)
        image = self.path("disk.raw")
        with open(image, "wb") as f:
            f.truncate(self.made.size)
        os.chmod(image, 0o644)
        os.mkdir(self.path("free"))
        os.chmod(self.path("free"), 0o777)
        commands = [
            ["prune", "--keep-last", "1", path],
            ["verify", path],
            ["copy", path, self.path("free/copy")],
            ["restore", path, self.path("free/disk.raw")],
            ["backup", "--image", image, "--format", "raw", "--same-disk", "--to", path],
        ]
        for words in commands:
            program = [os.path.abspath(w) if "/" in w else w for w in tool(words[0])]
            result = run(*as_other, *program, *words[1:], check=False)
            self.assertEqual((words[0], result.returncode), (words[0], 1), result.stderr)
            self.assertIn("Permission denied", result.stderr + result.stdout)
            self.assertNotIn("damaged", (result.stderr + result.stdout).lower())
            self.assertNotIn("repair", result.stderr)
        self.assertEqual(os.listdir(self.path("free")), [])
        # Nor is the description, for which nobody would need a repair.
        description = os.path.join(path, "repository.json")
        if as_other:
            os.chown(description, 0, 0)
        os.chmod(description, 0 if not as_other else 0o600)
        for words in [["backups", path], *commands]:
            program = [os.path.abspath(w) if "/" in w else w for w in tool(words[0])]
            result = run(*as_other, *program, *words[1:], check=False)
            self.assertEqual((words[0], result.returncode), (words[0], 1), result.stderr)
            self.assertIn("Permission denied", result.stderr)
            self.assertNotIn("repair", result.stderr)
        os.chmod(description, 0o600)
        os.chmod(os.path.join(path, self.made.order[2]), 0o700)
        self.assertEqual(self.ids(), self.made.order)
        self.assert_all_restore()


class Kills(PruneCase):
    words = ("--keep-last=2", "--keep-daily=2")

    def count_calls(self, command, env):
        log = self.path("strace.log")
        run("strace", "-f", "-o", log, "-e", "trace=" + CALLS, *command, env=env)
        with open(log, encoding="utf-8") as f:
            return sum(1 for line in f if re.match(r"\d+ +\w+\(", line))

    def check_after_kill(self, copy, kept, also=()):
        listed = json.loads(run(*tool("backups"), "--output=json", copy).stdout)
        ids = [b["id"] for b in listed if "problem" not in b]
        self.assertLessEqual(set(kept), set(ids))
        for ident in kept:
            self.assert_restores(ident, copy)
        self.assertEqual([b for b in listed if "problem" in b], [])
        self.prune(*self.words, *also, path=copy)
        self.assertEqual(self.ids(copy), kept)
        self.assert_all_restore(copy)
        self.assert_sound(copy)
        left = [n for n in os.listdir(copy) if n.startswith(".tidemark-") and n not in KEPT]
        self.assertEqual(left, [])

    def kill_at_every_step(self, *inject):
        self.fill(9, 4 * HOUR)
        kept = self.kept(self.prune(*self.words, "--dry-run"))
        env = {**self.environment, "TIDEMARK_LOOP": "epoll"}
        self.assertGreater(len(kept), 2)
        copy = self.path("copy")
        shutil.copytree(self.made.path, copy)
        total = self.count_calls([*tool("prune"), *self.words, copy], env)
        steps = sorted(self.random.sample(range(1, total + 1), min(KILLS, total)))
        for step in steps:
            shutil.rmtree(copy)
            shutil.copytree(self.made.path, copy)
            # Of all these calls, the process is killed when it makes this one.
            counted = subprocess.run(
                ["strace", "-f", "-o", "/dev/null", *inject,
                 "-e", f"inject={CALLS}:signal=SIGKILL:when={step}",
                 *tool("prune"), *self.words, copy],
                env=env, capture_output=True, check=False,
            )  # fmt: skip
            with self.subTest(step=step, status=counted.returncode):
                self.check_after_kill(copy, kept)

    def test_kill_at_any_step_leaves_every_kept_backup(self):
        self.kill_at_every_step()


if __name__ == "__main__":
    unittest.main()
