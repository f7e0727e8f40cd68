# SPDX-License-Identifier: Apache-2.0
"""Over SSH: flushes reach the server's disk, a failed one is not forgotten, requests at a time
don't mix.
"""

import re
import shutil

import nbd
from nbd_server import NbdServer
from test_ssh import Ssh
from tidemark import img, io

SFTP = shutil.which("sftp-server", path="/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh")
MIB = 1 << 20


class Watched(Ssh):
    def sftp(self):
        return f"strace -f -qq -o {self.path('trace')} -e trace=fsync {SFTP}"

    def synced(self):
        """How often, on the last connection."""
        with open(self.path("trace"), encoding="utf-8") as f:
            return len(re.findall(r"fsync\(\d+\) += 0", f.read()))

    def test_a_flush_is_a_sync_of_the_server(self):
        img("create", "-q", "-f", "raw", self.local("disk.raw"), "1M")
        io(self.uri("disk.raw"), "write -P 1 0 4k", "flush", "write -P 1 0 4k", "flush", fmt="raw")
        self.assertGreaterEqual(self.synced(), 2)

    def test_requests_at_one_time(self):
        img("create", "-q", "-f", "raw", self.local("disk.raw"), "8M")
        writes = [f"aio_write -q -P {n + 1} {n}M 1M" for n in range(8)]
        reads = [f"read -P {n + 1} {n}M 1M" for n in range(8)]
        io(self.uri("disk.raw"), *writes, "aio_flush", *reads, fmt="raw")


class FirstSyncFails(Ssh):
    def sftp(self):
        return f"strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:error=EIO:when=1 {SFTP}"

    def test_later_flushes_fail_too(self):
        img("create", "-q", "-f", "raw", self.local("disk.raw"), "1M")
        server = self.own(NbdServer(self.dir, "-f", "raw", self.uri("disk.raw")))
        client = nbd.NBD()
        client.connect_unix(server.socket)
        for _ in range(2):
            client.pwrite(b"a" * 4096, 0)
            with self.assertRaises(nbd.Error) as caught:
                client.flush()
            self.assertEqual(caught.exception.errno, "EIO")
