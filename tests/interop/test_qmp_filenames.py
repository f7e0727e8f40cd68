# SPDX-License-Identifier: Apache-2.0
"""Filenames of nodes, and what is below them, in the answers of our daemon and of QEMU's."""

import tidemark


def file(name):
    return {"driver": "file", "filename": name}


def qcow2(name, **options):
    return {"driver": "qcow2", "file": file(name), **options}


def throttled(child, **options):
    return {"driver": "throttle", "throttle-group": "g", "file": child, **options}


RAW = file("raw.img")
NONE = {"driver": "null-co", "size": 1 << 20}
MID = "mid.img"
KEY = {"format": "luks", "key-secret": "s"}
RULES = [{"event": "none", "errno": 5, "sector": 9999}]

# Nodes "t"; "m" is a node below.
CASES = {
    "as recorded": qcow2("top.img"),
    "no backing image": qcow2("top.img", backing=None),
    "no backing image, and none recorded": qcow2("alone.img", backing=None),
    "the file that is recorded": qcow2("top.img", backing=qcow2(MID, **{"node-name": "m"})),
    "by another name": qcow2("DIR/top.img", backing=qcow2("DIR/mid.img", **{"node-name": "m"})),
    "another backing image": qcow2("top.img", backing=qcow2("base.img", **{"node-name": "m"})),
    "another one below": qcow2("top.img", backing=qcow2(MID, backing=None, **{"node-name": "m"})),
    "a backing image where none is recorded": qcow2("alone.img", backing=NONE),
    "another format below": qcow2("top.img", backing={"driver": "raw", "file": file(MID)}),
    "options that do not choose the image": qcow2(
        "top.img", backing=None, discard="unmap", **{"lazy-refcounts": True, "cache-size": 1 << 20}
    ),
    "encrypted": qcow2("secret.img", encrypt=KEY),
    "encrypted with aes": qcow2("aes.img", encrypt=KEY | {"format": "aes"}),
    "an encrypted backing image": qcow2("alone.img", backing=qcow2("secret.img", encrypt=KEY)),
    "luks": {"driver": "luks", "file": file("luks.img"), "key-secret": "s"},
    "raw on luks": {"driver": "raw", "file": {
        "driver": "luks", "file": file("luks.img"), "key-secret": "s", "node-name": "m"}},
    "raw on qcow2": {"driver": "raw", "file": qcow2("top.img", backing=None)},
    "raw on raw": {"driver": "raw", "file": {"driver": "raw", "node-name": "m", "file": RAW}},
    "a part of a file": {"driver": "raw", "file": RAW, "offset": 512},
    "raw on a filter": {"driver": "raw", "file": throttled(RAW, **{"node-name": "m"})},
    "a format on a filter": qcow2("top.img") | {"file": throttled(file("top.img"))},
    "a filter on a chain": throttled(qcow2("top.img", **{"node-name": "m"})),
    "copy-on-read": {"driver": "copy-on-read", "file": qcow2("top.img")},
    "copy-on-read, and no backing image": {
        "driver": "copy-on-read", "file": qcow2("top.img", backing=None)},
    "copy-before-write": {"driver": "copy-before-write", "file": RAW, "target": NONE},
    "preallocate": {"driver": "preallocate", "file": RAW},
    "compress": {"driver": "compress", "file": qcow2("alone.img")},
    "blklogwrites": {"driver": "blklogwrites", "file": RAW, "log": file("log.img")},
    "snapshot-access": {"driver": "snapshot-access", "file": {
        "driver": "copy-before-write", "node-name": "m", "file": RAW, "target": NONE}},
    "blkdebug": {"driver": "blkdebug", "image": RAW},
    "blkdebug with a limit": {"driver": "blkdebug", "image": RAW, "align": 4096},
    "a format on blkdebug": qcow2("top.img") | {
        "file": {"driver": "blkdebug", "image": file("top.img"), "inject-error": RULES}},
    "quorum": {"driver": "quorum", "vote-threshold": 1, "children": [RAW]},
    "null-co": {"driver": "null-co", "latency-ns": 5},
    "null-co with a size": {"driver": "null-co", "size": 1024, "read-zeroes": True},
    "null-aio": {"driver": "null-aio", "read-zeroes": False},
}  # fmt: skip


class Filenames(tidemark.TestCase):
    in_memory = True

    def setUp(self):
        super().setUp()
        make = lambda *words: tidemark.img("create", "-q", *words, cwd=self.dir)  # noqa: E731
        make("-f", "qcow2", "base.img", "1M")
        make("-f", "qcow2", "-b", "base.img", "-F", "qcow2", "mid.img")
        make("-f", "qcow2", "-b", "mid.img", "-F", "qcow2", "top.img")
        make("-f", "qcow2", "alone.img", "1M")
        secret = "--object", "secret,id=s,data=x"
        for name, key in ("secret.img", "luks,encrypt.iter-time=10"), ("aes.img", "aes"):
            options = "encrypt.key-secret=s,encrypt.format=" + key
            make(*secret, "-f", "qcow2", "-o", options, name, "1M")
        make(*secret, "-f", "luks", "-o", "key-secret=s,iter-time=10", "luks.img", "1M")
        for name in "raw.img", "log.img":
            make("-f", "raw", name, "1M")

    def with_directory(self, options):
        """The options with the real directory in place of DIR."""
        if isinstance(options, dict):
            return {k: self.with_directory(v) for k, v in options.items()}
        return options.replace("DIR", self.dir) if isinstance(options, str) else options

    def answers(self, name):
        program = [tidemark.qemu("qemu-storage-daemon")] if name == "qemu" else None
        server = self.own(
            tidemark.Daemon(self.dir, "--object", "throttle-group,id=g",
                            "--object", "secret,id=s,data=x", name=name, program=program,
                            cwd=self.dir))  # fmt: skip
        result = {}
        for case, options in CASES.items():
            server.qmp.command("blockdev-add", **self.with_directory(options) | {"node-name": "t"})
            nodes = server.qmp.command("query-named-block-nodes", flat=False)
            result[case] = [self.names(n) for n in nodes if n["node-name"] in ("t", "m")]
            server.qmp.command("blockdev-del", node_name="t")
        return result

    def names(self, node):
        image = node["image"]
        images = []
        while image:
            images.append({k: v for k, v in image.items() if "filename" in k})
            image = image.get("backing-image")
        keys = "node-name", "file", "backing_file", "backing_file_depth"
        return [node.get(k) for k in keys], images

    def test_agree(self):
        ours, qemus = self.answers("ours"), self.answers("qemu")
        for case in CASES:
            with self.subTest(case):
                self.assertEqual(ours[case], qemus[case])
