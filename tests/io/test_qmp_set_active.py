# SPDX-License-Identifier: Apache-2.0
"""blockdev-set-active: an image goes from one daemon to another and back, as in a migration."""

import hashlib
import os

import tidemark
from qmp import QmpError

MIB = 1 << 20


def digest(path):
    with open(path, "rb") as image:
        return hashlib.sha256(image.read()).hexdigest()


class ActiveCase(tidemark.TestCase):
    """Two daemons, "here" and "there", with servers; disks are opened by disk()."""

    def setUp(self):
        super().setUp()
        self.here = self.start("here")
        self.there = self.start("there")

    def start(self, name):
        server = self.daemon(name=name)
        server.nbd = self.path(name + ".nbd")
        server.qmp.command(
            "nbd-server-start", addr={"type": "unix", "data": {"path": server.nbd}}
        )
        return server

    def disk(self, server, path, fmt="qcow2", **more):
        server.qmp.command(
            "blockdev-add",
            driver=fmt,
            node_name="disk",
            file={"driver": "file", "node-name": "file", "filename": path},
            **more,
        )

    def refused(self, server, wanted, command, /, **arguments):
        with self.assertRaises(QmpError) as caught:
            server.qmp.command(command, **arguments)
        self.assertEqual(caught.exception.desc, wanted)

    def set_active(self, server, active, node="disk"):
        server.qmp.command("blockdev-set-active", node_name=node, active=active)

    def active(self, server, node="disk"):
        return server.qmp.node(node)["active"]

    def export(self, server, **more):
        server.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="disk", writable=True, **more
        )

    def unexport(self, server):
        server.qmp.command("block-export-del", id="e", mode="hard")
        server.qmp.wait_event("BLOCK_EXPORT_DELETED")

    def io(self, server, *commands, **more):
        return tidemark.io(tidemark.nbd_uri(server.nbd, "disk"), *commands, fmt="raw", **more)


class Turns(ActiveCase):
    def test_a_filename_does_not_say_who_is_active(self):
        path = self.path("disk.raw")
        with open(path, "wb") as image:
            image.truncate(MIB)
        self.disk(self.here, path, "raw", offset=512, active=False)
        file = self.here.qmp.node("disk")["file"]
        self.assertIn('"offset": 512', file)
        self.assertNotIn("active", file)

    def test_an_image_goes_there_and_back_with_its_bitmap(self):
        image = self.create("disk.qcow2", "16M")
        self.disk(self.here, image)
        self.here.qmp.command("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
        self.here.qmp.command("block-dirty-bitmap-add", node="disk", name="memory")
        self.export(self.here, **{"allow-inactive": True})
        self.io(self.here, "write -P 1 0 1M")
        self.disk(self.there, image, active=False)
        self.assertFalse(self.active(self.there))
        self.assertFalse(self.active(self.there, "file"))

        self.set_active(self.here, False)
        self.assertFalse(self.active(self.here))
        self.assertFalse(self.active(self.here, "file"))
        self.set_active(self.there, True)
        self.assertTrue(self.active(self.there, "file"))
        self.export(self.there)
        self.assertEqual(self.there.qmp.bitmaps("disk")["b"]["count"], MIB)
        self.io(self.there, "read -P 1 0 1M", "write -P 2 4M 1M")
        self.unexport(self.there)
        self.there.qmp.command("block_resize", node_name="disk", size=32 * MIB)
        self.set_active(self.there, False)

        self.set_active(self.here, True)
        self.assertEqual(self.here.qmp.node("disk")["image"]["virtual-size"], 32 * MIB)
        bitmaps = self.here.qmp.bitmaps("disk")
        self.assertEqual(bitmaps["b"]["count"], 2 * MIB)
        self.assertTrue(bitmaps["b"]["recording"])
        # It could not record what was written there.
        self.assertEqual(bitmaps["memory"]["count"], 32 * MIB)
        self.io(self.here, "read -P 1 0 1M", "read -P 2 4M 1M", "write -P 3 31M 1M")
        self.assertEqual(self.here.qmp.bitmaps("disk")["b"]["count"], 3 * MIB)
        self.here.quit()
        self.there.quit()
        tidemark.img("check", "-q", "-f", "qcow2", image)
        tidemark.io(image, "read -P 2 4M 1M", "read -P 3 31M 1M", fmt="qcow2")
        self.assertNotIn("in-use", tidemark.img("info", "-f", "qcow2", image).stdout)

    def test_many_turns(self):
        image = self.create("disk.qcow2", "4M")
        self.disk(self.here, image)
        self.disk(self.there, image, active=False)
        for server in self.here, self.there:
            self.export(server, **{"allow-inactive": True})
        servers = [self.here, self.there]
        for i in range(16):
            self.io(servers[0], f"write -P {i + 1} {i * 128}k 128k")
            self.set_active(servers[0], False)
            self.set_active(servers[1], True)
            servers.reverse()
            self.io(servers[0], *(f"read -P {j + 1} {j * 128}k 128k" for j in range(i + 1)))
        self.here.quit()
        self.there.quit()
        tidemark.img("check", "-q", "-f", "qcow2", image)

    def test_a_raw_file_that_grows(self):
        image = self.create("disk.raw", "1M", fmt="raw")
        self.disk(self.here, image, "raw")
        self.set_active(self.here, False)
        os.truncate(image, 3 * MIB)
        self.set_active(self.here, True)
        self.assertEqual(self.here.qmp.node("disk")["image"]["virtual-size"], 3 * MIB)
        self.assertEqual(self.here.qmp.node("file")["image"]["virtual-size"], 3 * MIB)

    def test_the_size_of_a_disk_that_is_only_read_is_kept_in_turns(self):
        image = self.create("disk.raw", "1M", fmt="raw")
        for server, writable in (self.here, False), (self.there, True):
            self.disk(server, image, "raw")
            server.qmp.command("block-export-add", type="nbd", id="e", node_name="disk",
                               writable=writable, **{"allow-inactive": True})  # fmt: skip
        resize = {"node-name": "disk", "size": 2 * MIB}
        self.refused(self.there, 'Failed to get "resize" lock', "block_resize", **resize)
        self.set_active(self.here, False)
        self.there.qmp.command("block_resize", **resize)
        self.set_active(self.here, True)
        resize["size"] = 3 * MIB
        self.refused(self.there, 'Failed to get "resize" lock', "block_resize", **resize)

    def test_an_inactive_image_is_not_written(self):
        image = self.create("disk.qcow2", "16M")
        tidemark.img("bitmap", "-f", "qcow2", "--add", image, "b")
        self.disk(self.here, image)
        self.export(self.here, **{"allow-inactive": True})
        self.io(self.here, "write 0 64k")
        self.set_active(self.here, False)
        before = digest(image)
        for command in "write 1M 64k", "write -z 0 64k", "discard 0 64k":
            said = self.io(self.here, command, check=False)
            self.assertIn("Operation not permitted", said.stdout + said.stderr)
        self.io(self.here, "read 0 64k", "flush")
        for command, arguments in (
            ("block-dirty-bitmap-add", {"node": "disk", "name": "c", "persistent": True}),
            ("block-dirty-bitmap-remove", {"node": "disk", "name": "b"}),
            ("block-dirty-bitmap-clear", {"node": "disk", "name": "b"}),
            ("block_resize", {"node-name": "disk", "size": MIB}),
            ("blockdev-snapshot-internal-sync", {"device": "disk", "name": "s"}),
            ("blockdev-reopen", {"options": [{"driver": "qcow2", "node-name": "disk", "file": "file"}]}),
            ("change-backing-file", {"device": "disk", "image-node-name": "disk", "backing-file": "x"}),
        ):
            answer = self.here.qmp.execute(command, arguments)
            self.assertIn("error", answer, command)
            self.assertEqual(digest(image), before, command)
        self.here.quit()
        self.assertEqual(digest(image), before)

    def test_the_command_line_opens_inactive_nodes(self):
        image = self.create("disk.qcow2", "16M")
        other = self.daemon(
            "--blockdev", f"driver=file,node-name=file,filename={image},active=off",
            "--blockdev", "driver=qcow2,node-name=disk,file=file,active=off",
            name="other",
        )
        self.disk(self.here, image)
        self.assertFalse(self.active(other))
        self.assertTrue(self.active(self.here))


class Refusals(ActiveCase):
    NOT_PERMITTED = "Failed to inactivate node: Operation not permitted"

    def test_no_such_node(self):
        for active in True, False:
            self.refused(
                self.here, "Failed to find node with node-name='none'",
                "blockdev-set-active", node_name="none", active=active,
            )  # fmt: skip

    def test_the_image_is_still_locked_by_the_other(self):
        image = self.create("disk.qcow2", "16M")
        self.disk(self.here, image)
        self.disk(self.there, image, active=False)
        with self.assertRaises(QmpError) as caught:
            self.set_active(self.there, True)
        self.assertIn("lock", caught.exception.desc)
        self.assertFalse(self.active(self.there))
        self.assertFalse(self.active(self.there, "file"))
        self.set_active(self.here, False)
        self.set_active(self.there, True)
        self.assertTrue(self.active(self.there))

    def test_an_image_that_was_damaged_meanwhile(self):
        image = self.create("disk.qcow2", "16M")
        self.disk(self.here, image)
        self.export(self.here, **{"allow-inactive": True})
        self.io(self.here, "write -P 5 0 64k")
        self.set_active(self.here, False)
        with open(image, "r+b") as file:
            magic = file.read(4)
            file.seek(0)
            file.write(b"oops")
        with self.assertRaises(QmpError):
            self.set_active(self.here, True)
        self.assertFalse(self.active(self.here))
        self.io(self.here, "read -P 5 0 64k")
        with open(image, "r+b") as file:
            file.write(magic)
        self.set_active(self.here, True)
        self.io(self.here, "read -P 5 0 64k", "write -P 6 0 64k", "read -P 6 0 64k")

    def test_users_that_do_not_allow_it(self):
        image = self.create("disk.qcow2", "16M")
        self.disk(self.here, image)
        self.export(self.here)
        self.refused(
            self.here, self.NOT_PERMITTED, "blockdev-set-active", node_name="disk", active=False
        )
        self.refused(self.here, self.NOT_PERMITTED, "blockdev-set-active", active=False)
        self.io(self.here, "write 0 64k")
        self.unexport(self.here)
        self.here.qmp.command(
            "blockdev-add", driver="null-co", node_name="target", size=16 * MIB
        )
        self.here.qmp.command(
            "blockdev-mirror", job_id="j", device="disk", target="target", sync="full"
        )
        with self.assertRaises(QmpError):
            self.set_active(self.here, False)
        self.here.qmp.wait_event("BLOCK_JOB_READY")
        with self.assertRaises(QmpError):
            self.set_active(self.here, False)
        self.assertTrue(self.active(self.here))
        self.here.qmp.command("block-job-cancel", device="j", force=True)
        self.here.qmp.wait_event("BLOCK_JOB_CANCELLED")
        tidemark.wait_until(lambda: not self.here.qmp.command("query-jobs"), "the end of the job")
        self.set_active(self.here, False)

    def test_a_bitmap_that_is_exported(self):
        image = self.create("disk.qcow2", "16M")
        tidemark.img("bitmap", "-f", "qcow2", "--add", "--disable", image, "b")
        self.disk(self.here, image)
        self.here.qmp.command(
            "block-export-add", type="nbd", id="e", node_name="disk", bitmaps=["b"],
            **{"allow-inactive": True},
        )  # fmt: skip
        with self.assertRaises(QmpError):
            self.set_active(self.here, False)
        self.assertTrue(self.active(self.here))

    def test_the_state_of_all_nodes(self):
        self.disk(self.here, self.create("disk.qcow2", "16M"))
        self.here.qmp.command("blockdev-add", driver="raw", node_name="raw", file="disk")
        self.refused(
            self.here, "Node has active parent node",
            "blockdev-set-active", node_name="disk", active=False,
        )  # fmt: skip
        self.here.qmp.command("blockdev-set-active", active=False)
        for node in "raw", "disk", "file":
            self.assertFalse(self.active(self.here, node))
        self.set_active(self.here, True, "disk")
        self.assertFalse(self.active(self.here, "raw"))
        self.assertTrue(self.active(self.here, "file"))
        self.here.qmp.command("blockdev-set-active", active=True)
        self.assertTrue(self.active(self.here, "raw"))
        self.here.qmp.command("blockdev-set-active", active=True)

    def test_a_backing_file_stays_active_for_another_disk(self):
        base = self.create("base.qcow2", "16M")
        for name in "one", "two":
            tidemark.img(
                "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", self.path(name), "16M"
            )
        command = self.here.qmp.command
        command(
            "blockdev-add", driver="qcow2", node_name="base", read_only=True,
            file={"driver": "file", "filename": base},
        )  # fmt: skip
        for name in "one", "two":
            command(
                "blockdev-add", driver="qcow2", node_name=name, backing="base",
                file={"driver": "file", "filename": self.path(name)},
            )  # fmt: skip
        self.set_active(self.here, False, "one")
        self.assertTrue(self.active(self.here, "base"))
        self.set_active(self.here, False, "two")
        self.assertFalse(self.active(self.here, "base"))
        self.set_active(self.here, True, "one")
        self.assertTrue(self.active(self.here, "base"))
        self.assertFalse(self.active(self.here, "two"))

    def test_a_failed_transaction_hands_the_node_back(self):
        self.disk(self.here, self.create("disk.qcow2", "16M"), active=False)
        export = {"type": "nbd", "id": "e", "node-name": "disk", "writable": True}
        with self.assertRaises(QmpError):
            self.here.qmp.transaction(("block-export-add", export), ("abort", {}))
        self.assertFalse(self.active(self.here))
        self.assertEqual(self.here.qmp.command("query-block-exports"), [])
        self.here.qmp.transaction(("block-export-add", export))
        self.assertTrue(self.active(self.here))
        self.io(self.here, "write 0 64k")

    def test_a_failed_snapshot_leaves_the_overlay_active(self):
        self.disk(self.here, self.create("disk.qcow2", "16M"), active=False)
        over = self.create("over.qcow2", "16M")
        self.here.qmp.command(
            "blockdev-add", driver="qcow2", node_name="over", backing=None,
            file={"driver": "file", "filename": over},
        )  # fmt: skip
        snapshot = {"node": "disk", "overlay": "over"}
        with self.assertRaises(QmpError):
            self.here.qmp.transaction(("blockdev-snapshot", snapshot), ("abort", {}))
        self.assertTrue(self.active(self.here, "over"))
        self.here.qmp.command("blockdev-snapshot", **snapshot)
        self.assertFalse(self.active(self.here, "over"))
        self.set_active(self.here, True, "over")
        self.assertTrue(self.active(self.here))


class Hung(ActiveCase):
    def test_a_disk_that_hangs_delays_no_other_command(self):
        self.here.qmp.command(
            "blockdev-add",
            driver="null-co", node_name="slow", size=MIB, **{"latency-ns": 3 * 10**9},
        )  # fmt: skip
        self.here.qmp.command(
            "block-export-add", type="nbd", id="s", node_name="slow", writable=True,
            **{"allow-inactive": True},
        )  # fmt: skip
        guest = tidemark.Process(
            [*tidemark.tool("io"), "-f", "raw", "-c", "write 0 4k",
             tidemark.nbd_uri(self.here.nbd, "slow")],
            self.path("guest.log"),
        )  # fmt: skip
        self.own(guest)
        stats = {"query-nodes": True}
        tidemark.wait_until(self.in_flight, "the request", 10)
        with self.here.connect() as other:
            self.here.qmp.send_raw(
                '{"execute": "blockdev-set-active", "arguments": {"active": false}}\n'
            )
            other.command("query-named-block-nodes")
            other.command("query-blockstats", **stats)
            self.assertTrue(guest.is_running())
        self.assertEqual(self.here.qmp.receive_answer(), {"return": {}})
        self.assertFalse(self.active(self.here, "slow"))

    def in_flight(self):
        for o in self.here.qmp.command("x-tidemark-query-stats", target="node"):
            if o["labels"].get("node") == "slow":
                return o["stats"]["in-flight"]
        return 0
