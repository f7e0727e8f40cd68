# SPDX-License-Identifier: Apache-2.0
"""nbd --connect and --disconnect: devices of the kernel's NBD client. A thread stands in for the
kernel's side of netlink."""

import ctypes
import os
import socket
import stat
import struct
import threading
import unittest

from nbd_raw import EINVAL, READ, REQUEST_MAGIC, SIMPLE_MAGIC, WRITE
from tidemark import BUILD, Process, TestCase, compat, run, tool

SIZE = 1 << 20
ENOENT, EBUSY = 2, 16
CTRL, ERROR, FAMILY = 0x10, 2, 0x1D
CONNECT, DISCONNECT = 1, 2
ATTRIBUTES = {1: "index", 2: "size", 3: "block", 5: "server_flags", 6: "client_flags", 7: "sockets"}
PIDFD_GETFD = 438


def attributes(data):
    """[(type, data)]"""
    found, at = [], 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        found.append((kind & 0x3FFF, data[at + 4 : at + length]))
        at += (length + 3) & ~3
    return found


def message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


class Kernel:
    """Answers in place of the kernel; `devices` are those that are connected: index -> socket."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.bind(path)
        self.sock.listen()
        self.has_family = True
        self.devices, self.asked = {}, []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def stop(self):
        """End the thread before its descriptor can become another's."""
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()
        for sock in self.devices.values():
            sock.close()

    def run(self):
        while True:
            try:
                client, _ = self.sock.accept()
            except OSError:
                return
            with client:
                while data := client.recv(4096):
                    client.send(self.answer(client, data))

    def answer(self, client, data):
        length, kind, flags, _, _ = struct.unpack_from("=IHHII", data)
        assert length == len(data) and flags & 5 == 5, (length, len(data), flags)
        command = data[16]
        fields = attributes(data[20:])
        if kind == CTRL:
            assert fields == [(2, b"nbd\0")], fields
            if not self.has_family:
                return message(ERROR, struct.pack("=i", -ENOENT) + data[:16])
            found = struct.pack("=BBH", 1, 2, 0) + struct.pack("=HHHH", 6, 1, FAMILY, 0)
            return message(CTRL, found) + message(ERROR, struct.pack("=i", 0) + data[:16])
        assert kind == FAMILY
        error = self.connect(client, fields) if command == CONNECT else self.disconnect(fields)
        return message(ERROR, struct.pack("=i", -error) + data[:16])

    def connect(self, client, fields):
        asked = {ATTRIBUTES[kind]: data for kind, data in fields}
        ((_, item),) = attributes(asked.pop("sockets"))
        ((_, fd),) = attributes(item)
        asked = {name: int.from_bytes(data, "little") for name, data in asked.items()}
        self.asked.append(asked)
        if asked["index"] in self.devices:
            return EBUSY
        pid = struct.unpack("=iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        pidfd = os.pidfd_open(pid)
        own = ctypes.CDLL(None, use_errno=True).syscall(
            PIDFD_GETFD, pidfd, int.from_bytes(fd, "little"), 0
        )
        os.close(pidfd)
        assert own >= 0, ctypes.get_errno()
        self.devices[asked["index"]] = socket.socket(fileno=own)
        return 0

    def disconnect(self, fields):
        ((_, index),) = fields
        sock = self.devices.pop(int.from_bytes(index, "little"), None)
        if sock is None:
            return EINVAL
        sock.close()
        return 0

    def request(self, index, kind, offset, length, payload=b""):
        """What the kernel asks for its device; the data that it gets."""
        sock = self.devices[index]
        sock.setblocking(True)
        sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, kind, 7, offset, length) + payload)
        magic, error, cookie = struct.unpack(">IIQ", sock.recv(16, socket.MSG_WAITALL))
        assert (magic, error, cookie) == (SIMPLE_MAGIC, 0, 7)
        return sock.recv(length, socket.MSG_WAITALL) if kind == READ else b""


class Device(TestCase):
    def setUp(self):
        super().setUp()
        self.kernel = Kernel(self.path("netlink"))
        self.addCleanup(self.kernel.stop)
        self.env = {
            **os.environ,
            "LD_PRELOAD": os.path.join(BUILD, "tests", "tools", "libnetlink_stand_in.so"),
            "NETLINK_STAND_IN": self.path("netlink"),
        }
        self.device = self.path("nbd7")
        os.mknod(self.device, stat.S_IFBLK | 0o600, os.makedev(43, 7))
        self.disk = self.path("disk.raw")
        with open(self.disk, "wb") as file:
            file.write(b"x" * SIZE)

    def start(self, *options):
        server = self.own(Process(
            [*tool("nbd"), "-v", "-c", self.device, "-k", self.path("sock"), "-f", "raw", *options,
             self.disk], self.path("log"), env=self.env,
        ))  # fmt: skip
        server.wait_for(lambda: 7 in self.kernel.devices, "the device")
        return server

    def disconnect(self, **more):
        return run(*tool("nbd"), "-d", self.device, env=self.env, **more)

    def test_the_kernel_reads_and_writes(self):
        server = self.start()
        (asked,) = self.kernel.asked
        self.assertEqual((asked["index"], asked["size"], asked["block"]), (7, SIZE, 512))
        self.assertEqual(asked["server_flags"] & 3, 1)  # has flags, and is not read-only
        self.assertEqual(self.kernel.request(7, READ, 4096, 4096), b"x" * 4096)
        self.kernel.request(7, WRITE, 0, 512, b"y" * 512)
        self.assertEqual(self.kernel.request(7, READ, 0, 1024), b"y" * 512 + b"x" * 512)
        self.assertIn(f"{self.device} is now connected", server.log())
        # The server ends with its client.
        self.assertEqual(self.disconnect().stdout, f"{self.device} disconnected\n")
        server.wait()
        with open(self.disk, "rb") as file:
            self.assertEqual(file.read(512), b"y" * 512)

    def test_a_signal_disconnects_the_device(self):
        server = self.start("-r", "-t")
        self.assertEqual(self.kernel.asked[0]["server_flags"] & 3, 3)
        server.stop()
        self.assertEqual(self.kernel.devices, {})

    def test_the_background_is_entered_when_the_device_is_there(self):
        result = run(compat("qemu-nbd"), "-c", self.device, "-k", self.path("sock"), "-f", "raw",
                     "--pid-file", self.path("pid"), self.disk, env=self.env)  # fmt: skip
        self.assertEqual(result.stdout + result.stderr, "")
        self.assertEqual(self.kernel.request(7, READ, 0, 512), b"x" * 512)
        self.disconnect()
        with open(self.path("pid"), encoding="ascii") as file:
            pid = int(file.read())
        self.wait_until_gone(pid)

    def wait_until_gone(self, pid):
        for _ in range(500):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            threading.Event().wait(0.02)
        self.fail("the server goes on")

    def refused(self, *arguments, env=None):
        result = run(*tool("nbd"), *arguments, env=env or self.env, check=False)
        self.assertEqual(result.returncode, 1, result.stderr)
        return result.stderr

    def test_what_fails_is_said(self):
        connect = ("-k", self.path("sock"), "-f", "raw")
        self.assertIn("Failed to open /dev/nbd-none: No such file",
                      self.refused("-c", "/dev/nbd-none", *connect, self.disk))  # fmt: skip
        self.assertIn("Cannot open /dev/nbd-none: No such file",
                      self.refused("-d", "/dev/nbd-none"))  # fmt: skip
        self.assertIn("not a device of the kernel's NBD client", self.refused("-d", self.disk))
        self.assertIn("refuses: Invalid argument", self.refused("-d", self.device))
        self.assertIn("Invalid number of arguments", self.refused("-d"))
        self.assertIn("per-device", self.refused("-L", "-c", self.device))
        self.assertIn("unix socket", self.refused("-c", self.device, "-p", "1", self.disk))
        self.assertIn("TLS is not supported with a host device",
                      self.refused("-c", self.device, "--tls-creds", "t", self.disk))  # fmt: skip
        self.kernel.devices[7] = socket.socket()
        self.assertIn("busy", self.refused("-c", self.device, *connect, self.disk))
        self.kernel.has_family = False
        self.assertIn("The kernel has no NBD client", self.refused("-d", self.device))


if __name__ == "__main__":
    unittest.main()
