# SPDX-License-Identifier: Apache-2.0
"""qom-list, qom-get, qom-set and their kin: answers are those of QEMU's daemon; what is changed has
an effect; secrets are not shown."""

import json
import time

import tidemark
import tls_creds
from nbd_raw import RawClient
from same_answers import SameAnswersCase

# Of QEMU's types and options, what is not here: see docs/conformance.md.
OPTIONS_OF_QEMU = {"thread-pool-min", "thread-pool-max", "loaded", "addr"}
OWN_OPTIONS = {"x-ktls"}


class QomCase(SameAnswersCase):
    def setUp(self):
        super().setUp()
        for more in (
            {"qom-type": "iothread", "id": "t", "poll-max-ns": 7},
            {"qom-type": "secret", "id": "s", "data": "hunter2"},
            {"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 1000}},
            {"qom-type": "authz-simple", "id": "as", "identity": "CN=x"},
            {
                "qom-type": "authz-list",
                "id": "al",
                "policy": "deny",
                "rules": [{"match": "CN=*", "policy": "allow", "format": "glob"}],
            },
        ):
            self.same("object-add", more)

    def known(self, answer):
        """Lists in any order, without options that one of the two does not have."""
        if isinstance(answer.get("return"), list):
            apart = OPTIONS_OF_QEMU | OWN_OPTIONS
            kept = [p for p in answer["return"] if p.get("name") not in apart]
            answer["return"] = sorted(kept, key=json.dumps)
        return answer


class SameAsQemu(QomCase):
    def test_lists(self):
        for path in (
            "/", "/objects", "/objects/", "//objects", "objects", "t", "objects/t", "/objects/t",
            "/objects/s", "/objects/tg", "/objects/as", "/objects/al", "tg",
            "/nope", "x", "", "/objects/t/type", "/objects/nope",
        ):  # fmt: skip
            self.same("qom-list", {"path": path}, self.known)
        for name in (
            "iothread", "secret", "throttle-group", "tls-creds-x509", "tls-creds-psk",
            "tls-creds-anon", "authz-simple", "authz-list", "authz-list-file",
            "nope", "object", "container", "user-creatable",
        ):  # fmt: skip
            self.same("qom-list-properties", {"typename": name}, self.known)
        self.same("qom-list", {})
        self.same("qom-list-types", {"implements": "iothread"})
        self.same("qom-list-types", {"implements": "nope"})

    def test_our_types_are_listed_as_by_qemu(self):
        for arguments in (
            {},
            {"abstract": True},
            {"implements": "user-creatable"},
            {"implements": "user-creatable", "abstract": True},
            {"implements": "object"},
            {"implements": "authz"},
            {"implements": "authz", "abstract": True},
        ):
            ours = self.ours.command("qom-list-types", **arguments)
            theirs = self.qemus.command("qom-list-types", **arguments)
            for entry in ours:
                self.assertIn(entry, theirs, arguments)
            mine = [t["name"] for t in ours]
            missing = [t for t in theirs if t["name"] not in mine and self.is_ours(t)]
            self.assertEqual(missing, [], arguments)

    def is_ours(self, entry):
        kinds = {"authz", "tls-creds", "iothread", "throttle-group", "container", "secret"}
        return entry["name"] in kinds

    def test_values(self):
        for path, name in (
            ("/objects/t", "type"), ("/objects/t", "poll-max-ns"), ("/objects/t", "poll-grow"),
            ("/objects/t", "nope"), ("/objects/nope", "nope"), ("t", "aio-max-batch"),
            ("/objects/s", "format"), ("/objects/s", "file"), ("/objects/tg", "limits"),
            ("/objects/tg", "x-iops-total"), ("/objects/as", "identity"),
            ("/objects/al", "policy"), ("/objects/al", "rules"), ("/objects", "t"),
            ("/", "objects"), ("/", "type"), ("/objects", "type"), ("/objects", "nope"),
        ):  # fmt: skip
            self.same("qom-get", {"path": path, "property": name})

    def test_chardevs(self):
        self.same("chardev-add", {"id": "n", "backend": {"type": "null", "data": {}}})
        self.same("chardev-add", {"id": "r", "backend": {"type": "ringbuf", "data": {}}})
        address = {"type": "unix", "data": {"path": "chardev.sock"}}
        socket = {"addr": address, "server": True, "wait": False}
        self.same("chardev-add", {"id": "so", "backend": {"type": "socket", "data": socket}})
        for path in "/chardevs/n", "n", "/chardevs/r", "/chardevs/so", "/chardevs/nope", "n/x":
            self.same("qom-list", {"path": path}, self.known)
        for path, name in (
            ("/chardevs/n", "type"), ("/chardevs/r", "type"), ("so", "connected"), ("so", "nope"),
            ("n", "connected"), ("/chardevs", "so"), ("/chardevs", "nope"), ("/", "chardevs"),
        ):  # fmt: skip
            self.same("qom-get", {"path": path, "property": name})
        for path, name in ("n", "type"), ("so", "connected"), ("so", "nope"):
            self.same("qom-set", {"path": path, "property": name, "value": True})
        self.same("chardev-remove", {"id": "n"})
        self.same("qom-list", {"path": "/chardevs/n"})

    def test_changes(self):
        for path, name, value in (
            ("/objects/t", "poll-max-ns", 5),
            ("/objects/t", "poll-max-ns", -5),
            ("/objects/t", "poll-max-ns", "x"),
            ("/objects/t", "nope", "x"),
            ("/objects/t", "type", "x"),
            ("/objects/nope", "type", "x"),
            ("/objects", "t", "x"),
            ("/objects", "type", "x"),
            ("/objects/tg", "limits", {"iops-total": 10}),
            ("/objects/tg", "limits", {"iops-nope": 10}),
            ("/objects/tg", "limits", {"iops-read": 10}),
            ("/objects/tg", "limits", {"iops-total": 0, "iops-read": 10, "iops-read-max": 5}),
            ("/objects/tg", "limits", {"iops-total-max-length": 0}),
            ("/objects/tg", "limits", 5),
            ("/objects/tg", "x-iops-total", 5),
            ("/objects/tg", "limits", {"bps-total": 1000000, "bps-total-max": 2000000,
                                       "bps-total-max-length": 3, "iops-size": 4096}),
            ("/objects/as", "identity", "CN=y"),
            ("/objects/as", "identity", 5),
            ("/objects/al", "policy", "allow"),
            ("/objects/al", "policy", "nope"),
            ("/objects/al", "rules", []),
            ("/objects/al", "rules", [{"match": "a", "policy": "deny"}]),
        ):  # fmt: skip
            self.same("qom-set", {"path": path, "property": name, "value": value})
        for path, name in (
            ("t", "poll-max-ns"), ("tg", "limits"), ("as", "identity"), ("al", "policy"),
        ):  # fmt: skip
            self.same("qom-get", {"path": path, "property": name})
        answer = self.alone("qom-get", {"path": "al", "property": "rules"})
        self.assertEqual(answer["return"], [{"match": "a", "policy": "deny"}])

    def test_objects(self):
        """Adding and removing, with every mistake."""
        for command, arguments in (
            ("object-add", {"qom-type": "iothread", "id": "t"}),
            ("object-add", {"qom-type": "iothread", "id": "1t"}),
            ("object-add", {"qom-type": "iothread", "id": ""}),
            ("object-add", {"qom-type": "iothread"}),
            ("object-add", {"id": "x"}),
            ("object-add", {"qom-type": "nope", "id": "x"}),
            ("object-add", {"qom-type": "iothread", "id": "x", "nope": 1}),
            ("object-add", {"qom-type": "iothread", "id": "x", "poll-max-ns": "1"}),
            ("object-add", {"qom-type": "secret", "id": "x"}),
            ("object-add", {"qom-type": "secret", "id": "x", "data": "a", "file": "b"}),
            ("object-add", {"qom-type": "secret", "id": "x", "file": "/nonexistent"}),
            ("object-add", {"qom-type": "secret", "id": "x", "data": "!", "format": "nope"}),
            ("object-add", {"qom-type": "authz-simple", "id": "x"}),
            ("object-add", {"qom-type": "throttle-group", "id": "x",
                            "limits": {"iops-total": 1, "iops-read": 1}}),
            ("object-del", {"id": "nope"}),
            ("object-del", {}),
            ("object-del", {"id": "t"}),
            ("object-del", {"id": "t"}),
            ("object-add", {"qom-type": "iothread", "id": "t"}),
            ("blockdev-add", {"driver": "throttle", "node-name": "n", "throttle-group": "tg",
                              "file": {"driver": "null-co", "size": 65536}}),
            ("object-del", {"id": "tg"}),
            ("blockdev-del", {"node-name": "n"}),
            ("object-del", {"id": "tg"}),
        ):  # fmt: skip
            self.same(command, arguments)


class Secrets(QomCase):
    def test_no_command_shows_a_secret(self):
        answer = self.alone("qom-get", {"path": "s", "property": "data"})
        self.assertEqual(
            answer["error"], {"class": "GenericError", "desc": "Property 'secret.data' is not readable"}
        )
        for command, arguments in (
            ("qom-list", {"path": "s"}),
            ("qom-get", {"path": "s", "property": "format"}),
            ("qom-set", {"path": "s", "property": "data", "value": "x"}),
        ):
            self.assertNotIn("hunter2", json.dumps(self.alone(command, arguments)))


class Effects(tidemark.TestCase):
    def test_limits_change_while_a_guest_waits(self):
        nbd = self.path("nbd")
        qmp = self.daemon().qmp
        qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
        qmp.command("object-add", qom_type="throttle-group", id="tg", limits={"iops-total": 1})
        qmp.command(
            "blockdev-add", driver="throttle", node_name="n", throttle_group="tg",
            file={"driver": "null-co", "size": 1 << 20},
        )  # fmt: skip
        qmp.command("block-export-add", type="nbd", id="e", node_name="n", writable=True)
        words = [w for i in range(60) for w in ("-c", f"write {i * 4}k 4k")]
        guest = self.own(
            tidemark.Process(
                [*tidemark.tool("io"), "-f", "raw", *words, tidemark.nbd_uri(nbd, "n")],
                self.path("guest.log"),
            )
        )
        begin = time.monotonic()
        time.sleep(0.3)
        qmp.command("qom-set", path="tg", property="limits", value={"iops-total": 0})
        guest.wait(30)
        self.assertLess(time.monotonic() - begin, 20)

    def test_a_thread_looks_for_work_before_it_sleeps(self):
        """poll-max-ns, given when the thread is made, and changed later."""
        nbd = self.path("nbd")
        qmp = self.daemon().qmp
        qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": nbd}})
        second = 10**9
        for name, options in ("never", {}), ("always", {"poll_max_ns": second}), ("later", {}):
            qmp.command("object-add", qom_type="iothread", id=name, **options)
            qmp.command("blockdev-add", driver="null-co", node_name=f"n-{name}", size=1 << 20)
            qmp.command(
                "block-export-add", type="nbd", id=name, node_name=f"n-{name}", name=name,
                iothread=name,
            )  # fmt: skip

        def polled(name):
            with RawClient(nbd) as client:
                client.go(name.encode())
                for _ in range(100):
                    client.request(0, 0, 4096)
                    client.chunks()
            (stats,) = [
                r["stats"]
                for r in qmp.command("x-tidemark-query-stats", target="reactor")
                if r["labels"]["reactor"] == name
            ]
            return stats["polled"]

        self.assertEqual((polled("never"), polled("later")), (0, 0))
        self.assertGreater(polled("always"), 0)
        qmp.command("qom-set", path="later", property="poll-max-ns", value=second)
        self.assertGreater(polled("later"), 0)
        self.assertEqual(polled("never"), 0)

    def test_who_is_allowed_changes_for_the_next_client(self):
        keys = {"alice": "aa" * 16, "bob": "bb" * 16}
        creds = tls_creds.make_psk(self.dir, "psk", **keys)
        nbd = self.path("nbd")
        qmp = self.daemon().qmp
        qmp.command("object-add", qom_type="tls-creds-psk", id="c", endpoint="server", dir=creds)
        qmp.command("object-add", qom_type="authz-list", id="al", policy="deny")
        qmp.command(
            "nbd-server-start", addr={"type": "unix", "data": {"path": nbd}},
            tls_creds="c", tls_authz="al",
        )  # fmt: skip
        qmp.command("blockdev-add", driver="null-co", node_name="n", size=1 << 20)
        qmp.command("block-export-add", type="nbd", id="e", node_name="n")

        def connects(user):
            return tidemark.img(
                "info", "--object",
                f"tls-creds-psk,id=c,endpoint=client,dir={creds},username={user}",
                "--image-opts",
                f"driver=nbd,server.type=unix,server.path={nbd},export=n,tls-creds=c",
                check=False,
            ).returncode == 0  # fmt: skip

        self.assertFalse(connects("alice"))
        rules = [{"match": "al*", "policy": "allow", "format": "glob"}]
        qmp.command("qom-set", path="al", property="rules", value=rules)
        self.assertTrue(connects("alice"))
        self.assertFalse(connects("bob"))
        qmp.command("qom-set", path="al", property="policy", value="allow")
        self.assertTrue(connects("bob"))
