# SPDX-License-Identifier: Apache-2.0
"""What a libvirt for tests does (tests/tools/fake_libvirt): a domain whose disks are nodes of
qemu-storage-daemon, with its backup jobs and checkpoints.
"""

import os
import re
import socket
import subprocess
import threading
import time

from qmp import QmpError


class Refused(Exception):
    """An error of libvirt."""


def attributes(text):
    return dict(re.findall(r" ([a-z]+)='([^']*)'", text))


def disks_of(xml):
    return [attributes(d) for d in re.findall(r"<disk [^>]*>", xml)]


class FakeLibvirt:
    """It listens at `path`. `sizes` has the disks, which are names of nodes; `qmp` is its own."""

    def __init__(self, path, qmp, xml, sizes):
        self.qmp, self.xml, self.sizes = qmp, xml, sizes
        self.checkpoints, self.job, self.log = [], None, []
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def close(self):
        self.listener.close()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(client,), daemon=True).start()

    def answer(self, client):
        with client:
            words = b""
            while data := client.recv(65536):
                words += data
            if not words:
                return  # It was killed before it has said anything.
            command, *arguments = words.decode().split("\0")[:-1]
            with self.lock:
                try:
                    text = "+" + (getattr(self, "do_" + command)(*arguments) or "")
                except (Refused, QmpError, ValueError) as e:
                    text = "-" + str(e)
            try:
                client.sendall(text.encode())
            except OSError:
                pass  # It was killed.

    def bitmaps(self, disk):
        return self.qmp.bitmaps(disk)

    def do_lookup(self, _):
        return ""

    def do_xml(self):
        return self.xml

    def do_size(self, disk):
        return str(self.sizes[disk])

    def do_checkpoints(self):
        return "".join(name + "\n" for name in self.checkpoints)

    def do_checkpoint(self, name):
        have = [self.bitmaps(d).get(name) for d in self.sizes]
        if name not in self.checkpoints or any(b and b.get("inconsistent") for b in have):
            raise Refused("the checkpoint is broken")
        return "<domaincheckpoint/>"

    def do_redefine(self, xml):
        name = re.search(r"<name>([^<]*)", xml).group(1)
        if not any(name in self.bitmaps(d) for d in self.sizes):
            raise Refused("no such bitmap")
        self.checkpoints.append(name)

    def do_job(self):
        if not self.job:
            raise Refused("no backup job")
        return f"<domainbackup mode='pull'>\n<server transport='unix' socket='{self.job['socket']}'/>"

    def do_freeze(self):
        self.log.append("freeze")

    def do_thaw(self):
        self.log.append("thaw")

    def add_scratch(self, disk, scratch):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", scratch, str(self.sizes[disk])], check=True
        )
        self.qmp.command(
            "blockdev-add",
            **{"driver": "qcow2", "node-name": "temp-" + disk, "backing": disk,
               "file": {"driver": "file", "filename": scratch}},
        )  # fmt: skip

    def merge_since(self, disk, checkpoint, bitmap):
        """An action: what has changed since the checkpoint, in a bitmap of the scratch image."""
        since = self.checkpoints[self.checkpoints.index(checkpoint) :]
        node = "temp-" + disk
        self.qmp.command(
            "block-dirty-bitmap-add", node=node, name=bitmap, disabled=True, granularity=65536
        )
        sources = [{"node": disk, "name": b} for b in since]
        return ("block-dirty-bitmap-merge", {"node": node, "target": bitmap, "bitmaps": sources})

    def track(self, disk, name):
        """Actions: the newest bitmap stops, and another one begins."""
        actions = [
            ("block-dirty-bitmap-disable", {"node": disk, "name": b})
            for b in self.checkpoints
            if self.bitmaps(disk).get(b, {}).get("recording")
        ]
        new = {"node": disk, "name": name, "persistent": True, "granularity": 65536}
        return [*actions, ("block-dirty-bitmap-add", new)]

    def do_begin(self, backup, checkpoint):
        """One transaction for all disks."""
        self.log.append("begin")
        if self.job:
            raise Refused("there is another job")
        new = re.search(r"<name>([^<]*)", checkpoint)
        tracked = [d["name"] for d in disks_of(checkpoint) if d["checkpoint"] == "bitmap"]
        actions, scratches = [], []
        disks = [d for d in disks_of(backup) if d["backup"] == "yes"]
        for d in disks:
            name = d["name"]
            pattern = rf"exportname='{name}'><scratch file='([^']*)'"
            scratches.append((name, re.search(pattern, backup).group(1)))
            self.add_scratch(*scratches[-1])
            if d["backupmode"] == "incremental":
                actions.append(self.merge_since(name, d["incremental"], d["exportbitmap"]))
            if name in tracked:
                actions += self.track(name, new.group(1))
            job = {"device": name, "target": "temp-" + name, "sync": "none", "job-id": "job-" + name}
            actions.append(("blockdev-backup", job))
        self.qmp.transaction(*actions)
        path = re.search(r"socket='([^']*)'", backup).group(1)
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        for d in disks:
            self.qmp.command(
                "block-export-add",
                **{"type": "nbd", "id": "x-" + d["name"], "name": d["name"],
                   "node-name": "temp-" + d["name"]},
                bitmaps=[d["exportbitmap"]] if "exportbitmap" in d else [],
            )  # fmt: skip
        self.job = {"socket": path, "disks": scratches}
        self.checkpoints += [new.group(1)] if new else []

    def do_abort(self):
        self.qmp.command("nbd-server-stop")
        for name, _ in self.job["disks"]:
            self.qmp.command("block-job-cancel", device="job-" + name)
        while self.qmp.command("query-jobs") or self.qmp.command("query-block-exports"):
            time.sleep(0.01)
        for name, scratch in self.job["disks"]:
            self.qmp.command("blockdev-del", **{"node-name": "temp-" + name})
            os.unlink(scratch)
        self.job = None

    def do_delete(self, name):
        """What it has recorded goes over to the checkpoint before."""
        at = self.checkpoints.index(name)
        before = self.checkpoints[at - 1] if at else None
        for disk in self.sizes:
            have = self.bitmaps(disk)
            if name in have and before in have:
                self.qmp.command(
                    "block-dirty-bitmap-merge", node=disk, target=before, bitmaps=[name]
                )
                if have[name]["recording"]:
                    self.qmp.command("block-dirty-bitmap-enable", node=disk, name=before)
            if name in have:
                self.qmp.command("block-dirty-bitmap-remove", node=disk, name=name)
        self.checkpoints.remove(name)
