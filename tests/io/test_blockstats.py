# SPDX-License-Identifier: Apache-2.0
"""query-blockstats, compared with QEMU's; query-stats and x-tidemark-query-stats."""

import os
import time

import tidemark
from nbd_raw import FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, RawClient
from qmp import QmpError

EINVAL = 22


class Keys(tidemark.TestCase):
    """The structure is QEMU's: the same members, of the same kind, for the same graph."""

    def graph(self, qmp, base, top):
        for node in (
            {"driver": "file", "node-name": "base-file", "filename": base, "read-only": True},
            {"driver": "qcow2", "node-name": "base", "file": "base-file", "read-only": True},
            {"driver": "file", "node-name": "top-file", "filename": top},
            {"driver": "qcow2", "node-name": "top", "file": "top-file", "backing": "base"},
            {"driver": "null-co", "node-name": "null", "size": 1 << 20},
            {"driver": "raw", "node-name": "raw", "file": "null"},
        ):
            qmp.command("blockdev-add", **node)

    def shape(self, value):
        if isinstance(value, dict):
            return {k: self.shape(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.shape(v) for v in value]
        return value if isinstance(value, str) else type(value).__name__

    def drop_zones(self, value):
        """Members that QEMU has since 8.1."""
        if isinstance(value, dict):
            for name in [n for n in value if "zone_append" in n]:
                self.assertEqual(value.pop(name), 0)
        for part in value.values() if isinstance(value, dict) else value:
            if isinstance(part, (dict, list)):
                self.drop_zones(part)

    def test_nodes_have_the_members_that_they_have_in_qemu(self):
        base = self.create("base.qcow2", "16M")
        top = self.path("top.qcow2")
        tidemark.img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        program = [tidemark.qemu("qemu-storage-daemon")]
        other = self.own(tidemark.Daemon(self.dir, name="qemu", program=program))
        self.graph(other.qmp, base, top)
        theirs = other.qmp.command("query-blockstats", **{"query-nodes": True})
        other.stop()
        ours = self.daemon().qmp
        self.graph(ours, base, top)
        ours = ours.command("query-blockstats", **{"query-nodes": True})
        self.drop_zones(ours)
        by_name = lambda nodes: {n["node-name"]: self.shape(n) for n in nodes}  # noqa: E731
        self.assertEqual(by_name(ours), by_name(theirs))


class ServedCase(tidemark.TestCase):
    def setUp(self):
        super().setUp()
        self.disk = self.create("disk.qcow2", "64M")
        self.nbd = self.path("nbd.sock")
        self.server = self.daemon(
            "--blockdev", f"driver=file,node-name=file,filename={self.disk},discard=unmap",
            "--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap",
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
        )  # fmt: skip
        self.qmp = self.server.qmp

    def client(self):
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.go(b"disk", structured=False)
        return client

    def do(self, client, request, offset=0, length=0, payload=b"", error=0, receive=0):
        client.request(request, offset, length, payload=payload)
        self.assertEqual(client.simple_reply()[1], error)
        client.receive(receive)

    def node(self, name):
        nodes = self.qmp.command("query-blockstats", **{"query-nodes": True})
        return next(n for n in nodes if n["node-name"] == name)


class Histograms(ServedCase):
    """block-latency-histogram-set: an export is what a device of a guest is in QEMU."""

    KINDS = "rd", "wr", "flush", "zone_append"

    def histogram(self, kind):
        stats = self.qmp.command("query-blockstats")[0]["stats"]
        return stats.get(f"{kind}_latency_histogram")

    def set(self, **boundaries):
        self.qmp.command("block-latency-histogram-set", id="export", **boundaries)

    def use(self, client, count):
        for _ in range(count):
            self.do(client, WRITE, 0, 512, payload=b"x" * 512)
            self.do(client, READ, 0, 512, receive=512)
            self.do(client, FLUSH)

    def counted(self, kind, count):
        """All requests are in a bin once their replies have been accounted for, which is after
        the client has them.
        """
        tidemark.wait_until(lambda: sum(self.histogram(kind)["bins"]) == count, "the figures")

    def test_boundaries_of_all_kinds(self):
        client = self.client()
        self.use(client, 2)
        for kind in "rd", "wr", "flush":
            self.counted(kind, 2)
        self.set(boundaries=[1, 1000, 10**12])
        for kind in self.KINDS:
            self.assertEqual(
                self.histogram(kind), {"boundaries": [1, 1000, 10**12], "bins": [0, 0, 0, 0]}
            )
        self.use(client, 3)
        for kind in "rd", "wr", "flush":
            self.counted(kind, 3)
            bins = self.histogram(kind)["bins"]
            self.assertEqual((bins[0], bins[3]), (0, 0))
        self.assertEqual(sum(self.histogram("zone_append")["bins"]), 0)

    def test_boundaries_of_one_kind(self):
        self.set(boundaries=[5], boundaries_read=[7, 9])
        self.assertEqual(self.histogram("rd")["boundaries"], [7, 9])
        self.assertEqual(self.histogram("wr")["boundaries"], [5])
        client = self.client()
        self.use(client, 1)
        for kind in "rd", "wr", "flush":
            self.counted(kind, 1)
        self.set(boundaries_write=[3])
        self.assertEqual(self.histogram("wr"), {"boundaries": [3], "bins": [0, 0]})
        self.assertEqual(self.histogram("rd")["boundaries"], [7, 9])
        self.assertEqual(sum(self.histogram("rd")["bins"]), 1)
        self.set(boundaries_flush=[])
        self.assertEqual(self.histogram("flush"), {"boundaries": [], "bins": [0]})
        self.set(boundaries_zap=[4])
        self.assertEqual(self.histogram("zone_append"), {"boundaries": [4], "bins": [0, 0]})

    def test_without_boundaries_the_default_ones_are_back(self):
        before = self.histogram("rd")["boundaries"]
        self.set(boundaries=[5])
        self.set()
        self.assertEqual(self.histogram("rd")["boundaries"], before)
        self.assertIsNone(self.histogram("zone_append"))

    def test_what_is_refused(self):
        self.set(boundaries=[1, 2])
        for wanted, arguments in (
            ("Device 'export' set default boundaries fail", {"boundaries": [0, 1]}),
            ("Device 'export' set default boundaries fail", {"boundaries": [2, 2]}),
            ("Device 'export' set read boundaries fail", {"boundaries-read": [3, 2]}),
            ("Device 'export' set write boundaries fail",
             {"boundaries": [9], "boundaries-write": [3, 2]}),
            ("Device 'export' set flush boundaries fail", {"boundaries-flush": [0]}),
            ("Device 'export' set append write boundaries fail", {"boundaries-zap": [0]}),
            ("Device 'export' set default boundaries fail", {"boundaries": list(range(1, 2000))}),
        ):  # fmt: skip
            with self.assertRaises(QmpError) as caught:
                self.set(**arguments)
            self.assertEqual(caught.exception.desc, wanted)
            for kind in self.KINDS:
                self.assertEqual(self.histogram(kind)["boundaries"], [1, 2])
        for arguments in {"boundaries": ["1"]}, {"boundaries": 1}, {"boundaries": [-1]}:
            with self.assertRaises(QmpError):
                self.set(**arguments)
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-latency-histogram-set", id="none", boundaries=[1])
        self.assertEqual(caught.exception.desc, "Device 'none' not found")
        self.assertEqual(caught.exception.error_class, "DeviceNotFound")

    def test_of_a_node(self):
        """Each operation is timed from the command on, and its kind decides where it counts."""
        client = self.client()
        self.use(client, 40)  # of short operations one in 16 is timed otherwise
        self.assertNotIn("rd_latency_histogram", self.node("disk")["stats"])
        for node in "disk", "file":
            self.qmp.command("block-latency-histogram-set", id=node, boundaries=[1, 10**12])
        before = {n: self.node(n)["stats"] for n in ("disk", "file")}
        self.use(client, 40)
        self.do(client, WRITE_ZEROES, 0, 4096)
        for node in "disk", "file":
            stats = self.node(node)["stats"]
            for kind in "rd", "wr", "flush":
                done = f"{kind}_operations"
                histogram = stats[f"{kind}_latency_histogram"]
                self.assertEqual(histogram["boundaries"], [1, 10**12])
                self.assertEqual(
                    histogram["bins"], [0, stats[done] - before[node][done], 0], (node, kind)
                )
        self.qmp.command("block-latency-histogram-set", id="disk")
        self.assertNotIn("wr_latency_histogram", self.node("disk")["stats"])
        self.assertIn("wr_latency_histogram", self.node("file")["stats"])

    def test_they_change_while_requests_run(self):
        guest = self.own(
            tidemark.Process(
                [*tidemark.tool("img"), "bench", "-f", "raw", "-c", "20000", "-d", "32", "-w",
                 tidemark.nbd_uri(self.nbd, "disk")],
                self.path("bench.log"),
            )
        )  # fmt: skip
        rounds = 0
        while guest.is_running():
            self.set(boundaries=[10**3, 10**4 + rounds, 10**6])
            self.histogram("wr")
            self.set()
            rounds += 1
        self.assertEqual(guest.wait(), 0)
        self.assertGreater(rounds, 10)


class UsedCase(ServedCase):
    def use(self, client):
        self.do(client, WRITE, 1 << 20, 4096, payload=b"x" * 4096)
        self.do(client, WRITE_ZEROES, 2 << 20, 65536)
        for _ in range(3):
            self.do(client, READ, 1 << 20, 512, receive=512)
        self.do(client, TRIM, 2 << 20, 65536)
        self.do(client, FLUSH)
        self.do(client, READ, 1 << 40, 512, error=EINVAL)

    def replies(self):
        stats = self.qmp.command("query-blockstats")[0]["stats"]
        kinds = ("rd", "wr", "flush")
        return sum(sum(stats[f"{kind}_latency_histogram"]["bins"]) for kind in kinds)


class Served(UsedCase):
    def assert_used(self, stats):
        expected = {
            "rd_operations": 3, "rd_bytes": 1536, "wr_operations": 2, "wr_bytes": 4096 + 65536,
            "unmap_operations": 1, "unmap_bytes": 65536, "flush_operations": 1,
            "failed_rd_operations": 0, "failed_wr_operations": 0, "failed_flush_operations": 0,
            "failed_unmap_operations": 0, "wr_highest_offset": (2 << 20) + 65536,
        }  # fmt: skip
        self.assertEqual({k: stats[k] for k in expected}, expected)

    def test_a_node(self):
        self.use(self.client())
        disk = self.node("disk")
        self.assert_used(disk["stats"])
        self.assertEqual(disk["stats"]["invalid_rd_operations"], 0)
        self.assertEqual(disk["parent"]["node-name"], "file")
        self.assertGreater(disk["parent"]["stats"]["wr_bytes"], 4096)
        self.assertEqual(disk["parent"]["driver-specific"]["driver"], "file")

    def test_an_export(self):
        client = self.client()
        before = time.monotonic_ns()
        self.use(client)
        # A reply is counted when it has left, which the client may notice first.
        tidemark.wait_until(lambda: self.replies() == 6, "the last reply to be counted")
        elapsed = time.monotonic_ns() - before
        (export,) = self.qmp.command("query-blockstats")
        self.assertEqual((export["qdev"], export["node-name"]), ("export", "disk"))
        self.assertEqual(export["parent"]["node-name"], "file")
        stats = export["stats"]
        self.assert_used(stats)
        self.assertEqual(stats["invalid_rd_operations"], 1)
        self.assertGreater(stats["idle_time_ns"], 0)
        for kind, count in (("rd", 4), ("wr", 1), ("flush", 1)):
            histogram = stats[f"{kind}_latency_histogram"]
            self.assertEqual(sum(histogram["bins"]), count)
            self.assertEqual(len(histogram["bins"]), len(histogram["boundaries"]) + 1)
            self.assertEqual(histogram["boundaries"], sorted(set(histogram["boundaries"])))
            self.assertGreater(stats[f"{kind}_total_time_ns"], 0)
        times = sum(stats[f"{kind}_total_time_ns"] for kind in ("rd", "wr", "flush", "unmap"))
        # The end of one request may overlap the beginning of the next.
        self.assertLess(times, 2 * elapsed)

    def test_figures_outlive_a_client(self):
        self.use(self.client())
        client = self.client()
        self.use(client)
        (export,) = self.qmp.command("x-tidemark-query-stats", target="export")
        self.assertEqual(export["stats"]["clients"], 2)
        client.sock.close()
        tidemark.wait_until(
            lambda: self.qmp.command("x-tidemark-query-stats", target="export")[0]["stats"][
                "clients"
            ] == 1,
            "a client to be gone",
        )  # fmt: skip
        (export,) = self.qmp.command("x-tidemark-query-stats", target="export")
        self.assertEqual(export["stats"]["client-connections"], 2)
        self.assertEqual(export["stats"]["read-requests"], 6)
        self.assertEqual(export["stats"]["queue-depth"], 0)
        tidemark.wait_until(lambda: self.replies() == 12, "the last reply to be counted")

    def test_a_connection(self):
        first, second = self.client(), self.client()
        self.use(first)
        for _ in range(4):
            second.request(READ, 0, 4096)
        for _ in range(4):
            self.assertEqual(second.simple_reply()[1], 0)
            second.receive(4096)
        found = self.qmp.command("x-tidemark-query-stats", target="connection")
        self.assertEqual([c["stats"]["read-requests"] for c in found], [3, 4])
        self.assertEqual([c["stats"]["write-bytes"] for c in found], [4096, 0])
        self.assertEqual([c["labels"]["client"] for c in found], [f"unix:{os.getpid()}"] * 2)
        self.assertEqual(len({c["labels"]["connection"] for c in found}), 2)
        self.assertEqual(found[0]["stats"]["queue-depth-max"], 1)
        self.assertLessEqual(found[1]["stats"]["queue-depth-max"], 4)

    def test_all_targets(self):
        self.use(self.client())
        found = self.qmp.command("x-tidemark-query-stats")
        targets = {o["target"] for o in found}
        self.assertEqual(targets, {"node", "export", "connection", "reactor"})
        main = next(o for o in found if o["labels"].get("reactor") == "main")
        self.assertGreater(main["stats"]["turns"], 0)
        with self.assertRaises(QmpError):
            self.qmp.command("x-tidemark-query-stats", target="disk")

    def test_a_failing_disk(self):
        node = {"driver": "blkdebug", "node-name": "bad", "image": {"driver": "null-co"},
                "inject-error": [{"event": "none", "iotype": "read", "errno": 5}]}  # fmt: skip
        self.qmp.command("blockdev-add", **node)
        self.qmp.command("block-export-add", type="nbd", id="bad", **{"node-name": "bad"})
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.go(b"bad", structured=False)
        self.do(client, READ, 0, 512, error=5)
        stats = self.node("bad")["stats"]
        self.assertEqual((stats["failed_rd_operations"], stats["rd_operations"]), (1, 0))
        exports = self.qmp.command("query-blockstats")
        stats = next(e for e in exports if e["qdev"] == "bad")["stats"]
        self.assertEqual((stats["failed_rd_operations"], stats["rd_operations"]), (1, 0))


class QueryStats(UsedCase):
    """query-stats in QEMU's form, and the schemas of its figures."""

    def results(self, target, **providers):
        return self.qmp.command("query-stats", target=target, **providers)

    def figures(self, result):
        found = {s["name"]: s["value"] for s in result["stats"]}
        self.assertEqual(len(found), len(result["stats"]), "a name twice")
        return found

    def schema(self, target):
        (found,) = (s for s in self.qmp.command("query-stats-schemas") if s["target"] == target)
        return {s["name"]: s for s in found["stats"]}

    def test_figures_of_each_target(self):
        self.use(self.client())
        tidemark.wait_until(lambda: self.replies() == 6, "the last reply to be counted")
        (export,) = self.results("export")
        self.assertEqual(export["provider"], "tidemark")
        self.assertEqual(export["labels"], {"export": "export", "type": "nbd", "node": "disk"})
        figures = self.figures(export)
        self.assertEqual((figures["read-requests"], figures["write-bytes"]), (3, 4096))
        nodes = self.results("node")
        self.assertEqual([n["labels"]["node"] for n in nodes].count("disk"), 1)
        disk = self.figures(next(n for n in nodes if n["labels"]["node"] == "disk"))
        self.assertGreater(disk["write-bytes"], 0)
        # What the driver counts is with its node, by other names.
        self.assertGreater(disk["qcow2-clusters-allocated"], 0)
        (connection,) = self.results("connection")
        self.assertEqual(connection["labels"]["client"], f"unix:{os.getpid()}")
        self.assertIn("main", [r["labels"]["reactor"] for r in self.results("reactor")])

    def test_every_figure_has_a_schema(self):
        self.use(self.client())
        for target in ("node", "export", "connection", "reactor"):
            schema = self.schema(target)
            for result in self.results(target):
                for name, value in self.figures(result).items():
                    is_list = schema[name]["type"] == "log2-histogram"
                    self.assertEqual(isinstance(value, list), is_list, name)
                    self.assertEqual(schema[name].get("unit") == "seconds", name.endswith("-ns"), name)

    def test_schemas_name_a_figure_once(self):
        for listed in self.qmp.command("query-stats-schemas", provider="tidemark"):
            names = [s["name"] for s in listed["stats"]]
            self.assertEqual(len(set(names)), len(names), listed["target"])
        schema = self.schema("node")
        self.assertEqual(schema["read-operations"], {"name": "read-operations", "type": "cumulative", "exponent": 0})
        self.assertEqual((schema["read-time-ns"]["base"], schema["read-time-ns"]["exponent"]), (10, -9))
        self.assertEqual(schema["read-bytes"]["unit"], "bytes")
        self.assertIn("copy-before-write-copied-bytes", schema)

    def test_histograms_have_a_bin_for_each_power_of_two(self):
        self.use(self.client())
        tidemark.wait_until(lambda: self.replies() == 6, "the last reply to be counted")
        figures = self.figures(self.results("export")[0])
        own = self.qmp.command("x-tidemark-query-stats", target="export")[0]["stats"]["read-latency-ns"]
        bins = figures["read-latency-ns"]
        self.assertEqual(bins, [0] + own["bins"])
        self.assertEqual(figures["read-latency-sum-ns"], own["sum"])
        # Bin i ends below 2^i.
        self.assertEqual(own["boundaries"][0], 2)
        lowest = sum(n * 2 ** (i - 1) for i, n in enumerate(bins) if i > 0)
        self.assertLessEqual(lowest, own["sum"])

    def test_single_figures(self):
        wanted = [{"provider": "tidemark", "names": ["read-bytes", "no-such-figure"]}]
        for result in self.results("node", providers=wanted):
            self.assertEqual([s["name"] for s in result["stats"]], ["read-bytes"])
        self.assertEqual(self.results("node", providers=[]), [])
        self.assertGreater(len(self.results("node", providers=[{"provider": "tidemark"}])[0]["stats"]), 9)

    def test_refused(self):
        for args in ({}, {"target": "vcpu"}, {"target": "node", "providers": [{"provider": "kvm"}]}):
            with self.assertRaises(QmpError, msg=args):
                self.qmp.command("query-stats", **args)


class Drivers(ServedCase):
    def figures(self, group, node):
        found = self.qmp.command("x-tidemark-query-stats", target="node")
        (figures,) = (
            o["stats"] for o in found if o["group"] == group and o["labels"] == {"node": node}
        )
        return figures

    def test_qcow2(self):
        client = self.client()
        before = self.figures("qcow2", "disk")
        self.do(client, WRITE, 1 << 20, 4096, payload=b"x" * 4096)
        for _ in range(5):
            self.do(client, READ, 1 << 20, 512, receive=512)
        self.do(client, FLUSH)
        figures = self.figures("qcow2", "disk")
        grown = {name: value - before[name] for name, value in figures.items()}
        # The cluster, and an L2 table.
        self.assertEqual(grown["clusters-allocated"], 2)
        self.assertEqual(grown["clusters-freed"], 0)
        self.assertEqual(grown["commits"], 1)
        self.assertGreaterEqual(grown["syncs"], 1)
        self.assertGreaterEqual(grown["l2-cache-hits"], 5)
        self.assertLessEqual(grown["l2-cache-misses"], 1)
        self.do(client, TRIM, 1 << 20, 65536)
        self.do(client, FLUSH)
        self.assertEqual(self.figures("qcow2", "disk")["clusters-freed"], 1)

    def test_qcow2_cache_misses(self):
        self.server.stop()
        tidemark.io(self.disk, "write 0 64M", fmt="qcow2")
        server = self.daemon(
            "--blockdev", f"driver=file,node-name=file,filename={self.disk}",
            "--blockdev", "driver=qcow2,node-name=disk,file=file",
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            "--export", "type=nbd,id=export,node-name=disk,name=disk",
            name="again",
        )  # fmt: skip
        self.qmp = server.qmp
        client = self.client()
        before = self.figures("qcow2", "disk")
        for _ in range(3):
            self.do(client, READ, 0, 512, receive=512)
        after = self.figures("qcow2", "disk")
        self.assertEqual(after["l2-cache-misses"] - before["l2-cache-misses"], 1)
        self.assertEqual(after["l2-cache-hits"] - before["l2-cache-hits"], 2)

    def test_copy_before_write(self):
        self.qmp.command("blockdev-add", driver="null-co", size=64 << 20, **{"node-name": "tmp"})
        cbw = {"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "tmp"}
        self.qmp.command("blockdev-add", **cbw)
        self.qmp.command("blockdev-replace", export="export", **{"node-name": "cbw"})
        client = self.client()
        for offset in (0, 512, 1 << 20):
            self.do(client, WRITE, offset, 512, payload=b"x" * 512)
        figures = self.figures("copy-before-write", "cbw")
        expected = {"copied-clusters": 2, "copied-bytes": 2 << 12, "target-used": 2 << 12,
                    "waits": 2, "timeouts": 0, "broken": 0}  # fmt: skip
        self.assertEqual(figures, expected)

    def test_nbd_client(self):
        remote = {"driver": "nbd", "node-name": "remote", "export": "disk",
                  "server": {"type": "unix", "path": self.nbd}}  # fmt: skip
        self.qmp.command("blockdev-add", **remote)
        export = {"node-name": "remote", "writable": True}
        self.qmp.command("block-export-add", type="nbd", id="remote", **export)
        client = RawClient(self.nbd)
        self.addCleanup(client.sock.close)
        client.go(b"remote", structured=False)
        before = self.figures("nbd", "remote")
        self.do(client, WRITE, 0, 512, payload=b"x" * 512)
        self.do(client, READ, 0, 512, receive=512)
        after = self.figures("nbd", "remote")
        self.assertEqual(after["requests"] - before["requests"], 2)
        self.assertEqual((after["connected"], after["reconnects"]), (1, 0))
        self.assertEqual(after["requests-in-flight"], 0)
