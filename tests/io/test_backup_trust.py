# SPDX-License-Identifier: Apache-2.0
"""What a repository says is compared before it is believed, and nothing in it leads out of it."""

import collections
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import stat
import struct

from backup_case import MIB, BackupCase
from tidemark import img, qemu_img, run, tool

CLUSTER = 65536


class TrustCase(BackupCase):
    """Two backups of a small disk: data, and a run of zeroes over older data in the second."""

    size = 2 * MIB

    def setUp(self):
        super().setUp()
        self.write_random(0, MIB)
        self.first = self.backup()
        self.models = {self.first["id"]: bytes(self.model)}
        self.zero(4 * CLUSTER, 2 * CLUSTER)
        self.write_random(20 * CLUSTER, CLUSTER)
        self.second = self.backup()
        self.models[self.second["id"]] = bytes(self.model)

    def file(self, manifest, name):
        return os.path.join(self.repository, manifest["id"], name)

    def restore(self, *words, target=None):
        """A restore that may fail; the contents, or None and the reason in self.why."""
        target = target or self.path("out.raw")
        result = run(*tool("restore"), self.repository, "--force", *words, target,
                     check=False, timeout=20)  # fmt: skip
        self.assertIn(result.returncode, (0, 1), result.stderr)
        self.why = result.stderr
        if result.returncode:
            return None
        with open(target, "rb") as f:
            return f.read()

    def refuses(self, manifest, why):
        self.assertIsNone(self.restore("--at", manifest["id"]))
        self.assertIn(why, self.why)

    def remake_manifest(self, manifest):
        """What somebody can do who may write to the repository: make all checksums right again."""
        path = self.file(manifest, "manifest.json")
        with open(path, encoding="utf-8") as f:
            m = json.load(f, object_pairs_hook=collections.OrderedDict)
        for key, name in (("image", "disk.qcow2"), ("checksums", "checksums")):
            with open(self.file(manifest, name), "rb") as f:
                data = f.read()
            m[key] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        del m["sha256"]
        text = json.dumps(m, separators=(",", ":"))
        m["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        with open(path, "w", encoding="utf-8") as f:
            json.dump(m, f)


class TestChangedFiles(TrustCase):
    def flip_each_byte(self, path, ids, step=1):
        """One bit of each byte, in turn: what is restored is right, or nothing is."""
        with open(path, "rb") as f:
            good = f.read()
        restored = 0
        for offset in range(0, len(good), step):
            bad = bytearray(good)
            bad[offset] ^= 1 << offset % 8
            with open(path, "wb") as f:
                f.write(bad)
            for backup in ids:
                content = self.restore("--at", backup)
                if content is not None:
                    restored += 1
                    self.assertTrue(content == self.models[backup], f"{backup}, byte {offset}")
        with open(path, "wb") as f:
            f.write(good)
        return restored

    def test_no_changed_bit_of_a_checksum_file_is_believed(self):
        path = self.file(self.second, "checksums")
        self.assertEqual(self.flip_each_byte(path, [self.second["id"]]), 0)

    def test_no_changed_bit_of_a_manifest_leads_to_wrong_data(self):
        path = self.file(self.second, "manifest.json")
        self.flip_each_byte(path, [self.second["id"]], step=3)

    def test_no_changed_bit_of_the_description_stops_a_restore(self):
        path = os.path.join(self.repository, "repository.json")
        restored = self.flip_each_byte(path, [self.first["id"]])
        self.assertEqual(restored, os.path.getsize(path))

    def test_files_of_two_backups_that_were_swapped(self):
        for name in ("disk.qcow2", "checksums"):
            a, b, c = self.file(self.first, name), self.file(self.second, name), self.path("swap")
            os.rename(a, c)
            os.rename(b, a)
            os.rename(c, b)
        self.refuses(self.first, "was changed")
        self.refuses(self.second, "was changed")

    def test_directories_of_two_backups_that_were_swapped(self):
        a, b = (os.path.join(self.repository, m["id"]) for m in (self.first, self.second))
        os.rename(a, self.path("swap"))
        os.rename(b, a)
        os.rename(self.path("swap"), b)
        self.refuses(self.second, "is that of backup")

    def test_a_backup_on_top_of_changed_checksums_is_full(self):
        path = self.file(self.first, "checksums")
        with open(path, "r+b") as f:
            f.seek(70)
            f.write(b"x")
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "full")
        self.assertIn("checksums' was changed", manifest["reason"])
        self.assert_restores(manifest, self.model)

    def test_something_behind_a_manifest(self):
        with open(self.file(self.second, "manifest.json"), "ab") as f:
            f.write(b"\0")
        self.refuses(self.second, "something follows it")


class TestOneDamagedOrForeign(TrustCase):
    def damage_manifest(self, manifest):
        path = self.file(manifest, "manifest.json")
        with open(path, encoding="utf-8") as f:
            good = f.read()
        with open(path, "w", encoding="utf-8") as f:
            f.write(good.replace('"node"', '"nOde"'))
        return path, good

    def test_the_newest_is_not_passed_over_without_a_word(self):
        self.damage_manifest(self.second)
        self.assertIsNone(self.restore())
        self.assertIn(f"The newest backup, {self.second['id']}, is damaged", self.why)
        self.assertIn(f"--at {self.first['id']}", self.why)
        self.assertTrue(self.restore("--at", self.first["id"]) == self.models[self.first["id"]])

    def test_without_a_sound_one_it_says_why(self):
        for manifest in self.first, self.second:
            path, _ = self.damage_manifest(manifest)
        self.assertIsNone(self.restore())
        self.assertIn("There is no sound backup in", self.why)
        self.assertIn(f"the newest, {self.second['id']}: Manifest '{path}'", self.why)

    def test_the_list_shows_it_at_its_place(self):
        self.damage_manifest(self.second)
        ids = [b["id"] for b in self.list_backups()]
        self.assertEqual(ids, [self.first["id"], self.second["id"]])

    def test_its_number_is_not_given_out_again(self):
        path, good = self.damage_manifest(self.second)
        third = self.backup()
        self.assertIn("is damaged", third["reason"])
        self.assertGreater(third["sequence"], self.second["sequence"])
        with open(path, "w", encoding="utf-8") as f:
            f.write(good)
        self.assertTrue(self.restore() == self.model)

    def test_a_backup_of_another_repository_is_no_backup_of_this_one(self):
        own = self.repository
        self.repository = self.path("other")
        self.write_random(0, CLUSTER)
        foreign = self.backup()
        self.repository = own
        source = os.path.join(self.path("other"), foreign["id"])
        into = os.path.join(own, "20300101T000000Z")
        shutil.copytree(source, into)
        with open(os.path.join(into, "manifest.json"), encoding="utf-8") as f:
            text = f.read().replace(foreign["id"], "20300101T000000Z", 1)
        with open(os.path.join(into, "manifest.json"), "w", encoding="utf-8") as f:
            f.write(text)
        self.remake_manifest({"id": "20300101T000000Z"})
        out = run(*tool("verify"), own, check=False)
        self.assertEqual(out.returncode, 2)
        self.assertIn("It belongs to repository", out.stdout)

    def test_reading_goes_on_without_the_description(self):
        path = os.path.join(self.repository, "repository.json")
        other = self.path("other.json")
        with open(other, "w", encoding="utf-8") as f:
            f.write('{"format":"tidemark-repository","version":1,"id":"0badc0de"}')
        for change in (lambda: os.truncate(path, 0), lambda: shutil.copy(other, path),
                       lambda: os.unlink(path)):  # fmt: skip
            change()
            self.assertEqual(len(self.list_backups()), 2)
            self.assertTrue(self.restore() == self.model)
            self.assertEqual(run(*tool("verify"), self.repository, check=False).returncode, 2)
            self.backup_fails_at_once(why="tidemark repair")

    def test_repair_makes_the_description_that_was_lost(self):
        path = os.path.join(self.repository, "repository.json")
        with open(path, encoding="utf-8") as f:
            before = f.read()
        os.unlink(path)
        run(*tool("repair"), self.repository)
        with open(path, encoding="utf-8") as f:
            self.assertEqual(f.read(), before)
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_sound()

    def test_repair_keeps_the_backups_from_before_it_had_another_id(self):
        path = os.path.join(self.repository, "repository.json")
        run(*tool("repair"), "--new-id", self.repository)
        third = self.backup()
        self.models[third["id"]] = bytes(self.model)
        os.unlink(path)
        run(*tool("repair"), self.repository)
        for backup, model in self.models.items():
            self.assertTrue(self.restore("--at", backup) == model, self.why)
        self.assert_sound()

    def test_a_copy_with_an_id_of_its_own_leaves_the_first_chain_alone(self):
        own, copy = self.repository, self.path("a copy's \\ $HOME")
        shutil.copytree(own, copy)
        self.repository = copy
        err = run(*self.backup_words(), check=False).stderr
        # The user copies the command to a shell.
        words = re.search(r"'tidemark repair (--new-id .*)' makes it", err)[1]
        run("sh", "-c", f"{shlex.join(tool('repair'))} {words}")
        self.write_random(0, CLUSTER)
        self.repository = copy
        self.assertIn("is not on node", self.backup()["reason"])
        self.repository = own
        self.assertIsNone(self.backup()["reason"])
        self.repository = copy
        manifest = self.backup()
        self.assertEqual(manifest["kind"], "incremental")
        self.assert_restores(manifest, self.model)
        self.assert_sound()


class TestWaysOut(TrustCase):
    def test_a_link_in_the_place_of_a_leftover_leads_nowhere(self):
        victim = self.path("victim")
        os.mkdir(victim)
        for name in ("passwd", "shadow"):
            with open(os.path.join(victim, name), "w", encoding="utf-8"):
                pass
        os.symlink(victim, os.path.join(self.repository, ".tidemark-tmp-x"))
        self.backup()
        self.assertEqual(sorted(os.listdir(victim)), ["passwd", "shadow"])
        self.assert_clean_directory()

    def test_links_and_pipes_in_the_place_of_files(self):
        for name in ("checksums", "disk.qcow2", "manifest.json"):
            path = self.file(self.second, name)
            kept = self.path("kept")
            os.rename(path, kept)
            os.mkfifo(path)
            self.refuses(self.second, "is not a regular file")
            os.unlink(path)
            os.symlink(kept, path)
            self.refuses(self.second, "is a symbolic link")
            os.unlink(path)
            os.rename(kept, path)
        self.assertTrue(self.restore() == self.model)

    def test_a_link_in_the_place_of_a_backup(self):
        path = os.path.join(self.repository, self.second["id"])
        os.rename(path, self.path("kept"))
        os.symlink(self.path("kept"), path)
        self.refuses(self.second, "Could not open directory")

    def test_the_backing_name_of_the_last_image_is_not_followed(self):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("evil.sock"))
            listener.listen(5)
            listener.settimeout(0.2)
            qemu_img(
                "rebase", "-u", "-f", "qcow2", "-F", "raw",
                "-b", f"nbd+unix:///x?socket={self.path('evil.sock')}", self.image_of(self.second),
            )  # fmt: skip
            self.remake_manifest(self.second)
            self.write_random(0, CLUSTER)
            self.assert_restores(self.backup(), self.model)
            with self.assertRaises(TimeoutError):
                listener.accept()

    def test_a_data_file_is_not_followed(self):
        """Not even if its digests are known."""
        secret, image = self.path("secret"), self.image_of(self.first)
        with open(secret, "wb") as f:
            f.write(b"root".ljust(self.size, b"\n"))
        img("create", "-q", "-f", "qcow2", "-o", f"data_file={self.path('x')},data_file_raw=on",
            self.path("new.qcow2"), str(self.size))  # fmt: skip
        with open(self.path("new.qcow2"), "rb") as f:
            data = f.read()
        with open(image, "wb") as f:
            f.write(data)
        os.replace(secret, self.path("x"))
        count = self.size // CLUSTER
        with open(self.path("x"), "rb") as f:
            digests = [hashlib.sha256(f.read(CLUSTER)).digest()[:16] for _ in range(count)]
        header = b"TIDESUMS" + struct.pack("<IIQQQ", 1, 16, self.size, count, 1)
        with open(self.file(self.first, "checksums"), "wb") as f:
            f.write(header.ljust(64, b"\0") + b"".join(digests) + struct.pack("<QII", 0, count, 1))
        self.remake_manifest(self.first)
        self.refuses(self.first, "has its data in another file")


class TestModes(TrustCase):
    def test_what_a_backup_makes_is_its_owners_alone(self):
        self.assertEqual(stat.S_IMODE(os.stat(self.repository).st_mode), 0o700)
        for folder, folders, names in os.walk(self.repository):
            for name in folders:
                mode = os.stat(os.path.join(folder, name)).st_mode
                self.assertEqual(stat.S_IMODE(mode), 0o700, name)
            for name in names:
                mode = os.stat(os.path.join(folder, name)).st_mode
                self.assertEqual(stat.S_IMODE(mode), 0o600, name)
