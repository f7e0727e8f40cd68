# SPDX-License-Identifier: Apache-2.0
"""Random days of a machine with several disks: writes, sets of backups that are killed or whose
daemon is, moves of the images and of the names of their nodes, prunes, copies; every point in time
of every disk that is kept restores to what that disk was then.

TIDEMARK_MODEL_SEED for other days, TIDEMARK_MODEL_DAYS for more, TIDEMARK_MODEL_SECONDS for one
machine after the other (`make backup-model`). There are half as many days as for one disk.
"""

import json
import os
import random
import shutil
import subprocess
import time

import nbd

from backup_case import MIB
from test_backup_model import DAYS, SECONDS, SEED, digest
from test_backup_set import SetCase
from tidemark import Process, can_connect, nbd_uri, run, tool

DISKS = ("a", "b", "c")
CALLS = "renameat,renameat2,unlinkat,mkdirat,fsync,pwrite64"


class Machine(SetCase):
    size = 2 * MIB
    in_memory = True

    def setUp(self):
        self.nodes = {d: d for d in DISKS}  # the disks' names in the daemon
        self.images, self.lived, self.said = {}, 0, []
        super().setUp()
        self.copy = self.path("copy")

    def start(self, *_, **__):
        self.socket = self.path("nbd.sock")
        words = ["--nbd-server", f"addr.type=unix,addr.path={self.socket}"]
        # In the order of their names: which image comes first says nothing.
        for node, disk in sorted((n, d) for d, n in self.nodes.items()):
            if disk not in self.images:
                self.images[disk] = self.create(f"{disk}-{self.lived}.qcow2", str(self.size))
            words += [
                "--blockdev",
                f"driver=qcow2,node-name={node},file.driver=file,file.filename={self.images[disk]}",
                "--export", f"type=nbd,id=e-{node},node-name={node},name={node},writable=on",
            ]  # fmt: skip
        self.server = self.daemon(*words, name=f"daemon-{self.lived}-{len(self.said)}")
        self.server.wait_for(lambda: can_connect(self.socket), "the NBD server")
        self.monitor, self.more_words = self.server.qmp_path, []
        self.models = getattr(self, "models", None) or {d: bytearray(self.size) for d in DISKS}

    def change(self):
        for _ in range(self.random.randrange(1, 5)):
            disk = self.random.choice(DISKS)
            length = self.random.randrange(1, 300000)
            data = self.random.randbytes(length)
            offset = self.random.randrange(self.size - length)
            handle = nbd.NBD()
            handle.connect_uri(nbd_uri(self.socket, self.nodes[disk]))
            handle.pwrite(data, offset)
            handle.flush()
            handle.shutdown()
            self.models[disk][offset : offset + length] = data

    # What has become of a run is seen in the repository.

    def listed(self, root):
        """(directory, id) of all backups of disks."""
        if not os.path.exists(root):
            return []
        folders = [n for n in sorted(os.listdir(root)) if n != "sets" and not n.startswith(".")]
        return [
            (folder, b["id"])
            for folder in folders
            if os.path.exists(os.path.join(root, folder, "repository.json"))
            for b in json.loads(
                run(*tool("backups"), "--output=json", os.path.join(root, folder)).stdout
            )
        ]

    def note_new(self, digests):
        """What came is what the disk with that name was."""
        for folder, backup in self.listed(self.repository):
            if (folder, backup) not in self.points:
                self.points[folder, backup] = digests[folder]

    def now(self):
        return {self.nodes[d]: digest(self.models[d]) for d in DISKS}

    # Days.

    def take(self, *words):
        """Names that changed places are refused at first, and leave nothing."""
        result = run(*self.backup_words(*words), check=False)
        if result.returncode != 0:
            self.assertIn("--same-disk", result.stderr)
            self.assertEqual(set(self.listed(self.repository)) - set(self.points), set())
            run(*self.backup_words("--same-disk", *words))
        before = len(self.points)
        self.note_new(self.now())
        self.assertEqual(len(self.points), before + len(DISKS))
        self.assertEqual(self.own_nodes(), [])

    def compare(self):
        self.take("--compare")

    def full(self):
        self.take("--full")

    def start_run(self):
        guard = self.random.choice([(), ("--no-guard",)])
        words = self.backup_words("--same-disk", *guard)
        return self.own(Process(words, self.path("backup.log")))

    def killed_backup(self):
        process = self.start_run()
        time.sleep(self.random.random() * 0.2)
        process.kill()
        self.note_new(self.now())

    def backup_whose_daemon_is_killed(self):
        process = self.start_run()
        time.sleep(self.random.random() * 0.2)
        self.server.kill()
        self.server.disconnect()
        process.wait()
        self.note_new(self.now())
        self.begin_again()

    def begin_again(self):
        """Perhaps names go from disk to disk, a disk gets a new one, and an image moves."""
        kind = self.random.randrange(4)
        if kind == 0:
            names = list(self.nodes.values())
            self.random.shuffle(names)
            self.nodes = dict(zip(DISKS, names))
        elif kind == 1:
            self.nodes[self.random.choice(DISKS)] = f"n{self.lived}-{len(self.said)}"
        if self.random.random() < 0.3:
            disk = self.random.choice(DISKS)
            path = self.path(f"moved-{self.lived}-{len(self.said)}.qcow2")
            os.rename(self.images[disk], path)
            self.images[disk] = path
        self.start()

    def restart(self):
        self.server.stop()
        self.begin_again()

    def crash(self):
        self.server.kill()
        self.server.disconnect()
        self.begin_again()

    def may_be_killed(self, *words):
        """Sometimes the command is killed in the middle first."""
        if self.random.random() < 0.4:
            step = self.random.randrange(1, 80)
            subprocess.run(
                ["strace", "-f", "-o", "/dev/null",
                 "-e", f"inject={CALLS}:signal=SIGKILL:when={step}", *words],
                env={**os.environ, "TIDEMARK_LOOP": "epoll"}, capture_output=True, check=False,
            )  # fmt: skip
        run(*words)

    def prune(self):
        place = self.random.choice([self.repository, self.copy])
        if self.listed(place):
            keep = self.random.randrange(1, 5)
            self.may_be_killed(*tool("prune"), place, "--keep-last", str(keep))

    def copy_all(self):
        if self.points:
            self.may_be_killed(*tool("copy"), self.repository, self.copy)

    def day(self):
        self.change()
        step = self.random.choices(
            [self.take, self.compare, self.full, self.killed_backup, self.restart, self.crash,
             self.backup_whose_daemon_is_killed, self.prune, self.copy_all],
            [6, 1, 1, 2, 2, 2, 2, 2, 2],
        )[0]  # fmt: skip
        self.said.append(step.__name__)
        step()

    def check_place(self, place):
        kept = self.listed(place)
        self.assertGreater(len(kept), 0)
        for folder, backup in kept:
            target = self.path("restored.raw")
            run(*tool("restore"), os.path.join(place, folder), "--at", backup, "--force", target)
            with open(target, "rb") as f:
                self.assertEqual(digest(f.read()), self.points[folder, backup], (folder, backup))
        run(*tool("verify"), place)

    def live(self, seed):
        self.random = random.Random(seed)
        self.said, self.points = [], {}
        self.nodes, self.images = {d: d for d in DISKS}, {}
        self.models = {d: bytearray(self.size) for d in DISKS}
        for place in self.repository, self.copy:
            shutil.rmtree(place, ignore_errors=True)
        self.lived += 1
        self.start()
        try:
            for _ in range(DAYS // 2):
                self.day()
            self.take()
            newest = self.sets()[-1]
            target = self.path("all")
            run(*tool("sets"), self.repository, "--restore", target, "--at", newest["id"])
            for disk in DISKS:
                with open(os.path.join(target, self.nodes[disk] + ".raw"), "rb") as f:
                    self.assertTrue(f.read() == self.models[disk], disk)
            shutil.rmtree(target)
            self.copy_all()
            for place in self.repository, self.copy:
                self.check_place(place)
        except BaseException:
            print(f"# TIDEMARK_MODEL_SEED={seed}: {' '.join(self.said)}", flush=True)
            raise
        self.server.stop()
        for image in self.images.values():
            os.unlink(image)

    def test_random_days(self):
        end = time.monotonic() + SECONDS
        self.server.stop()
        self.live(SEED)
        while time.monotonic() < end:
            self.live(f"{SEED}-{self.lived}")
        if SECONDS:
            print(f"# {self.lived} machines", flush=True)

