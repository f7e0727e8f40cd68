# SPDX-License-Identifier: Apache-2.0
"""An image on a file system that stops answering, also to those that read."""

import os
import signal
from types import MappingProxyType

import tidemark
from hung_file import PATIENCE
from nbd_raw import FLUSH, WRITE, RawClient
from test_fuse import LIBC


class HungImageCase(tidemark.TestCase):
    """Node `sick` is on a file that another daemon serves by FUSE, which hangs when it stops."""

    # For the process of the daemon that is tested.
    process_options = MappingProxyType({})

    def setUp(self):
        super().setUp()
        image = self.create("sick.qcow2", "8M")
        self.sick = self.path("mnt")
        with open(self.sick, "w", encoding="ascii"):
            pass
        self.storage = self.daemon(
            "--blockdev", f"file,node-name=file,filename={image}",
            "--export", f"fuse,id=e,node-name=file,mountpoint={self.sick},writable=on,growable=on",
            name="storage",
        )  # fmt: skip
        self.addCleanup(self.let_go)
        self.good = self.create("good.qcow2", "8M")
        self.nbd = self.path("nbd.sock")
        self.server = self.daemon(
            *self.disk("sick", self.sick), *self.disk("good", self.good),
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            *self.export("sick"), *self.export("good"), **self.process_options,
        )  # fmt: skip

    @staticmethod
    def export(name):
        return "--export", f"nbd,id={name},node-name={name},name={name},writable=on"

    @staticmethod
    def disk(name, path):
        return "--blockdev", f"qcow2,node-name={name},file.driver=file,file.filename={path}"

    def let_go(self):
        self.thaw()
        self.end_processes()
        LIBC.umount2(os.fsencode(self.sick), 2)

    def freeze(self):
        tidemark.freeze(self.storage.process.pid)

    def thaw(self):
        self.storage.process.send_signal(signal.SIGCONT)

    def write(self, name="sick", flush=False):
        with RawClient(self.nbd, timeout=PATIENCE) as client:
            client.go(name.encode(), structured=False)
            client.request(WRITE, 4096, 4096, payload=b"s" * 4096)
            self.assertEqual(client.simple_reply(), (1, 0))
            if flush:
                client.request(FLUSH)
                self.assertEqual(client.simple_reply(), (1, 0))
