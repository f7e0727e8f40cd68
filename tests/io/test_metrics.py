# SPDX-License-Identifier: Apache-2.0
"""The metrics endpoint: format, figures, addresses, and clients that misbehave."""

import os
import re
import resource
import socket
import time

import prometheus
import tidemark
from nbd_raw import READ, WRITE, RawClient

DOCUMENT = os.path.join(os.environ.get("TIDEMARK_SOURCE", "."), "docs", "statistics.md")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Endpoint(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.metrics = self.path("metrics.sock")
        self.nbd = self.path("nbd.sock")
        self.disk = self.create("disk.qcow2", "64M")
        self.server = self.daemon(
            "--metrics", self.metrics,
            "--blockdev", f"driver=file,node-name=file,filename={self.disk}",
            "--blockdev", "driver=qcow2,node-name=disk,file=file",
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
        )  # fmt: skip

    def client(self):
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.go(b"disk", structured=False)
        return client

    def write_and_read(self, client):
        client.request(WRITE, 1 << 20, 4096, payload=b"x" * 4096)
        self.assertEqual(client.simple_reply(), (1, 0))
        client.request(READ, 1 << 20, 4096)
        self.assertEqual(client.simple_reply(), (1, 0))
        client.receive(4096)

    def test_figures(self):
        began = time.time()
        self.write_and_read(self.client())
        # A reply is counted when it has left, which the client may notice first.
        count = "tidemark_export_read_latency_seconds_count"
        tidemark.wait_until(
            lambda: prometheus.scrape(self.metrics).value(count) == 1, "the read to be counted"
        )
        m = prometheus.scrape(self.metrics)
        self.assertEqual(m.value("tidemark_node_write_bytes_total", node="disk"), 4096)
        self.assertEqual(m.value("tidemark_export_write_bytes_total", export="export"), 4096)
        self.assertEqual(m.value("tidemark_export_clients", export="export", node="disk"), 1)
        self.assertGreater(m.value("tidemark_export_read_latency_seconds_sum"), 0)
        self.assertLess(m.value("tidemark_export_read_latency_seconds_sum"), time.time() - began)
        latest = m.value("tidemark_export_latest_request_timestamp_seconds")
        self.assertTrue(began - 0.1 <= latest <= time.time() + 0.1)
        self.assertEqual(m.value("tidemark_build_info"), 1)
        started = m.value("process_start_time_seconds")
        self.assertTrue(began - 60 < started <= began + 1)

    def test_counters_grow(self):
        client = self.client()
        self.write_and_read(client)
        before = prometheus.scrape(self.metrics)
        self.write_and_read(client)
        after = prometheus.scrape(self.metrics)
        for name, kind in before.types.items():
            if kind != "counter":
                continue
            for sample, labels, value in before.samples[name]:
                self.assertGreaterEqual(after.value(sample, **labels), value, name)
        self.assertEqual(after.value("tidemark_export_write_requests_total"), 2)

    def test_every_metric_is_documented_and_every_documented_one_is_there(self):
        nodes = (
            {"driver": "null-co", "node-name": "target", "size": 64 << 20},
            {"driver": "copy-before-write", "node-name": "cbw", "file": "disk",
             "target": "target"},
            {"driver": "nbd", "node-name": "remote", "server": {"type": "unix", "path": self.nbd},
             "export": "disk", "read-only": True},
        )  # fmt: skip
        for node in nodes:
            self.server.qmp.command("blockdev-add", **node)
        m = prometheus.scrape(self.metrics)
        with open(DOCUMENT, encoding="utf-8") as page:
            rows = re.findall(r"^\| `((?:tidemark|process)_\w+)` \| (\w+) \|", page.read(), re.M)
        for name, kind in sorted(set(m.types.items()) - set(rows)):
            self.fail(f"docs/statistics.md, 'All metrics': no row for the {kind} `{name}`")
        for name, kind in sorted(set(rows) - set(m.types.items())):
            self.fail(f"docs/statistics.md, 'All metrics': there is no {kind} `{name}`")
        self.assertEqual(len(rows), len(m.types), "a row of docs/statistics.md stands twice")

    def test_other_requests(self):
        self.assertEqual(prometheus.request(self.metrics, url="/")[0], 200)
        self.assertEqual(prometheus.request(self.metrics, url="/nothing")[0], 404)
        status, headers, text = prometheus.request(self.metrics, "HEAD")
        self.assertEqual((status, text), (200, ""))
        self.assertGreater(int(headers["Content-Length"]), 1000)
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            status, headers, _ = prometheus.request(self.metrics, method)
            self.assertEqual((status, headers["Allow"]), (405, "GET, HEAD"))

    def test_a_busy_client_of_the_endpoint_does_not_disturb_nbd(self):
        client = self.client()
        idle = [self.connect() for _ in range(200)]
        for sock in idle[:10]:
            sock.sendall(b"GET /metr")
        begin = time.monotonic()
        for _ in range(200):
            self.write_and_read(client)
        self.assertLess(time.monotonic() - begin, 10)
        for sock in idle:
            sock.close()
        self.assertEqual(prometheus.request(self.metrics)[0], 200)

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.settimeout(0.2)
        try:
            sock.connect(self.metrics)
        except (BlockingIOError, TimeoutError):
            pass  # the backlog is full
        return sock

    def test_the_thread_sleeps_when_no_descriptor_is_left(self):
        tasks = f"/proc/{self.server.pid}/task"

        def read(task, name):
            with open(f"{tasks}/{task}/{name}", encoding="ascii") as f:
                return f.read()

        def named():
            return [t for t in os.listdir(tasks) if read(t, "comm") == "metrics\n"]

        tidemark.wait_until(named, "the thread, which names itself")
        (thread,) = named()

        def sleeps():
            return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", read(thread, "status"), re.M)[1])

        limits = resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        self.connect()
        before = sleeps()
        tidemark.wait_until(lambda: sleeps() > before + 20, "a thread that sleeps")
        resource.prlimit(self.server.pid, resource.RLIMIT_NOFILE, limits)
        self.assertEqual(prometheus.request(self.metrics)[0], 200)

    def test_silent_clients_make_room(self):
        silent = [self.connect() for _ in range(40)]
        begin = time.monotonic()
        self.assertEqual(prometheus.request(self.metrics)[0], 200)
        self.assertLess(time.monotonic() - begin, 15)
        for sock in silent:
            sock.close()

    def test_nonsense(self):
        for data in (b"\0" * 100, b"GET /metrics HTTP/9.9\r\n\r\n", b"GET " + b"a" * 100000,
                     b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10000,
                     b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 100000):  # fmt: skip
            with self.subTest(data[:20]):
                sock = self.connect()
                try:
                    sock.sendall(data)
                    sock.settimeout(10)
                    while sock.recv(65536):
                        pass
                except OSError:
                    pass
                self.assertEqual(prometheus.request(self.metrics)[0], 200)

    def test_the_socket_goes_with_the_daemon(self):
        self.assertTrue(os.path.exists(self.metrics))
        self.server.stop()
        self.assertFalse(os.path.exists(self.metrics))

    def test_it_ends_while_clients_are_connected(self):
        self.connect()
        self.connect().sendall(b"GET /met")
        begin = time.monotonic()
        self.server.stop()
        self.assertLess(time.monotonic() - begin, 5)


class Addresses(tidemark.TestCase):
    def serve(self, address):
        disk = self.create("disk.raw", "1M", "raw")
        sock = self.path("nbd.sock")
        command = tidemark.tool("nbd") + ["-t", "-k", sock, "-f", "raw", "--metrics", address, disk]
        server = self.own(tidemark.Process(command, self.path("log")))
        server.wait_for(lambda: tidemark.can_connect(sock), "the server")
        return server

    def listening(self, port):
        """Addresses of the sockets that listen at a port, as /proc/net writes them."""
        found = set()
        for table in ("tcp", "tcp6"):
            with open(f"/proc/net/{table}", encoding="ascii") as f:
                for line in f.readlines()[1:]:
                    fields = line.split()
                    address, _, hexadecimal = fields[1].rpartition(":")
                    if fields[3] == "0A" and int(hexadecimal, 16) == port:
                        found.add(address)
        return found

    def test_a_port_alone_is_of_loopback(self):
        for form in ("{}", ":{}", "127.0.0.1:{}", "localhost:{}"):
            with self.subTest(form):
                port = free_port()
                server = self.serve(form.format(port))
                self.assertTrue(self.listening(port) <= {"0100007F", "0" * 24 + "01000000"})
                if "localhost" not in form:
                    tidemark.wait_until(
                        lambda: "tidemark_export_clients" in prometheus.scrape(port).samples,
                        "the export",
                    )
                server.stop()

    def test_all_addresses_if_asked_for(self):
        port = free_port()
        server = self.serve(f"0.0.0.0:{port}")
        self.assertEqual(self.listening(port), {"0" * 8})
        server.stop()

    def test_wrong_addresses(self):
        disk = self.create("disk.raw", "1M", "raw")
        for address in ("", ":", "host:", "1:2:3", "x" * 200 + "/y", "/nowhere/socket", "a:b:c",
                        "0", "localhost:0", "65536", "70000", "9" * 30):  # fmt: skip
            with self.subTest(address):
                result = tidemark.run(
                    *tidemark.tool("nbd"), "-k", self.path("s"), "-f", "raw",
                    "--metrics", address, disk, check=False,
                )  # fmt: skip
                self.assertEqual(result.returncode, 1)
                self.assertIn(f"Metrics at '{address}': ", result.stderr)

    def test_a_port_that_is_taken(self):
        port = free_port()
        self.serve(str(port))
        disk = self.create("other.raw", "1M", "raw")
        result = tidemark.run(
            *tidemark.tool("nbd"), "-k", self.path("s"), "-f", "raw",
            "--metrics", str(port), disk, check=False,
        )  # fmt: skip
        self.assertEqual(result.returncode, 1)
        self.assertIn("Address already in use", result.stderr)

    def test_a_list_has_no_metrics(self):
        result = tidemark.run(*tidemark.tool("nbd"), "-L", "--metrics", "1", check=False)
        self.assertEqual(result.returncode, 1)
