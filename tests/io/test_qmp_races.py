# SPDX-License-Identifier: Apache-2.0
"""Commands of two monitors that meet: the end of a job, and what drains or changes its nodes."""

import json
import threading
import time
import unittest

import tidemark
from guest import Guest
from nbd_server import Nbdkit

MIB = 1 << 20
SIZE = 8 * MIB
ROUNDS = 8


class RacesTest(tidemark.TestCase):
    in_memory = True
    starts = 0

    def start(self, *names):
        """A chain of images, the first one at the bottom, the last one exported."""
        blockdevs, below, self.starts = [], None, self.starts + 1
        for name in names:
            # A daemon that was killed may hold the locks of its images for a moment.
            file = f"{name}-{self.starts}"
            options = ("-u", "-b", f"{below}-{self.starts}", "-F", "qcow2") if below else ()
            self.create(file, SIZE, options=options)
            blockdevs += [
                "--blockdev",
                f"qcow2,node-name={name},file.driver=file,file.filename={self.path(file)},"
                + f"file.node-name={name}-file,backing={below or ''}".replace("backing=,", ""),
            ]
            below = name
        blockdevs[1] = blockdevs[1].removesuffix(",backing=")
        server = self.daemon(
            *["--object", "iothread,id=io"],
            *blockdevs,
            *["--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}"],
            *["--export", f"nbd,id=e,node-name={names[-1]},name=e,writable=on,iothread=io"],
        )
        guests = [Guest(self.path("nbd"), "e", n * MIB, MIB, n, flush_every=4) for n in range(4)]
        self.addCleanup(lambda: [setattr(guest, "stopping", True) for guest in guests])
        return server

    def end_against_merge(self, command, **more):
        for _ in range(ROUNDS):
            server = self.start("base", "mid", "top")
            for name in "b1", "b2":
                server.qmp.command("block-dirty-bitmap-add", node="top", name=name)
            other = server.connect(timeout=20)
            self.addCleanup(other.close)
            server.qmp.command(command, job_id="j", device="top", auto_finalize=False, **more)
            server.qmp.wait_event("BLOCK_JOB_PENDING")
            merge = {"node": "top", "target": "b2", "bitmaps": ["b1"]}
            other.send_raw(
                json.dumps({"execute": "block-dirty-bitmap-merge", "arguments": merge}) + "\n"
            )
            # Both are answered; a command that comes too late may be refused.
            server.qmp.execute("job-finalize", {"id": "j"})
            other.receive_answer()
            self.assertTrue(server.is_running())
            server.kill()

    def test_a_stream_ends_while_its_disk_is_drained(self):
        self.end_against_merge("block-stream")

    def test_a_commit_ends_while_its_disk_is_drained(self):
        self.end_against_merge("block-commit", top_node="mid", base_node="base")

    def test_a_backup_is_cancelled_while_its_target_is_drained(self):
        for _ in range(ROUNDS):
            server = self.start("base", "top")
            target = f"target-{self.starts}"
            self.create(target, SIZE)
            server.qmp.command(
                "blockdev-add",
                driver="qcow2",
                node_name="target",
                file={"driver": "file", "filename": self.path(target)},
            )
            for node, name in ("top", "b"), ("target", "t1"), ("target", "t2"):
                server.qmp.command("block-dirty-bitmap-add", node=node, name=name)
            other = server.connect(timeout=20)
            self.addCleanup(other.close)
            server.qmp.command(
                "blockdev-backup",
                **{"job-id": "j", "device": "top", "target": "target", "sync": "bitmap"},
                **{"bitmap": "b", "bitmap-mode": "always", "auto-finalize": False},
            )
            server.qmp.wait_event("BLOCK_JOB_PENDING")
            merge = {"node": "target", "target": "t2", "bitmaps": ["t1"]}
            other.send_raw(
                json.dumps({"execute": "block-dirty-bitmap-merge", "arguments": merge}) + "\n"
            )
            server.qmp.execute("job-cancel", {"id": "j"})
            other.receive_answer()
            server.qmp.wait_event("BLOCK_JOB_CANCELLED")
            server.kill()

    def test_a_node_that_comes_during_a_transaction_is_left_alone(self):
        images = [self.create(name) for name in ("slow", "new")]
        tidemark.img("bitmap", "-f", "qcow2", "--add", images[1], "old")
        file = {"driver": "file", "filename": images[0]}
        rule = {"event": "none", "iotype": "write", "errno": 0, "delay-ns": 10**9}
        file = {"driver": "blkdebug", "image": file, "inject-error": [rule]}
        slow = {"driver": "qcow2", "node-name": "slow", "file": file}
        server = self.daemon("--blockdev", json.dumps(slow))
        other = self.enterContext(server.connect())
        add = {"node": "slow", "name": "b", "persistent": True}
        actions = [
            {"type": "block-dirty-bitmap-add", "data": add},
            {"type": "block-dirty-bitmap-remove", "data": {"node": "new", "name": "old"}},
        ]
        message = {"execute": "transaction", "arguments": {"actions": actions}}
        other.send_raw(json.dumps(message) + "\n")
        time.sleep(0.1)
        server.qmp.command(
            "blockdev-add", driver="qcow2", node_name="new",
            file={"driver": "file", "filename": images[1]},
        )  # fmt: skip
        self.assertIn("error", other.receive_answer())
        self.assertIn("old", server.qmp.bitmaps("new"))
        self.assertNotIn("b", server.qmp.bitmaps("slow"))
        server.qmp.command("blockdev-del", node_name="new")

    def test_a_target_gets_the_disk_as_its_backing_file(self):
        """After the backup has begun. A read of the target that has found nothing there, and waits
        for the disk, is done before a guest's write changes the disk.
        """
        disk = self.own(Nbdkit(self.dir, "--filter=delay", "memory", "1M", "rdelay=400ms"))
        tidemark.io(disk.uri(), "write -P 1 0 1M", fmt="raw")
        self.create("target", "1M")
        nbd = self.path("nbd")
        server = self.daemon(
            "--blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={disk.socket}",
            "--blockdev", f"driver=file,node-name=file,filename={self.path('target')}",
            "--nbd-server", f"addr.type=unix,addr.path={nbd},max-connections=0",
            "--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on",
        )  # fmt: skip
        target = {"driver": "qcow2", "node-name": "target", "file": "file"}
        server.qmp.execute("blockdev-add", {**target, "backing": None})
        server.qmp.command(
            "blockdev-backup", job_id="j", device="disk", target="target", sync="none"
        )
        server.qmp.command("blockdev-reopen", options=[{**target, "backing": "disk"}])
        server.qmp.command("block-export-add", type="nbd", id="t", node_name="target", name="t")
        guest = threading.Thread(
            target=tidemark.io, args=(tidemark.nbd_uri(nbd, "disk"), "write -P 2 0 64k"),
            kwargs={"fmt": "raw"},
        )  # fmt: skip
        guest.start()
        time.sleep(0.25)  # it copies what it is going to overwrite
        reader = tidemark.nbd_uri(nbd, "t")
        tidemark.io(reader, "read -P 1 0 64k", fmt="raw", options=["-r"])
        guest.join()

    def test_the_target_of_a_backup_is_put_onto_another_image(self):
        self.create("other", SIZE)
        server = self.start("base", "top")
        self.create("other", SIZE)
        server.qmp.command(
            "blockdev-add",
            driver="qcow2",
            node_name="other",
            file={"driver": "file", "filename": self.path("other")},
        )
        for _ in range(12):
            server.qmp.command(
                "blockdev-backup", job_id="j", device="base", target="top", sync="none"
            )
            for backing in "other", "base":
                time.sleep(0.02)
                server.qmp.command(
                    "blockdev-reopen",
                    options=[
                        {
                            "driver": "qcow2",
                            "node-name": "top",
                            "file": "top-file",
                            "backing": backing,
                        }
                    ],
                )
                if backing == "other":
                    server.qmp.command("job-cancel", id="j")
                    server.qmp.wait_event("BLOCK_JOB_CANCELLED")
        self.assertTrue(server.is_running())


if __name__ == "__main__":
    unittest.main()
