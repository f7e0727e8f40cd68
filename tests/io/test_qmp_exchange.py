# SPDX-License-Identifier: Apache-2.0
"""blockdev-reopen with another image's file: each node reads the image that it gets."""

import json
import os
import signal

import tidemark
from qmp import QmpError

MIB = 1 << 20


class ExchangeTest(tidemark.TestCase):
    """`a` and `b` on the files `file-a` and `file-b`; `junk` is a file without an image."""

    def setUp(self):
        super().setUp()
        self.nbd = self.path("nbd.sock")
        self.start()

    def make(self, name, size="8M", options=()):
        return self.create(f"{name}.qcow2", size, options=options)

    def start(self, options_a=(), options_b=(), objects=(), more=None):
        self.image = {"a": self.make("a", options=options_a), "b": self.make("b", options=options_b)}
        self.create("junk.raw", "8M", "raw")
        self.server = self.daemon(*objects, "--nbd-server", f"addr.type=unix,addr.path={self.nbd}")
        self.qmp = self.server.qmp
        for name, file in (*self.image.items(), ("junk", self.path("junk.raw"))):
            self.add(driver="file", node_name=f"file-{name}", filename=file)
        for name in "a", "b":
            self.add(**self.node(name, name, **(more or {})))

    def add(self, **options):
        self.qmp.command("blockdev-add", **options)

    @staticmethod
    def node(name, file, **more):
        return {"driver": "qcow2", "node-name": name, "file": f"file-{file}", **more}

    def reopen(self, *options):
        self.qmp.command("blockdev-reopen", options=list(options))

    def exchange(self, **files):
        self.reopen(*(self.node(name, file) for name, file in files.items()))

    def refused(self, wanted, *options):
        before = self.state()
        with self.assertRaises(QmpError) as caught:
            self.reopen(*options)
        self.assertEqual(caught.exception.desc, wanted)
        self.assertEqual(self.state(), before)

    def state(self):
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        return {
            n["node-name"]: (n["file"], n["ro"], n["image"]["virtual-size"], n.get("dirty-bitmaps"))
            for n in nodes
            if n["drv"] == "qcow2"
        }

    def export(self, node):
        self.qmp.command(
            "block-export-add", type="nbd", id="e", node_name=node, name=node, writable=True
        )

    def unexport(self):
        self.qmp.command("block-export-del", id="e", mode="hard")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED")

    def io(self, node, *commands):
        """As a guest that comes and goes."""
        self.export(node)
        tidemark.io(tidemark.nbd_uri(self.nbd, node), *commands, fmt="raw")
        self.unexport()

    def check(self, **reads):
        for name, commands in reads.items():
            tidemark.qemu_img("check", self.image[name])
            tidemark.qemu_io(self.image[name], *commands, fmt="qcow2")

    def fill(self):
        """Different places of the images, so that tables of one lead to nothing in the other."""
        self.io("a", "write -P 0xa0 0 1M", "write -P 0xa1 4M 64k")
        self.io("b", "write -P 0xb0 2M 1M", "write -P 0xb1 0 64k")

    def test_guests_find_the_other_image(self):
        self.fill()
        self.exchange(a="b", b="a")
        self.io("a", "read -P 0xb0 2M 1M", "read -P 0xb1 0 64k", "write -P 0xb2 5M 1M")
        self.io("b", "read -P 0xa0 0 1M", "read -P 0xa1 4M 64k", "write -P 0xa2 6M 1M")
        self.assertEqual(self.qmp.node("a")["file"], self.image["b"])
        self.exchange(a="a", b="b")
        self.io("a", "read -P 0xa2 6M 1M", "write -P 0xa3 7M 64k")
        self.server.quit()
        self.check(
            a=("read -P 0xa0 0 1M", "read -P 0xa1 4M 64k", "read -P 0xa2 6M 1M", "read -P 0xa3 7M 64k"),
            b=("read -P 0xb1 0 64k", "read -P 0xb0 2M 1M", "read -P 0xb2 5M 1M", "read -P 0 6M 2M"),
        )

    def test_a_kill_after_an_exchange(self):
        self.fill()
        self.exchange(a="b", b="a")
        for node, pattern in ("a", 0xB2), ("b", 0xA2):
            self.io(node, f"write -P {pattern} 5M 1M", "flush")
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()
        for name in self.image:
            tidemark.img("check", "-r", "leaks", self.image[name], check=False)
        self.check(
            a=("read -P 0xa0 0 1M", "read -P 0xa1 4M 64k", "read -P 0xa2 5M 1M"),
            b=("read -P 0xb1 0 64k", "read -P 0xb0 2M 1M", "read -P 0xb2 5M 1M"),
        )

    def test_a_failure_changes_nothing(self):
        """Whichever of the two has read its image already."""
        self.fill()
        for name, other in ("a", "b"), ("b", "a"):
            for options in (
                [self.node(name, "junk"), self.node(other, name)],
                [self.node(other, name), self.node(name, "junk")],
            ):
                self.refused(
                    f"Node '{name}' can't have the image of 'file-junk': Image is not in qcow2 format",
                    *options,
                )
        self.io("a", "read -P 0xa0 0 1M", "write -P 0xa2 6M 64k")
        self.io("b", "read -P 0xb0 2M 1M", "write -P 0xb2 6M 64k")
        self.server.quit()
        self.check(
            a=("read -P 0xa1 4M 64k", "read -P 0xa2 6M 64k"),
            b=("read -P 0xb1 0 64k", "read -P 0xb2 6M 64k"),
        )

    def test_one_file_has_one_node(self):
        for name, other in ("a", "b"), ("b", "a"):
            with self.assertRaises(QmpError) as caught:
                self.reopen(self.node(name, other))
            self.assertIn(f"Permission conflict on node 'file-{other}'", caught.exception.desc)

    def test_bitmaps_go_with_their_image(self):
        self.qmp.command("block-dirty-bitmap-add", node="a", name="stored", persistent=True)
        self.qmp.command("block-dirty-bitmap-add", node="b", name="other", persistent=True)
        self.qmp.command("block-dirty-bitmap-add", node="b", name="memory")
        self.fill()
        self.exchange(a="b", b="a")
        count = {n: {b: v["count"] for b, v in self.qmp.bitmaps(n).items()} for n in self.image}
        # What records in memory has not seen what the other image has.
        self.assertEqual(
            count,
            {
                "a": {"other": MIB + 65536},
                "b": {"stored": MIB + 65536, "memory": 8 * MIB},
            },
        )
        self.io("b", "write 6M 64k")
        self.server.quit()
        self.assertEqual(self.stored("a"), ["stored"])
        self.assertEqual(self.stored("b"), ["other"])
        self.check(a=(), b=())

    def stored(self, name):
        info = tidemark.qemu_img("info", "--output=json", self.image[name]).stdout
        data = json.loads(info)["format-specific"]["data"]
        self.assertNotIn("in-use", [f for b in data.get("bitmaps", []) for f in b["flags"]])
        return [b["name"] for b in data.get("bitmaps", [])]

    def test_bitmaps_of_one_name(self):
        self.qmp.command("block-dirty-bitmap-add", node="a", name="x", persistent=True)
        self.qmp.command("block-dirty-bitmap-add", node="b", name="x")
        self.refused(
            "Node 'b' has a bitmap 'x', and so has the image of 'file-a'",
            self.node("a", "b"),
            self.node("b", "a"),
        )

    def test_images_of_another_size(self):
        small = self.make("small", "1M")
        self.add(driver="file", node_name="file-small", filename=small)
        self.reopen(self.node("a", "small"))
        self.assertEqual(self.qmp.node("a")["image"]["virtual-size"], MIB)
        self.io("a", "write -P 5 0 1M")
        self.qmp.command("block-dirty-bitmap-add", node="a", name="x")
        self.refused(
            "Node 'a' has a bitmap 'x' of 1048576 bytes, the image of 'file-a' has 8388608",
            self.node("a", "a"),
        )
        self.qmp.command("block-dirty-bitmap-remove", node="a", name="x")
        self.reopen(self.node("a", "a", **{"read-only": True}))
        self.assertTrue(self.qmp.node("a")["ro"])
        self.server.quit()
        tidemark.qemu_img("check", small)
        tidemark.qemu_io(small, "read -P 5 0 1M", fmt="qcow2")
        self.check(a=("read -P 0 0 8M",))

    def test_a_file_that_others_wrote_while_nobody_used_it(self):
        """Its node knew of a shorter file: tables beyond that end were read as zeroes."""
        for name in "exchanged", "opened", "shown":
            self.image[name] = self.make(name)
            self.add(driver="file", node_name=f"file-{name}", filename=self.image[name])
        self.add(driver="raw", node_name="raw", file="file-shown", read_only=True)
        for name in "exchanged", "opened", "shown":
            tidemark.qemu_io(self.image[name], "write -P 7 0 4M", fmt="qcow2")
        self.reopen(self.node("a", "exchanged"))
        self.add(**self.node("c", "opened"))
        self.add(driver="qcow2", node_name="d", file="raw", read_only=True)
        for node in "a", "c":
            self.io(node, "read -P 7 0 4M", "write -P 8 5M 1000")
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="d", name="d")
        uri = tidemark.nbd_uri(self.nbd, "d")
        tidemark.run(*tidemark.tool("io"), "-r", "-f", "raw", "-c", "read -P 7 0 4M", uri)
        self.server.quit()
        for name in "exchanged", "opened":
            self.check(**{name: ("read -P 7 0 4M", "read -P 8 5M 1000", "read -P 0 5243880 64536")})

    @staticmethod
    def cached_pages(path):
        return int(tidemark.run("fincore", "-n", "-o", "PAGES", path).stdout)

    def test_a_file_that_becomes_a_child_stays_in_the_page_cache(self):
        """It may be the base of many disks."""
        path = self.make("base")
        tidemark.qemu_io(path, "write -P 7 0 4M", fmt="qcow2")
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            file.read()
        before = self.cached_pages(path)
        self.assertGreater(before, 1000)
        self.add(driver="file", node_name="file-base", filename=path, read_only=True)
        self.add(driver="qcow2", node_name="base", file="file-base", read_only=True)
        self.assertGreaterEqual(self.cached_pages(path), before)

    def test_clusters_snapshots_and_options_are_those_of_the_image(self):
        other = self.make("other", options=("-o", "cluster_size=4k,lazy_refcounts=on"))
        tidemark.io(other, "write -P 1 0 1M", fmt="qcow2")
        tidemark.qemu_img("snapshot", "-c", "s", other)
        self.add(driver="file", node_name="file-other", filename=other)
        self.fill()
        self.reopen(self.node("a", "other", **{"l2-cache-size": 65536}))
        info = self.qmp.node("a")["image"]
        self.assertEqual((info["cluster-size"], info["snapshots"][0]["name"]), (4096, "s"))
        self.io("a", "write -P 2 512k 64k")
        with self.assertRaises(QmpError) as caught:
            self.reopen(self.node("a", "a", **{"l2-cache-entry-size": 1000}))
        self.assertIn("L2 cache entry size must be a power of two", caught.exception.desc)
        self.io("a", "read -P 2 512k 64k", "write -P 3 1M 64k")
        self.server.quit()
        tidemark.qemu_img("check", other)
        tidemark.qemu_io(other, "read -P 2 512k 64k", "read -P 3 1M 64k", fmt="qcow2")
        tidemark.qemu_img("snapshot", "-a", "s", other)
        tidemark.qemu_io(other, "read -P 1 0 1M", "read -P 0 1M 64k", fmt="qcow2")

    def test_a_node_in_use_keeps_its_image(self):
        """Guests, jobs and overlays rely on what it has."""
        wanted = "Node 'file-b' does not have the contents of the file of 'a'"
        self.qmp.command("blockdev-del", node_name="b")
        self.export("a")
        self.refused(wanted, self.node("a", "b"))
        self.unexport()
        self.add(driver="raw", node_name="above", file="a")
        self.refused(wanted, self.node("a", "b"))

    def test_a_raw_node_or_a_filter_below_an_image_keeps_its_file(self):
        """The metadata in memory would have been written to what another file has there."""
        self.qmp.command("object-add", qom_type="throttle-group", id="g")
        self.qmp.command("blockdev-del", node_name="b")
        for name in "long", "other":
            self.image[name] = self.make(name, "4M")
            with open(self.image[name], "r+b") as file:
                file.truncate(16 * MIB)
            self.add(driver="file", node_name=f"file-{name}", filename=self.image[name])
        rate = {"driver": "throttle", "throttle-group": "g", "node-name": "rate"}
        raw = {"driver": "raw", "node-name": "raw", "file": "rate"}
        self.add(**rate, file="file-long")
        self.add(**raw, offset=0, size=8 * MIB)
        self.add(driver="qcow2", node_name="image", file="raw")
        for options in (
            {**rate, "file": "file-other"},
            {**raw, "size": 8 * MIB, "file": "file-other"},
            {**raw, "size": 8 * MIB, "offset": 4 * MIB},
            {**raw, "size": 4 * MIB},
        ):
            name = options["node-name"]
            self.refused(
                f"Node '{name}' would not have the contents of the file of 'image' any more", options
            )
        self.reopen({**raw, "file": "file-long"})
        self.io("image", "write -P 1 0 4M", "read -P 1 0 4M")
        # An image that reads it again may have it.
        self.reopen(
            {**raw, "file": "file-b"},
            {"driver": "qcow2", "node-name": "image", "file": "file-a"},
            {"driver": "qcow2", "node-name": "a", "file": "raw"},
        )
        self.assertEqual(self.qmp.node("a")["image"]["virtual-size"], 8 * MIB)

    def test_the_backing_file_has_to_be_named(self):
        over = self.make("over", options=("-F", "qcow2", "-b", self.image["b"]))
        self.add(driver="file", node_name="file-over", filename=over)
        self.refused(
            f"backing is missing for 'a': the image of 'file-over' has the backing file "
            f"'{self.image['b']}'",
            self.node("a", "over"),
        )
        self.fill()
        self.reopen(self.node("a", "over", backing="b"))
        self.io("a", "read -P 0xb0 2M 1M", "write -P 1 2M 64k")
        self.reopen(self.node("a", "a", backing=None))
        self.io("a", "read -P 0xa0 0 1M")

    def test_keys_and_data_files_stay(self):
        secret = ("--object", "secret,id=s,data=abc")
        encrypted = self.make(
            "secret",
            options=(*secret, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
        )
        outside = self.make("outside", options=("-o", f"data_file={self.path('outside.raw')}"))
        self.add(driver="file", node_name="file-secret", filename=encrypted)
        self.add(driver="file", node_name="file-outside", filename=outside)
        for name, text in ("secret", "encryption"), ("outside", "data file"):
            self.refused(
                f"Node 'a' can't have the image of 'file-{name}': The {text} of image "
                f"'{self.image['a']}' was changed",
                self.node("a", name),
            )
        self.qmp.command("object-add", qom_type="secret", id="s", data="abc")
        key = {"encrypt": {"format": "luks", "key-secret": "s"}}
        self.add(**self.node("secret", "secret", **key))
        self.add(**self.node("outside", "outside"))
        self.refused(
            "Node 'secret' can't have the image of 'file-b': Its own is encrypted",
            self.node("b", "secret"),
            self.node("secret", "b", **key),
        )
        self.refused(
            "Node 'outside' can't have the image of 'file-b': Its own has a data file",
            self.node("b", "outside"),
            self.node("outside", "b"),
        )

    def test_an_image_that_cannot_be_read_again_is_inactive(self):
        """Its metadata in memory would be those of the other image."""
        self.qmp.command("blockdev-del", node_name="a")
        self.add(
            driver="blkdebug",
            node_name="file-faulty",
            image="file-a",
            **{
                "set-state": [{"event": "reftable_load", "state": 1, "new_state": 2}],
                "inject-error": [
                    {"event": "reftable_load", "state": 2, "iotype": "read", "once": True}
                ],
            },
        )
        self.add(**self.node("a", "faulty"))
        self.io("a", "write -P 0xa0 0 1M")
        with self.assertRaises(QmpError):
            self.reopen(self.node("b", "junk"), self.node("a", "b"))
        for active in False, True:
            self.assertEqual(self.qmp.node("a")["active"], active)
            if not active:
                self.qmp.command("blockdev-set-active", node_name="a", active=True)
        self.io("a", "read -P 0xa0 0 1M", "write -P 0xa1 4M 64k")
        self.server.quit()
        self.check(a=("read -P 0xa0 0 1M", "read -P 0xa1 4M 64k"), b=("read -P 0 0 8M",))
