# SPDX-License-Identifier: Apache-2.0
"""What has gone wrong elsewhere where jobs meet others: monitors that look, siblings of a group,
guests that write headers, discards, and commands that stop a disk.
"""

import threading
import time
import unittest

import tidemark
from chain_case import ChainCase
from mirror_case import MirrorCase
from test_qmp_backup import Guest
from test_qmp_jobs import SIZE, SLOW, JobCase

MIB = 1 << 20


class Looker(threading.Thread):
    """A monitor that asks for the graph again and again."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.qmp = server.connect(timeout=20)
        self.halt = threading.Event()
        self.failure = None
        self.filters = set()
        self.start()

    def run(self):
        try:
            while not self.halt.is_set():
                for node in self.qmp.command("query-named-block-nodes"):
                    self.filters.add(node["drv"])
                self.qmp.command("query-blockstats", query_nodes=True)
                self.qmp.command("x-debug-query-block-graph")
                self.qmp.command("query-block-jobs")
        except Exception as e:  # the test looks at it
            self.failure = e

    def stop(self):
        self.halt.set()
        self.join(20)
        self.qmp.close()
        if self.failure:
            raise self.failure


class Monitors(ChainCase):
    def test_the_graph_is_listed_while_filters_come_and_go(self):
        self.make_chain(*((2, 65536),) * 3)
        self.create("t.qcow2", "2M")
        self.start()
        self.qmp.command("blockdev-add", driver="qcow2", node_name="t",
                         file={"driver": "file", "filename": self.path("t.qcow2")})  # fmt: skip
        looker = Looker(self.server)
        for n in range(12):
            self.qmp.command("blockdev-backup", job_id="job", device="c", target="t", sync="full")
            self.events("job")
            self.qmp.command("blockdev-mirror", job_id="job", device="c", target="t", sync="full")
            self.events("job", "READY")
            self.qmp.command("job-cancel" if n % 2 else "block-job-cancel",
                             **({"id": "job"} if n % 2 else {"device": "job"}))  # fmt: skip
            self.events("job")
            self.qmp.command("block-commit", job_id="job", device="c")
            self.events("job", "READY")
            self.qmp.command("job-cancel", id="job")
            self.events("job")
        self.qmp.command("block-stream", job_id="job", device="c", base_node="a")
        self.events("job")
        looker.stop()
        self.assertLessEqual({"copy-before-write", "mirror_top"}, looker.filters)
        self.assertTrue(self.server.is_running())
        self.server.stop()
        self.assert_disk()


class Siblings(JobCase):
    def test_a_job_that_waits_for_others_still_has_its_moment(self):
        """Until it takes effect, what a guest overwrites goes to its target first."""
        socket = self.path("nbd")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": socket}})
        self.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="a", name="e", writable=True
        )
        self.group()
        self.wait("waiting")
        guest = Guest(socket, b"e")
        self.addCleanup(guest.close)
        self.assertEqual(guest.write(0, b"\1" * MIB), 0)
        self.assertEqual(guest.zero(MIB, MIB), 0)
        self.qmp.command("block-job-set-speed", device="k", speed=0)
        self.wait("null", "k")
        self.server.quit()
        tidemark.io(self.images["ta"], f"read -P 7 0 {SIZE}", fmt="qcow2")
        tidemark.io(self.images["a"], "read -P 1 0 1M", "read -P 0 1M 1M", fmt="qcow2")

    def test_a_disk_is_stopped_for_others_while_a_slow_job_runs(self):
        """A drain lasts as long as the requests in flight, not as long as the job."""
        self.create("over.qcow2", SIZE)
        self.backup("j", "a", speed=SLOW)
        self.mirror("k", "b", speed=SLOW)
        began = time.monotonic()
        for name in "one", "two", "three":
            for disk in "ab":
                self.qmp.command("block-dirty-bitmap-add", node=disk, name=name)
                self.qmp.command(
                    "block-dirty-bitmap-merge", node=disk, target=name, bitmaps=["x"]
                )
        self.qmp.command("blockdev-add", driver="qcow2", node_name="over", backing=None,
                         file={"driver": "file", "filename": self.path("over.qcow2")})  # fmt: skip
        self.assertLess(time.monotonic() - began, 10)  # each job takes 64 s
        self.assertEqual([self.status(job) for job in "jk"], ["running"] * 2)
        self.assertEqual([e for e in self.events() if e in ("paused", "standby")][1:], [])


class Headers(MirrorCase):
    """A guest writes into its raw disk what looks like an image that shows another file."""

    source_format = target_format = "raw"
    size = 4 * MIB

    def setUp(self):
        super().setUp()
        secret, trap = self.path("secret"), self.path("trap")
        with open(secret, "wb") as f:
            f.write(b"secret" * 1000)
        tidemark.img("create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", trap, "4M")
        with open(trap, "rb") as f:
            self.header = f.read(65536)
        self.start(fill=False)
        self.model[: len(self.header)] = self.header
        with open(self.path("header"), "wb") as f:
            f.write(self.header)
        tidemark.io(tidemark.nbd_uri(self.nbd, "disk"),
                    f"write -s {self.path('header')} 0 65536", fmt="raw")  # fmt: skip

    def assert_raw(self, path):
        with open(path, "rb") as f:
            self.assert_same(f.read(), bytes(self.model))

    def drivers(self):
        return {n["drv"] for n in self.qmp.command("query-named-block-nodes", flat=True)}

    def test_after_a_pivot_the_disk_is_what_it_was(self):
        self.mirror()
        self.wait_ready()
        self.complete()
        self.assertEqual(self.exported_node(), "t")
        self.assertEqual(self.drivers(), {"raw", "file"})
        self.assert_target_is(self.model)

    def copy_onto(self, path, **more):
        """By a mirror, then by a backup. What they end with."""
        named = {"job_id": "j", "device": "s", "target": path, "mode": "existing", **more}
        self.qmp.command("drive-mirror", sync="full", **named)

        def is_settled():
            job = self.job()
            return job is None or job["ready"]

        tidemark.wait_until(is_settled, "the end of the mirror")
        self.assertLessEqual(self.drivers(), {"raw", "file", "mirror_top"})
        self.qmp.execute("block-job-cancel", {"device": "j"})
        yield self.wait_end().get("error")
        self.qmp.command("drive-backup", sync="full", **named)
        yield self.wait_end().get("error")

    def test_a_target_whose_format_was_guessed_gets_no_header(self):
        path = self.make("existing")
        refused = "Operation not permitted"
        self.assertEqual(list(self.copy_onto(path)), [refused] * 2)
        with open(path, "rb") as f:
            self.assertEqual(f.read(4), bytes(4))

    def test_a_format_that_is_given_holds_whatever_the_file_has(self):
        """Also for the next job, which finds there what the first has copied."""
        path = self.make("existing")
        for _ in range(2):
            for error in self.copy_onto(path, format="raw"):
                self.assertIsNone(error)
                self.assert_raw(path)


class Discards(ChainCase):
    def commit_and_compare(self, **more):
        for image in "bc":
            tidemark.io(self.path(image + ".qcow2"), "discard 0 256k", "write -z 1M 128k", fmt="qcow2")
        self.disk[: 256 << 10] = bytes(256 << 10)
        self.disk[MIB : MIB + (128 << 10)] = bytes(128 << 10)
        self.start()
        self.qmp.command("block-commit", job_id="job", device="c", **more)

    def test_what_was_discarded_in_an_image_between(self):
        self.make_chain(*((4, 65536),) * 3)
        self.commit_and_compare(top_node="b", base_node="a")
        self.events("job")
        self.server.stop()
        self.assert_disk()

    def test_what_was_discarded_in_the_active_image(self):
        self.make_chain(*((4, 65536),) * 3)
        self.commit_and_compare()
        self.events("job", "READY")
        self.qmp.command("job-complete", id="job")
        self.events("job")
        self.server.stop()
        self.assert_disk("a")


if __name__ == "__main__":
    unittest.main()
