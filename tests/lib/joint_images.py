# SPDX-License-Identifier: Apache-2.0
"""Images whose bitmaps are changed jointly, for tests that cut the change off."""

import json
import os
import struct
import threading

from tidemark import Daemon, TestCase, can_connect, img, io, nbd_uri, qemu_img, wait_until

M = 1048576
EXT_JOINT = 0x54444A43
AUTOCLEAR_JOINT = 1 << 61
PREPARED, DONE = 1, 2
NS = 10**9
HEADER_WRITE = {"event": "none", "iotype": "write", "sector": 0}


def joint_state(path):
    """What the header of an image says of a joint change: 0: nothing."""
    with open(path, "rb") as f:
        data = f.read(65536)
    at = struct.unpack_from(">I", data, 100)[0]
    while True:
        kind, size = struct.unpack_from(">II", data, at)
        if kind == 0:
            return 0
        if kind == EXT_JOINT:
            return struct.unpack_from(">I", data, at + 12)[0]
        at += 8 + (size + 7) // 8 * 8


def bitmaps(path):
    """Names and flags of the bitmaps in an image, as `img info` shows them."""
    info = json.loads(img("info", "-U", "--output=json", "-f", "qcow2", path).stdout)
    found = info["format-specific"]["data"].get("bitmaps", [])
    return {b["name"]: "auto" in b["flags"] for b in found}


class Case(TestCase):
    in_memory = True
    raw = False
    remote = False
    in_use = False  # guests have written, so the images have an activity log
    far = None
    slow_ns = NS * 6 // 5

    def setUp(self):
        super().setUp()
        self.images = [self.make(name) for name in ("a", "b")]

    def make(self, name):
        image = self.path(name + ".qcow2")
        img("create", "-q", "-f", "qcow2", image, "16M")
        img("bitmap", "--add", "-f", "qcow2", "-g", "64k", image, "old")
        return image

    def file(self, image):
        if not self.remote:
            return {"driver": "file", "filename": image}
        server = {"type": "unix", "path": self.path("far")}
        return {"driver": "nbd", "server": server, "export": os.path.basename(image)}

    def serve(self):
        """self.remote: the files are on a server, which lives on when the daemon is killed."""
        options = []
        for i, image in enumerate(self.images):
            if self.file(image)["driver"] == "file":
                continue
            os.truncate(image, 32 * M)  # what is served can't grow
            node = {"driver": "file", "node-name": f"f{i}", "filename": image}
            options += ["--blockdev", json.dumps(node), "--export"]
            options.append(f"nbd,id=e{i},node-name=f{i},name={os.path.basename(image)},writable=on")
        server = f"addr.type=unix,addr.path={self.path('far')},max-connections=0"
        self.far = self.own(Daemon(self.dir, "--nbd-server", server, *options, name="far"))

    def start(self, slow=(), errors=(), name="daemon", order=None):
        """`slow`: numbers of images whose header takes self.slow_ns to be written.
        self.raw: a raw node is between each image and its file. `order`: of opening."""
        options = []
        if self.remote and not self.far:
            self.serve()
        for i in order or range(len(self.images)):
            image = self.images[i]
            rules = []
            if i in slow:
                rules = [{**HEADER_WRITE, "errno": 0, "delay-ns": self.slow_ns}]
            rules += [rule for k, rule in errors if k == i]
            file = self.file(image)
            if rules:
                file = {"driver": "blkdebug", "image": file, "inject-error": rules}
            if self.raw:
                file = {"driver": "raw", "file": file}
            node = {"driver": "qcow2", "node-name": f"d{i}", "file": file}
            options += ["--blockdev", json.dumps(node)]
        self.server = self.own(
            Daemon(
                self.dir, *options,
                "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')},max-connections=0",
                *(
                    option
                    for i in order or range(len(self.images))
                    for option in ("--export", f"nbd,id=e{i},node-name=d{i},name=d{i},writable=on")
                ),
                name=name,
            )
        )  # fmt: skip
        return self.server.qmp

    def write(self, disk, granule):
        io(nbd_uri(self.path("nbd"), f"d{disk}"), f"write {granule * 64}k 4k", fmt="raw")

    def kill(self):
        self.server.kill()
        wait_until(lambda: not can_connect(self.server.qmp_path), "the end of the daemon")

    def checkpoint(self, name, before, disks=(0, 1)):
        actions = []
        for i in disks:
            actions.append(("block-dirty-bitmap-disable", {"node": f"d{i}", "name": before}))
            actions.append(
                ("block-dirty-bitmap-add",
                 {"node": f"d{i}", "name": name, "persistent": True, "granularity": 65536})
            )  # fmt: skip
        return actions

    def begin(self, *actions):
        """Send a transaction, and do not wait for its answer."""
        thread = threading.Thread(target=self.try_transaction, args=(actions,))
        thread.start()
        self.addCleanup(thread.join)

    def try_transaction(self, actions):
        try:
            self.server.qmp.transaction(*actions)
        except (OSError, EOFError, ValueError):
            pass

    def check(self):
        for image in self.images:
            status = img("check", "-q", "-f", "qcow2", image, check=False).returncode
            self.assertIn(status, (0, 3), image)

    def qemu_check(self, image):
        return qemu_img("check", "-q", "-f", "qcow2", image, check=False).returncode

    def end_server(self):
        """Of self.remote."""
        self.far.quit()
        self.far = None

    def settle(self, image):
        """Open for writing, and close."""
        io(image, "read 0 4k", fmt="qcow2")


class SlowSecond(Case):
    """The second image is slow, so each state can be seen, and lasts."""

    def cut_off(self, state_of_first, state_of_second):
        for i in range(2):
            io(self.images[i], f"write {5 * 64}k 4k", fmt="qcow2")
        self.start(slow=(1,))
        for disk in range(2) if self.in_use else ():
            self.write(disk, 5)
        self.begin(*self.checkpoint("new", "old"))
        wait_until(
            lambda: (joint_state(self.images[0]), joint_state(self.images[1]))
            == (state_of_first, state_of_second),
            "the state of the change",
            timeout=60,
        )
        self.kill()
        self.assertEqual(joint_state(self.images[0]), state_of_first)
        self.assertEqual(joint_state(self.images[1]), state_of_second)

    OLD = {"old": True}
    NEW = {"old": False, "new": True}

    def opened(self, **how):
        """The bitmaps of both as a daemon has them, which settles the change."""
        qmp = self.start(name="again", **how)
        found = [
            {name: b["recording"] for name, b in qmp.bitmaps(f"d{i}").items()} for i in range(2)
        ]
        for i in range(2):
            self.assertGreaterEqual(qmp.bitmaps(f"d{i}")["old"]["count"], 65536)
        self.server.quit()
        return found

    def assert_plain(self):
        for image in self.images:
            self.assertEqual(joint_state(image), 0)
            with open(image, "rb") as f:
                self.assertEqual(struct.unpack_from(">Q", f.read(112), 88)[0] & AUTOCLEAR_JOINT, 0)
            self.assertEqual(self.qemu_check(image), 0)
