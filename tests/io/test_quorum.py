# SPDX-License-Identifier: Apache-2.0
"""The driver quorum: several children of the same contents, of which some fail or say something
else.
"""

import json
import signal

import tidemark
from nbd_raw import RawClient
from nbd_server import Nbdkit

READ, WRITE = 0, 1


class QuorumTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.children = [self.create(f"{i}.raw", "1M", fmt="raw") for i in range(3)]

    def child(self, i, *errors):
        """Options of a child, whose operations `errors` ("write") fail."""
        file = {"driver": "file", "filename": self.children[i]}
        if not errors:
            return file
        rules = [{"event": "none", "iotype": kind, "errno": 28} for kind in errors]
        return {"driver": "blkdebug", "image": file, "inject-error": rules}

    def options(self, children=None, threshold=2, **more):
        return {
            "driver": "quorum",
            "vote-threshold": threshold,
            "children": children or [self.child(i) for i in range(3)],
            **{name.replace("_", "-"): value for name, value in more.items()},
        }

    def through(self, options, *commands, check=True):
        words = [word for command in commands for word in ("-c", command)]
        name = "json:" + json.dumps(options)
        return tidemark.run(*tidemark.tool("io"), *words, name, check=check)

    def failing(self, options, *commands):
        """What it prints, one way or the other."""
        result = self.through(options, *commands, check=False)
        self.assertEqual(result.returncode, 1)
        return result.stdout + result.stderr

    def write_child(self, i, pattern, area="0 64k"):
        tidemark.io(self.children[i], f"write -P {pattern} {area}", fmt="raw")

    def read_child(self, i, pattern, area="0 64k"):
        tidemark.io(self.children[i], f"read -P {pattern} {area}", fmt="raw")

    # All well.

    def test_children_without_a_driver(self):
        """Their formats are guessed, as that of an image is; raw ones keep their first sector."""
        qcow2 = self.create("q.qcow2", "1M")
        tidemark.io(qcow2, "write -P 5 0 64k", fmt="qcow2")
        for path in self.children[:2]:
            tidemark.io(path, "write -P 5 0 64k", fmt="raw")
        names = [qcow2, *self.children[:2]]
        options = ",".join(
            ["driver=quorum,vote-threshold=3"]
            + [f"children.{i}.file.filename={name}" for i, name in enumerate(names)]
        )
        out = tidemark.run(
            *tidemark.tool("io"), "--image-opts", "-r", "-c", "read -P 5 0 64k", options
        ).stdout
        self.assertIn("read 65536/65536", out)
        result = tidemark.run(
            tidemark.compat("qemu-io"), "--image-opts", "-c", "write -P 6 64k 64k", options
        )
        self.assertIn("wrote 65536/65536", result.stdout)
        tidemark.io(qcow2, "read -P 6 64k 64k", fmt="qcow2")

    def test_a_write_goes_to_all(self):
        self.through(self.options(), "write -P 5 4k 60k", "write -z 8k 4k", "flush")
        for i in range(3):
            self.read_child(i, 5, "4k 4k")
            self.read_child(i, 0, "8k 4k")
            self.read_child(i, 5, "12k 52k")

    def test_zeroes_reach_a_child_that_is_slow_at_them(self):
        for i in range(3):
            self.write_child(i, 7, "0 1M")
        server = self.own(Nbdkit(self.dir, "--filter=nozero", "file", self.children[2], "zeromode=none"))
        nbd = {"driver": "nbd", "server": {"type": "unix", "path": server.socket}}
        options = self.options([self.child(0), self.child(1), nbd])
        empty = self.create("empty.raw", "1M", fmt="raw")
        target = "json:" + json.dumps(options)
        tidemark.img("convert", "-n", "-f", "raw", "-O", "quorum", empty, target)
        server.stop()
        for i in range(3):
            self.read_child(i, 0, "0 1M")

    # Children that say something else.

    def test_the_majority_is_believed_wherever_it_is(self):
        for liar in range(3):
            for i in range(3):
                self.write_child(i, 9 if i == liar else 5)
            self.through(self.options(), "read -P 5 0 64k", "read -P 5 100 5000")
            self.read_child(liar, 9)

    def test_without_a_majority_a_read_fails(self):
        for i in range(3):
            self.write_child(i, i)
        for threshold in 2, 3:
            output = self.failing(self.options(threshold=threshold), "read 0 4k")
            self.assertIn("read failed: Input/output error", output)

    def test_the_threshold_is_kept(self):
        self.write_child(0, 9)
        output = self.failing(self.options(threshold=3), "read 0 4k")
        self.assertIn("read failed: Input/output error", output)

    def test_who_is_wrong_is_put_right_when_asked(self):
        for i in range(3):
            self.write_child(i, 9 if i == 1 else 5)
        self.through(self.options(rewrite_corrupted=True), "read -P 5 0 64k")
        self.read_child(1, 5)

    def test_blkverify_prints_where_two_differ(self):
        self.write_child(1, 9, "8k 1k")
        options = self.options([self.child(0), self.child(1)], blkverify=True)
        output = self.failing(options, "read 4k 8k", "read 0 1k")
        self.assertEqual("quorum: offset=4096 bytes=8192 contents mismatch at offset 8192\n", output)
        self.through(options, "write -P 3 8k 1k", "read -P 3 8k 1k")

    def test_children_without_a_driver(self):
        self.write_child(0, 5)
        children = [{"file": {"driver": "file", "filename": self.child(0)["filename"]}}]
        options = self.options(children, threshold=1)
        name = "json:" + json.dumps(options)
        tidemark.run(*tidemark.tool("io"), "-r", "-c", "read -P 5 0 64k", name)
        self.assertIn("it is not guessed", self.failing(options, "write 0 512"))

    # Children that fail.

    def test_one_that_can_not_be_read_is_outvoted(self):
        for i in range(3):
            self.write_child(i, 5)
        children = [self.child(0, "read"), self.child(1), self.child(2)]
        self.through(self.options(children), "read -P 5 0 64k")
        output = self.failing(self.options(children, threshold=3), "read 0 4k")
        self.assertIn("read failed: No space left on device", output)

    def test_writes_need_the_threshold(self):
        children = [self.child(0), self.child(1, "write"), self.child(2)]
        self.through(self.options(children), "write -P 7 0 64k", "read -P 7 0 64k")
        self.read_child(0, 7)
        self.read_child(2, 7)
        children[2] = self.child(2, "write")
        output = self.failing(self.options(children), "write 0 4k")
        self.assertIn("write failed: No space left on device", output)

    def test_flushes_need_the_threshold(self):
        failing = [self.child(i, "flush") for i in range(3)]
        self.through(self.options([self.child(0), failing[1], self.child(2)]), "write 0 4k", "flush")
        output = self.failing(
            self.options([self.child(0), failing[1], failing[2]]), "write 0 4k", "flush"
        )
        self.assertIn("No space left on device", output)

    def test_fifo_reads_the_first_that_does_not_fail(self):
        for i in range(3):
            self.write_child(i, i)
        self.through(self.options(read_pattern="fifo"), "read -P 0 0 64k")
        children = [self.child(0, "read"), self.child(1), self.child(2)]
        self.through(self.options(children, read_pattern="fifo"), "read -P 1 0 64k")
        children = [self.child(i, "read") for i in range(3)]
        output = self.failing(self.options(children, read_pattern="fifo"), "read 0 4k")
        self.assertIn("read failed", output)

    def first_child_is_written(self):
        with open(self.children[0], "rb") as file:
            return file.read(1) == b"w"

    # A write that has come to one child, and not yet to the other.

    def test_a_read_beside_a_write_is_no_quarrel(self):
        slow = self.own(
            Nbdkit(self.dir, "--filter=delay", "file", self.children[1], "wdelay=1")
        )
        path = self.path("nbd")
        children = [
            self.child(0),
            {"driver": "nbd", "server": {"type": "unix", "path": slow.socket}},
        ]
        server = self.daemon(
            "--blockdev",
            json.dumps({**self.options(children), "node-name": "disk"}),
            "--nbd-server",
            f"addr.type=unix,addr.path={path}",
            "--export",
            "type=nbd,id=e,node-name=disk,writable=on",
        )
        with RawClient(path) as writer, RawClient(path) as reader:
            for client in writer, reader:
                client.go(b"disk", structured=False)
            writer.request(WRITE, 0, 4096, payload=b"w" * 4096)
            tidemark.wait_until(self.first_child_is_written, "the write of the fast child")
            reader.request(READ, 0, 4096)
            self.assertEqual(reader.simple_reply(), (1, 0))
            self.assertEqual(reader.receive(4096), b"w" * 4096)
            self.assertEqual(writer.simple_reply(), (1, 0))
        server.qmp.command("query-block-exports")
        self.assertNotIn("QUORUM", str(server.qmp.events))

    def test_a_commit_into_one_needs_no_child_that_cannot_be_read(self):
        """The job asks the storage of its base whether it answers, before its last step."""
        base = self.options([self.child(0), self.child(1, "read"), self.child(2)])
        overlays = [
            {
                "driver": "qcow2", "node-name": name, "backing": below,
                "file": {"driver": "file", "filename": self.create(name, "1M", fmt="qcow2")},
            }
            for name, below in (("middle", "base"), ("top", "middle"))
        ]  # fmt: skip
        tidemark.io(overlays[0]["file"]["filename"], "write -P 5 64k 64k", fmt="qcow2")
        nodes = [{**base, "node-name": "base"}, *overlays]
        server = self.daemon(*[w for node in nodes for w in ("--blockdev", json.dumps(node))])
        server.qmp.command("block-commit", job_id="job", device="top", top_node="middle", base_node="base")
        self.assertNotIn("error", server.qmp.wait_event("BLOCK_JOB_COMPLETED")["data"])
        server.quit()
        self.read_child(0, 5, "64k 64k")
        self.read_child(2, 5, "64k 64k")

    def test_a_child_that_hangs_can_be_cut(self):
        far, path = self.own(Nbdkit(self.dir, "file", self.children[2])), self.path("nbd")
        nbd = {"driver": "nbd", "node-name": "far", "server": {"type": "unix", "path": far.socket}}
        options = {**self.options([self.child(0), self.child(1), nbd]), "node-name": "disk"}
        server = self.daemon(
            "--blockdev", json.dumps(options),
            "--nbd-server", f"addr.type=unix,addr.path={path}",
            "--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on",
        )  # fmt: skip
        self.addCleanup(far.process.send_signal, signal.SIGCONT)
        tidemark.freeze(far.pid)
        with RawClient(path) as client:
            client.go(b"disk", structured=False)
            client.request(WRITE, 4096, 4096, payload=b"w" * 4096)
            client.sock.settimeout(0.5)
            self.assertRaises(TimeoutError, client.simple_reply)
            client.sock.settimeout(20)
            server.qmp.command("yank", instances=[{"type": "block-node", "node-name": "far"}])
            self.assertEqual(client.simple_reply(), (1, 0))
            client.request(READ, 4096, 4096)
            self.assertEqual(client.simple_reply(), (1, 0))
            self.assertEqual(client.receive(4096), b"w" * 4096)
            server.qmp.command("x-blockdev-change", parent="disk", child="children.2")
            client.request(WRITE, 8192, 4096, payload=b"w" * 4096)
            self.assertEqual(client.simple_reply(), (1, 0))

    # What is known about it.

    def test_status_is_zero_only_where_all_children_say_so(self):
        self.write_child(0, 1, "64k 64k")
        self.write_child(1, 1, "64k 64k")
        self.write_child(2, 1, "256k 64k")
        name = "json:" + json.dumps(self.options())
        extents = json.loads(tidemark.img("map", "--output=json", name).stdout)
        self.assertEqual(
            [(e["start"], e["length"]) for e in extents if e["data"] and e["start"] > 0],
            [(64 << 10, 64 << 10), (256 << 10, 64 << 10)],
        )

    def test_refusals(self):
        two = [self.child(0), self.child(1)]
        longer = {"driver": "file", "filename": self.create("l.raw", "2M", fmt="raw")}
        for options, wanted in (
            (self.options(threshold=0), "Parameter 'vote-threshold' expects a value >= 1"),
            (self.options(threshold=4), "threshold may not exceed children count"),
            (self.options(blkverify=True), "blkverify=on can only be set if there are exactly two"),
            (
                self.options(two, blkverify=True, rewrite_corrupted=True),
                "rewrite-corrupted=on cannot be used with blkverify=on",
            ),
            (self.options([*two, longer]), "children of a quorum have to be of one size"),
            (self.options(read_pattern="x"), "'read-pattern' does not accept value 'x'"),
            ({"driver": "quorum", "vote-threshold": 1}, "Number of provided children must be 1"),
        ):
            with self.subTest(wanted):
                self.assertIn(wanted, self.failing(options, "read 0 512"))

    def test_monitors_are_told(self):
        path = self.path("nbd")
        children = [{**self.child(i), "node-name": f"child{i}"} for i in range(2)]
        children.append({**self.child(2, "write"), "node-name": "child2"})
        self.write_child(0, 5)
        self.write_child(1, 5)
        server = self.daemon(
            "--blockdev",
            json.dumps({**self.options(children), "node-name": "disk"}),
            "--nbd-server",
            f"addr.type=unix,addr.path={path}",
            "--export",
            "type=nbd,id=e,node-name=disk,writable=on",
        )
        uri = tidemark.nbd_uri(path, "disk")
        tidemark.io(uri, "read -P 5 1k 2k", fmt="raw")
        self.assertEqual(
            server.qmp.wait_event("QUORUM_REPORT_BAD")["data"],
            {"type": "read", "node-name": "child2", "sector-num": 2, "sectors-count": 4},
        )
        with open(self.children[0], "r+b") as file:
            file.seek(4096)
            file.write(b"x" * 512)
        self.assertNotEqual(tidemark.io(uri, "read 4k 512", fmt="raw", check=False).returncode, 0)
        self.assertEqual(
            server.qmp.wait_event("QUORUM_FAILURE")["data"],
            {"reference": "disk", "sector-num": 8, "sectors-count": 1},
        )
