# SPDX-License-Identifier: Apache-2.0
"""What tests of backups share: a disk in use, and a model of what it holds."""

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import time

import nbd

from qmp import QmpError
from tidemark import BUILD, Process, TestCase, can_connect, nbd_uri, run, tool, wait_until

MIB = 1 << 20
SIZE = 64 * MIB
WRITER = os.path.join(BUILD, "tests/tools/verifying_writer")


def heed_signals():
    """In a child: nohup(1), and a shell's `&`, leave some signals ignored, which is inherited."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class HeldUp:
    """A program that reports its progress as JSON and that nobody listens to, so that it stands
    still when it wants to tell something: at the latest when all is fetched, and before that is
    complete.
    """

    def __init__(self, command):
        self.reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b" " * 4096)
        except BlockingIOError:
            os.set_blocking(writer, True)
        self.process = subprocess.Popen(
            [*command, "--progress=json"], stdout=subprocess.DEVNULL, stderr=writer,
            preexec_fn=heed_signals,
        )  # fmt: skip
        os.close(writer)

    def is_running(self):
        return self.process.poll() is None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def release(self):
        """Listen until it ends; its status and what it said."""
        with open(self.reader, "rb") as f:
            said = f.read().decode()
        return self.process.wait(60), said


def is_restoring_to(directory):
    """Whether some program has a file in there that has no name yet, or that of an unfinished
    restore.
    """
    if any("tidemark-restore" in name for name in os.listdir(directory)):
        return True
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(link).startswith(directory + "/#"):
                return True
        except OSError:
            pass
    return False


class BackupCase(TestCase):
    """A daemon that serves a disk, and a model of what the disk holds."""

    size = SIZE

    def setUp(self):
        super().setUp()
        self.random = random.Random(self.id())
        self.image = self.create("disk.qcow2", str(self.size))
        self.repository = self.path("backups")
        self.model = bytearray(self.size)
        self.start()

    def start(self, driver="qcow2", server=True, **more):
        self.socket = self.path("nbd.sock")
        words = []
        if server:
            words = [
                "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
                "--export", "type=nbd,id=export0,node-name=disk,name=disk,writable=on",
            ]  # fmt: skip
        self.server = self.daemon(
            "--blockdev",
            f"driver={driver},node-name=disk,discard=unmap,"
            f"file.driver=file,file.discard=unmap,file.filename={self.image}",
            *words,
            **more,
        )
        if server:
            self.server.wait_for(lambda: can_connect(self.socket), "the NBD server")

    def client(self):
        handle = nbd.NBD()
        handle.connect_uri(nbd_uri(self.socket, "disk"))
        return handle

    # Changes to the disk; the model follows.

    def write(self, offset, data):
        client = self.client()
        for start in range(0, len(data), MIB):
            client.pwrite(data[start : start + MIB], offset + start)
        client.flush()
        client.shutdown()
        self.model[offset : offset + len(data)] = data

    def write_random(self, offset, length):
        self.write(offset, self.random.randbytes(length))

    def zero(self, offset, length, discard=False):
        client = self.client()
        if discard:
            client.trim(length, offset)
        else:
            client.zero(length, offset)
        client.flush()
        client.shutdown()
        self.model[offset : offset + length] = bytes(length)

    # Backups.

    def backup_words(self, *words):
        return [
            *tool("backup"), "--qmp", self.server.qmp_path, "--node", "disk",
            "--to", self.repository, *words,
        ]  # fmt: skip

    def backup(self, *words):
        """Take one; its manifest."""
        return json.loads(run(*self.backup_words("--output=json", *words)).stdout)

    def backup_fails_at_once(self, *words, why):
        result = run(*self.backup_words(*words), check=False)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertIn(why, result.stderr)
        self.assertEqual(self.own_nodes(), [])

    def start_backup(self, *words):
        return self.own(Process(self.backup_words("--no-guard", *words), self.path("backup.log")))

    def hold_backup(self, *words, guard=False):
        """One that has its filter in place, and does not go on before it is released. Without a
        guard, what it leaves when it is killed stays.
        """
        words = words if guard else ("--no-guard", *words)
        held = self.own(HeldUp(self.backup_words(*words)))
        wait_until(self.own_exports, "the export")
        if not guard:
            self.lease_views()
        return held

    def lease_views(self):
        """Have what runs leave when they are killed stay until our own connection ends."""
        for name in self.own_exports():
            try:
                self.server.qmp.command("x-tidemark-lease", node_name=f"{name}-snap")
            except QmpError as e:
                if e.error_class != "CommandNotFound":
                    raise

    def list_backups(self):
        return json.loads(run(*tool("backups"), "--output=json", self.repository).stdout)

    def copy_to_another_machine(self, copy):
        """A copy by hand that cannot know of the original."""
        shutil.copytree(self.repository, copy)
        path = os.path.join(copy, "repository.json")
        with open(path, encoding="utf-8") as f:
            description = json.load(f)
        del description["path"], description["sha256"]
        with open(path, "w", encoding="utf-8") as f:
            json.dump(description, f)

    def image_of(self, manifest):
        return os.path.join(self.repository, manifest["id"], "disk.qcow2")

    def own_nodes(self):
        nodes = self.server.qmp.command("query-named-block-nodes")
        return [n["node-name"] for n in nodes if n.get("node-name", "").startswith("tidemark-")]

    def own_exports(self):
        exports = self.server.qmp.command("query-block-exports")
        return [e["id"] for e in exports if e["id"].startswith("tidemark-")]

    def own_bitmaps(self):
        return self.server.qmp.bitmaps("disk")

    def check_backups_under_writes(self, begin, length, count):
        """Backups while a client writes into [begin, begin + length) restore to one moment each."""
        journal = self.path("journal")
        self.write_random(0, begin)
        writer = self.own(
            Process(
                [
                    WRITER, "write", "--uri", nbd_uri(self.socket, "disk"), "--journal", journal,
                    "--offset", str(begin), "--length", str(length), "--rate", "4000",
                ],
                self.path("writer.log"),
            )
        )  # fmt: skip
        time.sleep(0.3)
        taken = []
        for _ in range(count):
            taken.append(self.backup())
            time.sleep(0.1)
        writer.stop()
        self.assertEqual([m["kind"] for m in taken], ["full"] + ["incremental"] * (count - 1))
        for manifest in taken:
            target = self.path("restored.raw")
            run(*tool("restore"), self.repository, "--at", manifest["id"], "--force", target)
            window = manifest["checkpoint"]
            run(
                WRITER, "check", "--journal", journal, "--image", target,
                "--begin", window["begin"]["monotonic-ns"],
                "--end", window["end"]["monotonic-ns"],
            )  # fmt: skip
            with open(target, "rb") as f:
                self.assertTrue(f.read(begin) == self.model[:begin])
        self.assert_settled()

    def assert_settled(self):
        """Nothing of a backup is left in the daemon but at most one recording bitmap."""
        self.assertEqual(self.own_nodes(), [])
        self.assertEqual(self.own_exports(), [])
        exports = self.server.qmp.command("query-block-exports")
        self.assertEqual([e["node-name"] for e in exports], ["disk"] * len(exports))
        bitmaps = self.own_bitmaps()
        self.assertLessEqual(len(bitmaps), 1)
        self.assertTrue(all(b["recording"] for b in bitmaps.values()))

    def assert_clean_directory(self):
        for name in os.listdir(self.repository):
            self.assertFalse(name.startswith(".tidemark-tmp"), name)

    def assert_restores(self, manifest, model):
        target = self.path("restored.raw")
        run(*tool("restore"), self.repository, "--at", manifest["id"], "--force", target)
        with open(target, "rb") as f:
            content = f.read()
        if content != model:
            first = next(i for i, (a, b) in enumerate(zip(content, model)) if a != b)
            self.fail(f"{manifest['id']} differs from the disk of then at offset {first}")

    def assert_sound(self):
        run(*tool("verify"), self.repository)
