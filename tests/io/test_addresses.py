# SPDX-License-Identifier: Apache-2.0
"""Addresses of sockets: of the NBD server, and of the servers that nodes connect to."""

import json
import os
import socket

import tidemark
from qmp import QmpError


class AddressTest(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.qmp = self.daemon("--blockdev", "null-co,node-name=null,size=64k").qmp

    def start(self, kind, **data):
        data = {key.replace("_", "-"): value for key, value in data.items()}
        self.qmp.command("nbd-server-start", addr={"type": kind, "data": data})
        self.qmp.command("block-export-add", type="nbd", id="e", node_name="null")
        return self.qmp.command("query-nbd-server").get("address")

    def stop(self):
        self.qmp.command("nbd-server-stop")

    def refused(self, wanted, kind, **data):
        with self.assertRaises(QmpError) as caught:
            self.start(kind, **data)
        self.assertEqual(caught.exception.desc, wanted)

    def reads(self, **server):
        options = {"driver": "nbd", "export": "null", "server": server}
        info = tidemark.img("info", "--output=json", "json:" + json.dumps(options)).stdout
        size = json.loads(info)["virtual-size"]
        self.assertEqual(size, 65536)


class UnixTest(AddressTest):
    def test_abstract_names(self):
        for number, tight in enumerate((None, True, False)):
            name = f"tidemark-test-{os.getpid()}-{number}"
            more = {} if tight is None else {"tight": tight}
            address = self.start("unix", path=name, abstract=True, **more)
            self.assertEqual(address, {"type": "unix", "path": name, "abstract": True})
            self.assertFalse(os.path.exists(name))
            self.reads(type="unix", path=name, abstract=True, **more)
            with socket.socket(socket.AF_UNIX) as sock:
                full = b"\0" + name.encode()
                sock.connect(full.ljust(108, b"\0") if tight is False else full)
            self.stop()

    def test_names_that_are_too_long(self):
        for length, more in (108, {}), (108, {"abstract": True}):
            self.refused(
                f"UNIX socket path '{'x' * length}' is too long", "unix", path="x" * length, **more
            )
        self.start("unix", path="x" * 107, abstract=True)

    def test_a_folder_that_is_not_there(self):
        self.refused("Failed to bind socket to /none/x: No such file or directory", "unix", path="/none/x")


class InetTest(AddressTest):
    def busy(self):
        sock = socket.socket()
        self.addCleanup(sock.close)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock.getsockname()[1]

    def test_a_range_of_ports(self):
        port = self.busy()
        taken = "Failed to find an available port: Address already in use"
        self.refused(taken, "inet", host="127.0.0.1", port=str(port))
        self.refused(taken, "inet", host="127.0.0.1", port=str(port), to=port)
        backwards = f"The last port (to={port - 1}) is below the first one (port={port})"
        self.refused(backwards, "inet", host="127.0.0.1", port=str(port), to=port - 1)
        address = self.start("inet", host="127.0.0.1", port=str(port), to=min(port + 50, 65535))
        self.assertGreater(int(address["port"]), port)
        self.reads(type="inet", host="127.0.0.1", port=address["port"])

    def test_families(self):
        self.refused(
            "Cannot disable IPv4 and IPv6 at same time",
            "inet",
            host="",
            port="0",
            ipv4=False,
            ipv6=False,
        )
        wrong = "address resolution failed for 127.0.0.1:0: Address family for hostname not supported"
        self.refused(wrong, "inet", host="127.0.0.1", port="0", ipv6=True)
        self.refused(wrong, "inet", host="127.0.0.1", port="0", ipv4=False)
        address = self.start("inet", host="", port="0", ipv6=False)
        self.reads(type="inet", host="127.0.0.1", port=address["port"], ipv4=True)
        self.stop()
        address = self.start("inet", host="127.0.0.1", port="0", ipv4=True, numeric=True)
        self.reads(type="inet", host="localhost", port=address["port"], ipv6=False)

    def test_the_name_of_a_node_says_how_it_is_connected(self):
        port = self.start("inet", host="::1", port="0")["port"]
        for more in {}, {"ipv4": False}:
            options = {"driver": "nbd", "export": "null",
                       "server": {"type": "inet", "host": "::1", "port": port, **more}}  # fmt: skip
            text = tidemark.img("info", "--output=json", "json:" + json.dumps(options)).stdout
            name = json.loads(text)["filename"]
            if more:
                self.assertIs(json.loads(name.removeprefix("json:"))["server.ipv4"], False)
            else:
                self.assertEqual(name, f"nbd://[::1]:{port}/null")
            tidemark.img("info", name)

    def test_numeric_names_are_not_looked_up(self):
        self.refused(
            "address resolution failed for localhost:0: Name or service not known",
            "inet",
            host="localhost",
            port="0",
            numeric=True,
        )
        self.refused(
            "address resolution failed for 127.0.0.1:http: Name or service not known",
            "inet",
            host="127.0.0.1",
            port="http",
            numeric=True,
        )

    def test_connections_are_kept_alive(self):
        port = int(self.start("inet", host="127.0.0.1", port="0", keep_alive=True)["port"])
        with socket.create_connection(("127.0.0.1", port)):
            tidemark.wait_until(lambda: "02" in self.timers(port), "the timer of the keep-alive")

    def timers(self, port):
        """Kinds of the timers that the kernel has for the connections of a local port."""
        with open("/proc/net/tcp", encoding="ascii") as lines:
            fields = [line.split() for line in lines]
        return [f[5][:2] for f in fields if f[1].endswith(f":{port:04X}") and f[3] == "01"]

    def test_numbers_out_of_range(self):
        with self.assertRaises(QmpError) as caught:
            self.start("inet", host="", port="0", to=70000)
        self.assertIn("to' expects uint16_t", caught.exception.desc)


class VsockTest(AddressTest):
    def test_numbers_are_checked(self):
        self.refused("Failed to parse cid 'x'", "vsock", cid="x", port="5")
        self.refused("Failed to parse cid '4294967296'", "vsock", cid="4294967296", port="5")
        self.refused("Failed to parse port 'y'", "vsock", cid="2", port="y")

    def test_an_address_that_is_not_ours(self):
        """There may be a loopback of vsock or not; this id is never one of this system."""
        with self.assertRaises(QmpError) as caught:
            self.start("vsock", cid="77", port="5")
        self.assertIn("Failed to", caught.exception.desc)


class DescriptorTest(AddressTest):
    def test_a_node_uses_a_connection_that_was_passed(self):
        path = self.path("nbd.sock")
        self.start("unix", path=path)
        node = {"driver": "nbd", "read-only": True, "export": "null", "server": {"type": "fd", "str": "c"}}
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            socket.send_fds(
                self.qmp.sock,
                [b'{"execute": "getfd", "arguments": {"fdname": "c"}}'],
                [sock.fileno()],
            )
            self.assertEqual(self.qmp.receive_answer(), {"return": {}})
        self.qmp.command("blockdev-add", node_name="n", **node)
        self.assertEqual(self.qmp.node("n")["image"]["virtual-size"], 65536)
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("blockdev-add", node_name="m", **node)
        self.assertIn("File descriptor named 'c' has not been found", caught.exception.desc)

    def test_on_the_command_line_it_is_a_number(self):
        path = self.path("nbd.sock")
        self.start("unix", path=path)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            second = self.daemon(
                "--blockdev",
                f"driver=nbd,node-name=n,read-only=on,export=null,server.type=fd,server.str={sock.fileno()}",
                name="second",
                pass_fds=[sock.fileno()],
            )
        self.assertEqual(second.qmp.node("n")["image"]["virtual-size"], 65536)
