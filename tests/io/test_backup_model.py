# SPDX-License-Identifier: Apache-2.0
"""Random days of a disk in use: writes, resizes, backups that are killed or whose daemon is, moves
of the image, prunes, copies; every point in time that is kept restores to what the disk was then.

`make backup-model` for one disk after the other; TIDEMARK_MODEL_SEED for others,
TIDEMARK_MODEL_DAYS for longer lives.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import time

from backup_case import MIB, BackupCase
from tidemark import Process, img, run, tool

DAYS = int(os.environ.get("TIDEMARK_MODEL_DAYS", "12"))
SECONDS = float(os.environ.get("TIDEMARK_MODEL_SECONDS", "0"))
SEED = os.environ.get("TIDEMARK_MODEL_SEED", "a")
SECTOR = 512
CLUSTER = 65536
SIZE_MAX = 12 * MIB


def digest(data):
    return len(data), hashlib.sha256(data).hexdigest()


class Model(BackupCase):
    size = 4 * MIB
    in_memory = True

    def setUp(self):
        super().setUp()
        self.copy = self.path("copy")
        self.points = {}  # of the repository and its copy, by id
        self.lived = self.moves = 0
        self.said = []

    # What can happen to the disk.

    def change(self):
        for _ in range(self.random.randrange(1, 5)):
            if not self.model:
                return
            length = self.random.randrange(1, 300000) // SECTOR * SECTOR + SECTOR
            offset = self.random.randrange(len(self.model)) // SECTOR * SECTOR
            length = min(length, len(self.model) - offset)
            kind = self.random.randrange(4)
            if kind < 2:
                self.write_random(offset, length)
            elif kind == 2:
                self.zero(offset, length)
            else:  # only whole clusters are sure to be zero then
                first, end = -(-offset // CLUSTER), (offset + length) // CLUSTER
                if first < end:
                    self.zero(first * CLUSTER, (end - first) * CLUSTER, discard=True)

    def new_size(self):
        size = self.random.randrange(SECTOR, SIZE_MAX, SECTOR)
        return size if self.random.random() < 0.5 else max(size // MIB * MIB, MIB)

    def resize_model(self, size):
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def resize(self):
        self.abort()
        size = self.new_size()
        self.server.qmp.command("block_resize", node_name="disk", size=size)
        self.resize_model(size)

    def begin_again(self):
        """After the daemon has ended, in the same place or in another one, the disk perhaps resized
        meanwhile.
        """
        if self.random.random() < 0.4:
            self.moves += 1
            folder = self.path(f"host-{self.moves}")
            os.mkdir(folder)
            os.rename(self.image, os.path.join(folder, f"disk-{self.moves}.qcow2"))
            self.image = os.path.join(folder, f"disk-{self.moves}.qcow2")
        if self.random.random() < 0.3:
            size = self.new_size()
            img("resize", "-q", "--shrink", "-f", "qcow2", self.image, str(size))
            self.resize_model(size)
        if self.random.random() < 0.3:
            self.take("--image", self.image, "--format", "qcow2")
        self.start(name=f"daemon-{self.lived}-{len(self.said)}")

    def restart(self):
        self.server.stop()
        self.begin_again()

    def crash(self):
        self.server.kill()
        self.server.disconnect()
        self.begin_again()

    # Backups.

    def note_new(self, model):
        """What the repository has got has to be what the disk was at that time."""
        for entry in self.list_backups() if os.path.exists(self.repository) else []:
            self.points.setdefault(entry["id"], digest(model))

    def words(self, *source):
        source = source or ("--qmp", self.server.qmp_path, "--node", "disk")
        more = self.random.choice([(), (), (), ("--compare",), ("--full",)])
        return [*tool("backup"), *source, "--same-disk", "--to", self.repository, *more]

    def take(self, *source):
        self.note_new(self.model)
        manifest = json.loads(run(*self.words(*source), "--output=json").stdout)
        self.assertEqual(manifest["virtual-size"], len(self.model))
        self.assertNotIn(manifest["id"], self.points)
        self.points[manifest["id"]] = digest(self.model)

    def abort(self):
        """What a killed backup has left would be taken for that of the next one."""
        if self.own_nodes():
            run(*self.backup_words("--same-disk", "--abort"))
            self.assertEqual(self.own_nodes(), [])

    def backup_under_writes(self):
        self.abort()
        before = bytes(self.model)
        held = self.hold_backup("--same-disk", guard=True)
        self.change()
        status, said = held.release()
        self.assertEqual(status, 0, said)
        self.note_new(before)

    def killed_backup(self):
        guard = self.random.choice([(), ("--no-guard",)])
        process = self.own(Process([*self.words(), *guard], self.path("backup.log")))
        time.sleep(self.random.random() * 0.15)
        process.kill()
        self.note_new(self.model)

    def backup_whose_daemon_is_killed(self):
        process = self.own(Process(self.words(), self.path("backup.log")))
        time.sleep(self.random.random() * 0.15)
        self.server.kill()
        self.server.disconnect()
        process.wait()
        self.note_new(self.model)
        self.begin_again()

    # The repository, and its copy.

    def begin_killed(self, *words):
        """Sometimes a command is killed in the middle first."""
        if self.random.random() < 0.3:
            step = self.random.randrange(1, 60)
            calls = "renameat,renameat2,unlinkat,mkdirat,fsync,pwrite64"
            subprocess.run(
                ["strace", "-f", "-o", "/dev/null",
                 "-e", f"inject={calls}:signal=SIGKILL:when={step}", *words],
                env={**os.environ, "TIDEMARK_LOOP": "epoll"}, capture_output=True, check=False,
            )  # fmt: skip

    def ids(self, place):
        return [b["id"] for b in json.loads(run(*tool("backups"), "--output=json", place).stdout)]

    def prune(self):
        place = self.random.choice([self.repository, self.copy])
        listed = self.ids(place) if os.path.exists(place) else []
        if not listed:
            return
        if self.random.random() < 0.5:
            removed = self.random.sample(listed[:-1], min(2, len(listed) - 1))
        else:
            removed = listed[: -self.random.randrange(1, 6)]

        def words():
            left = [i for i in self.ids(place) if i in removed]
            return [*tool("prune"), place, *(w for i in left for w in ("--remove", i))]

        by_rule = [*tool("prune"), place, "--keep-last", str(len(listed) - len(removed))]
        oldest = removed == listed[: len(removed)]
        self.begin_killed(*(by_rule if oldest else words()))
        if oldest:
            run(*by_rule)
        elif set(removed) & set(self.ids(place)):
            run(*words())
        self.assertEqual(self.ids(place), [i for i in listed if i not in removed])

    def copy_all(self):
        self.note_new(self.model)
        if self.points:
            words = [*tool("copy"), *self.random.choice([(), ("--last", "3")])]
            self.begin_killed(*words, self.repository, self.copy)
            run(*words, self.repository, self.copy)

    # Life.

    def day(self):
        self.change()
        step = self.random.choices(
            [self.take, self.backup_under_writes, self.killed_backup, self.resize, self.restart,
             self.crash, self.backup_whose_daemon_is_killed, self.prune, self.copy_all],
            [6, 2, 2, 3, 1, 2, 1, 2, 2],
        )[0]  # fmt: skip
        self.said.append(step.__name__)
        step()

    def check_points(self, place):
        kept = json.loads(run(*tool("backups"), "--output=json", place).stdout)
        self.assertGreater(len(kept), 0)
        for backup in kept:
            target = self.path("restored.raw")
            run(*tool("restore"), place, "--at", backup["id"], "--force", target)
            with open(target, "rb") as f:
                self.assertEqual(digest(f.read()), self.points[backup["id"]], backup["id"])
        run(*tool("verify"), place)

    def live(self, seed):
        self.random = random.Random(seed)
        self.said, self.points = [], {}
        self.model = bytearray(self.size)
        for place in self.repository, self.copy:
            shutil.rmtree(place, ignore_errors=True)
        self.image = self.create(f"disk-{self.lived}.qcow2", str(self.size))
        self.lived += 1
        self.start(name=f"daemon-{self.lived}")
        try:
            for _ in range(DAYS):
                self.day()
            self.take()
            self.assert_settled()
            self.copy_all()
            for place in self.repository, self.copy:
                self.check_points(place)
        except BaseException:
            print(f"# TIDEMARK_MODEL_SEED={seed}: {' '.join(self.said)}", flush=True)
            raise
        self.server.stop()
        os.unlink(self.image)

    def test_random_days(self):
        end = time.monotonic() + SECONDS
        self.server.stop()
        self.live(SEED)
        while time.monotonic() < end:
            self.live(f"{SEED}-{self.lived}")
        if SECONDS:
            print(f"# {self.lived} disks", flush=True)
