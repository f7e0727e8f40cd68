# SPDX-License-Identifier: Apache-2.0
"""Backups and restored disks are stable before they appear, and verify looks behind checksums that
fit.
"""

import hashlib
import json
import os
import re
import struct
import time

from backup_case import is_restoring_to
from test_backup import CLUSTER, MIB, BackupCase
from tidemark import Process, qemu_img, qemu_io, run, tool, wait_until

CALL = re.compile(r"^\d+ +(fdatasync|fsync|linkat|rename(?:at2?)?)\((.*)\) += 0")


class Order(BackupCase):
    size = 4 * MIB

    def calls(self, *words):
        """What was synced and renamed, in order: ("fsync" or "fdatasync", path), ("rename", what
        the call was given).
        """
        trace = self.path("trace")
        # The engine of threads makes calls that strace can see, and -y tells the files of
        # descriptors.
        run("strace", "-f", "-y", "-qq", "-o", trace,
            "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,linkat", *words,
            env={**os.environ, "TIDEMARK_LOOP": "epoll"})  # fmt: skip
        found, begun = [], {}
        with open(trace, encoding="utf-8") as f:
            for line in f:
                pid = line.split()[0]
                if "<unfinished ...>" in line:
                    begun[pid] = line.split("<unfinished")[0].rstrip()
                    continue
                resumed = re.search(r"<\.\.\. \w+ resumed>(.*)", line)
                call = CALL.match(begun.pop(pid) + resumed.group(1) if resumed else line)
                if call and call.group(1).startswith(("rename", "linkat")):
                    found.append(("rename", call.group(2)))
                elif call:
                    found.append((call.group(1), re.search(r"<(.*)>", call.group(2)).group(1)))
        return found

    def made(self, calls):
        """The file that a restore makes, by what it is called before it has its name."""
        names = {os.path.basename(c[1]) for c in calls if c[0] != "rename"}
        (made,) = [n for n in names if n.startswith(("#", ".tidemark-restore-"))]
        return made

    def assert_appears_stably(self, calls, name, folder, files):
        """`name` gets its name after each of `files` was synced, and `folder` is synced after that.
        """
        rename = max(i for i, c in enumerate(calls) if c[0] == "rename" and f'{name}"' in c[1])
        for file in files:
            synced = [i for i, c in enumerate(calls) if c[0] != "rename" and c[1].endswith(file)]
            self.assertTrue(synced and min(synced) < rename, f"{file}: {calls}")
        self.assertIn(("fsync", folder), calls[rename:])

    def test_a_backup_is_stable_before_and_after_it_gets_its_name(self):
        self.write_random(0, MIB)
        calls = self.calls(*self.backup_words())
        name = self.list_backups()[0]["id"]
        draft = next(a.split('"')[1] for c, a in calls if c == "rename" and f'{name}"' in a)
        self.assert_appears_stably(
            calls, name, os.path.realpath(self.repository),
            ["disk.qcow2", "checksums", "manifest.json", os.path.basename(draft)],
        )  # fmt: skip

    def test_a_file_that_is_not_stable_is_no_backup(self):
        self.write_random(0, MIB)
        self.backup()
        root = os.path.realpath(self.repository)
        for name in ("disk.qcow2", "checksums"):
            paths = []
            for seconds in range(60):
                ident = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + seconds))
                for number in ("", "-2", "-3"):
                    draft = f".tidemark-tmp-{ident}{number}"
                    paths += ["-P", os.path.join(root, draft, name)]
            result = run("strace", "-f", "-o", os.devnull, *paths, "-e", "trace=fsync",
                         "-e", "inject=fsync:error=EIO", *self.backup_words("--full"),
                         env={**os.environ, "TIDEMARK_LOOP": "epoll"}, check=False)  # fmt: skip
            self.assertEqual(result.returncode, 1)
            self.assertRegex(result.stderr, f"Could not write '.*/{name}': Input/output error")
            self.assertEqual(len(self.list_backups()), 1)

    def test_a_new_directory_is_stable_before_it_is_a_repository(self):
        image = self.path("image.raw")
        with open(image, "wb") as f:
            f.truncate(MIB)
        for made in (False, True):
            folder = self.path(f"parent-{made}")
            target = os.path.join(folder, "new")
            os.makedirs(target if made else folder)
            calls = self.calls(*tool("backup"), "--image", image, "--format", "raw",
                               "--to", target)  # fmt: skip
            begun = next(i for i, c in enumerate(calls) if 'repository.json"' in c[1])
            self.assertIn(("fsync", os.path.realpath(folder)), calls[:begun])

    def test_a_restored_disk_is_stable_before_and_after_it_gets_its_name(self):
        self.write_random(0, MIB)
        self.backup()
        target = self.path("out.raw")
        calls = self.calls(*tool("restore"), self.repository, target)
        self.assert_appears_stably(calls, "out.raw", os.path.realpath(self.dir), [self.made(calls)])


    def test_owner_and_mode_of_what_is_replaced_are_stable_too(self):
        self.backup()
        target = self.path("out.raw")
        with open(target, "wb"):
            pass
        calls = self.calls(*tool("restore"), self.repository, "--force", target)
        made = self.made(calls)
        before = calls[: [c[0] for c in calls].index("rename")]
        self.assertTrue([c for c in before if c[0] == "fsync" and c[1].endswith(made)], calls)

    def test_a_restore_that_fails_leaves_nothing(self):
        self.write_random(0, MIB)
        image = self.image_of(self.backup())
        with open(image, "r+b") as f:
            f.seek(os.path.getsize(image) - CLUSTER)
            f.write(b"damage")
        before = sorted(os.listdir(self.dir))
        result = run(*tool("restore"), self.repository, self.path("out.raw"), check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(sorted(os.listdir(self.dir)), before)


class Race(BackupCase):
    size = 4 * MIB

    def test_what_comes_to_the_targets_place_meanwhile_stays(self):
        self.write_random(0, MIB)
        self.backup()
        target = self.path("out.raw")
        words = [*tool("restore"), self.repository, target]
        process = self.own(
            Process(
                ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=renameat2,linkat",
                 "-e", "inject=renameat2,linkat:delay_enter=2000000", *words],
                self.path("restore.log"),
            )
        )  # fmt: skip
        wait_until(lambda: is_restoring_to(self.dir), "the new file")
        time.sleep(0.5)
        with open(target, "x", encoding="ascii") as f:
            f.write("mine")
        self.assertEqual(process.wait(), 1, process.log())
        self.assertIn("was made by another program meanwhile", process.log())
        with open(target, encoding="ascii") as f:
            self.assertEqual(f.read(), "mine")


class Forged(BackupCase):
    """An image that was changed together with its manifest."""

    size = 4 * MIB

    def setUp(self):
        super().setUp()
        self.write_random(0, MIB)
        self.first = self.backup()
        self.write_random(MIB // 2, CLUSTER)
        self.second = self.backup()

    def forge(self, manifest):
        """Make the manifest agree with what its image holds now."""
        path = os.path.join(self.repository, manifest["id"], "manifest.json")
        with open(path, encoding="utf-8") as f:
            fields = json.load(f)
        with open(self.image_of(manifest), "rb") as f:
            data = f.read()
        fields["image"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        del fields["sha256"]
        text = json.dumps(fields, separators=(",", ":")).replace("/", "\\/")
        fields["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        with open(path, "w", encoding="utf-8") as f:
            json.dump(fields, f)

    def assert_found(self, manifest, text):
        self.forge(manifest)
        result = run(*tool("verify"), self.repository, check=False)
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertIn(text, result.stdout)

    def test_forging_alone_is_not_noticed(self):
        self.forge(self.second)
        self.assert_sound()

    def test_another_backing_file(self):
        image = self.image_of(self.second)
        qemu_img("rebase", "-u", "-b", "../other/disk.qcow2", "-F", "qcow2", "-f", "qcow2", image)
        self.assert_found(self.second, "The backing file of")

    def test_data_that_no_checksum_covers(self):
        qemu_io(self.image_of(self.second), "write -P 7 3M 64k", fmt="qcow2")
        self.assert_found(self.second, "it should leave it to its backing file")

    def test_data_that_do_not_fit_their_checksum(self):
        qemu_io(self.image_of(self.second), "write -P 7 512k 64k", fmt="qcow2")
        self.assert_found(self.second, "damaged")

    def test_tables_that_contradict_each_other(self):
        """The refcount of the header's cluster becomes 0."""
        with open(self.image_of(self.second), "r+b") as f:
            f.seek(48)
            table = struct.unpack(">Q", f.read(8))[0]
            f.seek(table)
            f.seek(struct.unpack(">Q", f.read(8))[0])
            f.write(bytes(2))
        self.assert_found(self.second, "no sound qcow2 image")


class Device(BackupCase):
    size = 4 * MIB

    def loop_device(self):
        """One that is full of something; made by sudo where it must be."""
        content = self.path("content")
        with open(content, "wb") as f:
            f.write(b"before" * (MIB // 3 * 2 + 6))
        as_root = () if os.geteuid() == 0 else ("sudo", "-n")
        made = run(*as_root, "losetup", "-f", "--show", "--sizelimit", str(self.size), content, check=False)
        if made.returncode:
            self.skipTest(f"no loop device is available: {made.stderr}")
        device = made.stdout.strip()
        self.addCleanup(run, *as_root, "losetup", "-d", device)
        if as_root:
            run(*as_root, "chown", str(os.geteuid()), device)
        return device

    def test_zeroes_reach_a_device_that_held_something(self):
        self.write_random(MIB, MIB)
        manifest = self.backup()
        device = self.loop_device()
        run(*tool("restore"), self.repository, "--at", manifest["id"], "--force", device)
        with open(device, "rb") as f:
            self.assertEqual(f.read(), self.model)
