# SPDX-License-Identifier: Apache-2.0
"""Commands of two monitors that meet: the end of a job, and what drains or changes its nodes."""

import json
import time
import unittest

import tidemark
from guest import Guest

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
