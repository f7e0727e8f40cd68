# SPDX-License-Identifier: Apache-2.0
"""The daemon's monitor: every command, every kind of error, hostile input, events."""

import contextlib
import glob
import json
import os
import random
import re
import socket
import sys
import time

import tidemark
from qmp import QmpError

SOURCE = os.environ.get("TIDEMARK_SOURCE", ".")


class QmpTest(tidemark.TestCase):
    """A daemon with a qcow2 image as node "disk"."""

    def setUp(self):
        super().setUp()
        self.image = self.create("disk.qcow2")
        self.server = self.daemon(
            "--blockdev",
            f"driver=file,node-name=file,filename={self.image}",
            "--blockdev",
            "driver=qcow2,node-name=disk,file=file",
        )
        self.qmp = self.server.qmp
        self.nbd = self.path("nbd.sock")

    def refused(self, command, wanted, error_class="GenericError", /, **arguments):
        """The command fails with exactly that sentence."""
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(command, **arguments)
        self.assertEqual(caught.exception.desc, wanted)
        self.assertEqual(caught.exception.error_class, error_class)

    def start_nbd(self):
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": self.nbd}})

    def export(self, export_id="export", node="disk", **more):
        self.qmp.command("block-export-add", type="nbd", id=export_id, node_name=node, **more)

    def exports(self):
        return {e["id"]: e for e in self.qmp.command("query-block-exports")}

    def uri(self, name="disk"):
        return tidemark.nbd_uri(self.nbd, name)


class SessionTest(QmpTest):
    def test_greeting_has_the_form_of_qemus(self):
        with self.server.connect(negotiate=False) as qmp:
            greeting = qmp.greeting["QMP"]
        self.assertEqual(sorted(greeting), ["capabilities", "version"])
        self.assertEqual(sorted(greeting["version"]), ["package", "qemu"])
        self.assertEqual(sorted(greeting["version"]["qemu"]), ["major", "micro", "minor"])
        self.assertEqual(greeting["version"], self.qmp.command("query-version"))

    def test_commands_wait_for_the_negotiation(self):
        with self.server.connect(negotiate=False) as qmp:
            for name in "query-version", "no-such-command":
                self.assertEqual(
                    qmp.execute(name)["error"],
                    {
                        "class": "CommandNotFound",
                        "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
                    },
                )
            self.assertEqual(qmp.execute("qmp_capabilities"), {"return": {}})
            self.assertIn("return", qmp.execute("query-version"))

    def test_negotiation_happens_once(self):
        self.refused(
            "qmp_capabilities",
            "Capabilities negotiation is already complete, command ignored",
            "CommandNotFound",
        )

    def test_capabilities_not_offered_are_refused(self):
        with self.server.connect(negotiate=False) as qmp:
            self.assertEqual(qmp.greeting["QMP"]["capabilities"], ["oob"])
            answer = qmp.execute("qmp_capabilities", {"enable": ["x"]})
            self.assertIn("does not accept value 'x'", answer["error"]["desc"])
            self.assertIn("return", qmp.execute("qmp_capabilities", {"enable": []}))

    def test_the_id_is_echoed(self):
        for value in 7, "x", None, {"a": [1, 2.5]}, [], -1, 2**64 - 1, float(2**64), "\u00e9\U0001f600\n\0":
            answer = self.qmp.execute("query-block-exports", id=value)
            self.assertEqual(answer, {"return": [], "id": value})
            answer = self.qmp.execute("no-such", id=value)
            self.assertEqual(answer["id"], value)

    def test_unknown_command(self):
        self.refused("eject", "The command eject has not been found", "CommandNotFound")

    def test_malformed_requests(self):
        for request, wanted in (
            ("{}", "QMP input lacks member 'execute'"),
            ('{"arguments": {}}', "QMP input lacks member 'execute'"),
            ('{"execute": 5}', "QMP input member 'execute' must be a string"),
            ('{"execute": "quit", "x": 1}', "QMP input member 'x' is unexpected"),
            ('{"execute": "quit", "arguments": []}', "QMP input member 'arguments' must be an object"),
            ('{"execute": "quit", "arguments": null}', "QMP input member 'arguments' must be an object"),
            ("[]", "QMP input must be a JSON object"),
            ('"quit"', "QMP input must be a JSON object"),
            ("5\n", "QMP input must be a JSON object"),
        ):
            with self.subTest(request):
                self.qmp.send_raw(request)
                answer = self.qmp.receive_answer()
                self.assertEqual(answer, {"error": {"class": "GenericError", "desc": wanted}})

    def test_actions_of_wrong_types(self):
        for action in (None, 5, [], {}, {"type": None}, {"type": 5, "data": {}}, {"type": ["abort"]}):
            with self.subTest(action):
                answer = self.qmp.execute("transaction", {"actions": [action]})
                self.assertIn("actions[0]", answer["error"]["desc"])

    def test_garbage_is_an_error_and_the_session_goes_on(self):
        for garbage in (
            b"nonsense\n",
            b'{"a" 1}',
            b'{"execute": "query-version"]\n',
            b'"unfinished\n',
            b"\xff",
            b'{"half": \xff',
            b"\x00\n",
            b"[" * 100000 + b"\n",
            b'{"a":' * 100000 + b"\n",
            b"[" + b"0," * 1_100_000 + b"\n",
            b"[" + b"{}," * 400_000 + b"\n",
            b'{"execute": "query-version",}',
            b'{"execute": "query-version", "execute": "query-version"}',
            b'{"execute": "query-version", "id": 01}\n',
            b'{"execute": "query-version", "id": "\\ud800"}',
            b'{"execute": "\xc3("}\n',
        ):
            with self.subTest(garbage[:20]):
                self.qmp.send_raw(garbage)
                self.assertIn("JSON", self.qmp.receive_answer()["error"]["desc"])
                self.assertIn("qemu", self.qmp.command("query-version"))

    def test_a_name_with_a_nul_in_it_is_not_cut_there(self):
        answer = self.qmp.execute("query-version\0x")
        self.assertEqual(answer["error"]["class"], "CommandNotFound")
        answer = self.qmp.execute("query-version", **{"id\0x": 1})
        self.assertEqual(answer["error"]["class"], "GenericError")

    def test_large_messages_are_taken(self):
        text = "x" * 5_000_000
        self.assertEqual(self.qmp.execute("query-block-exports", id=text)["id"], text)
        deep = "[" * 1023 + "]" * 1023
        self.addCleanup(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(3000)
        self.qmp.send_raw('{"execute": "query-block-exports", "id": %s}\n' % deep)
        self.assertEqual(json.dumps(self.qmp.receive_answer()["id"]), deep)
        with self.assertRaises(QmpError) as caught:
            self.qmp.command(
                "block-dirty-bitmap-merge",
                node="disk",
                target="none",
                bitmaps=[{"node": "disk", "name": f"b{i}"} for i in range(20_000)],
            )
        self.assertIn("'none'", caught.exception.desc)

    def test_deep_messages_are_taken_or_refused(self):
        """Objects, which need more of a stack than arrays; up to the limit of the reader."""
        self.addCleanup(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(5000)
        request = '{"execute": "query-version", "id": %s}\n'
        deep = '{"a": ' * 1023 + "1" + "}" * 1023
        self.qmp.send_raw(request % deep)
        self.assertEqual(json.dumps(self.qmp.receive_answer()["id"]), deep)
        node = '{"driver": "raw", "file": '
        for levels in (60, 80, 1000):
            nodes = node * levels + '{"driver": "null-co"}' + "}" * levels
            nodes = nodes.replace("{", '{"node-name": "n", ', 1)
            for command, arguments in (
                ("blockdev-add", nodes),
                ("blockdev-reopen", '{"options": [%s]}' % nodes),
                ("transaction", '{"actions": %s}' % ("[" * levels + "]" * levels)),
                ("object-add", '{"qom-type": "iothread", "a": %s}' % nodes),
            ):
                self.qmp.send_raw('{"execute": "%s", "arguments": %s}\n' % (command, arguments))
                error = self.qmp.receive_answer()["error"]
                if command.startswith("blockdev"):
                    self.assertRegex(error["desc"], "nested more than [0-9]+ levels deep")

    def test_random_bytes_do_no_harm(self):
        generator = random.Random(1)
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(self.server.qmp_path)
                sock.settimeout(5)
                sock.recv(4096)
                alphabet = b'{}[]",:\\ \n\xff0aeE-.\'nul'
                try:
                    sock.sendall(bytes(generator.choice(alphabet) for _ in range(5000)))
                except ConnectionError:
                    pass
        self.assertIn("qemu", self.qmp.command("query-version"))

    def test_requests_may_arrive_in_pieces_and_together(self):
        for byte in b'{"execute": "query-block-exports"}':
            self.qmp.send_raw(bytes([byte]))
        self.assertEqual(self.qmp.receive_answer(), {"return": []})
        self.qmp.send_raw('{"execute": "query-block-exports", "id": 1}' * 50)
        for _ in range(50):
            self.assertEqual(self.qmp.receive_answer(), {"return": [], "id": 1})

    def hung_server(self):
        """A monitor whose command waits for an NBD server that says nothing."""
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(self.path("silent"))
        listener.listen()
        return listener, {
            "driver": "nbd",
            "node-name": "n",
            "server": {"type": "unix", "path": self.path("silent")},
        }

    def test_requests_out_of_band_overtake_others(self):
        listener, node = self.hung_server()
        with self.server.connect(negotiate=False) as qmp:
            qmp.execute("qmp_capabilities", {"enable": ["oob"]})
            qmp.send_raw(json.dumps({"execute": "blockdev-add", "arguments": node, "id": 1}))
            peer = listener.accept()[0]
            for number in range(2, 6):
                qmp.send_raw(json.dumps({"execute": "query-version", "id": number}))
            qmp.send_raw('[]\n{"exec-oob": "query-version", "id": 6}')
            answer = qmp.receive_answer()
            self.assertEqual(answer["id"], 6)
            self.assertEqual(
                answer["error"]["desc"], "The command query-version does not support OOB"
            )
            peer.close()
            answers = [qmp.receive_answer() for _ in range(6)]
            self.assertEqual([a.get("id") for a in answers], [1, 2, 3, 4, 5, None])
            self.assertIn("error", answers[0])
            self.assertIn("qemu", answers[4]["return"])

    def test_at_most_eight_requests_wait(self):
        listener, node = self.hung_server()
        with self.server.connect(negotiate=False) as qmp:
            qmp.execute("qmp_capabilities", {"enable": ["oob"]})
            qmp.send_raw(json.dumps({"execute": "blockdev-add", "arguments": node}))
            peer = listener.accept()[0]
            requests = ({"execute": "query-version", "id": number} for number in range(1000))
            qmp.send_raw("".join(map(json.dumps, requests)))
            qmp.send_raw('{"exec-oob": "query-version", "id": -1}')
            qmp.sock.settimeout(0.3)
            with self.assertRaises(socket.timeout):
                qmp.receive()
            qmp.sock.settimeout(20)
            peer.close()
            numbers = [qmp.receive_answer().get("id") for _ in range(1002)]
            self.assertEqual(sorted(n for n in numbers if n is not None), list(range(-1, 1000)))
            self.assertEqual([n for n in numbers if n is not None and n >= 0], list(range(1000)))

    def test_a_client_that_leaves_takes_its_requests_along(self):
        listener, node = self.hung_server()
        with self.server.connect(negotiate=False) as qmp:
            qmp.execute("qmp_capabilities", {"enable": ["oob"]})
            qmp.send_raw(json.dumps({"execute": "blockdev-add", "arguments": node}))
            peer = listener.accept()[0]
            qmp.send_raw('{"execute": "object-add", "arguments": {"qom-type": "iothread", "id": "t"}}')
            self.assertIn("qemu", self.qmp.command("query-version"))
        time.sleep(0.1)
        peer.close()
        self.qmp.command("object-add", qom_type="iothread", id="t")

    def test_forms_of_requests_out_of_band(self):
        """As QEMU's storage daemon answers."""
        with self.server.connect(negotiate=False) as qmp:
            for request, wanted in (
                ('{"exec-oob": "qmp_capabilities"}', "QMP input member 'exec-oob' is unexpected"),
                ('{"execute": "qmp_capabilities", "arguments": {"enable": ["oob", "oob"]}}', None),
                ('{"exec-oob": 5}', "QMP input member 'exec-oob' must be a string"),
                ('{"exec-oob": "query-version", "x": 1}', "QMP input member 'x' is unexpected"),
                ('{"arguments": {}}', "QMP input lacks member 'execute'"),
                ('{"exec-oob": "qmp_capabilities"}',
                 "The command qmp_capabilities does not support OOB"),
                ('{"exec-oob": "query-version", "arguments": []}',
                 "QMP input member 'arguments' must be an object"),
                ('{"execute": "query-version", "exec-oob": "query-version"}',
                 "QMP input member 'execute' clashes with 'exec-oob'"),
                ('{"exec-oob": "nope"}', "The command nope has not been found"),
            ):  # fmt: skip
                qmp.send_raw(request)
                answer = qmp.receive_answer()
                self.assertEqual(answer.get("error", {}).get("desc"), wanted)

    def test_single_quotes_are_taken_as_qemu_does(self):
        self.qmp.send_raw("{'execute': 'query-block-exports'}")
        self.assertEqual(self.qmp.receive_answer(), {"return": []})

    def test_one_client_too_many_is_told(self):
        sessions = 511
        with contextlib.ExitStack() as stack:
            for _ in range(sessions):
                stack.enter_context(self.server.connect(negotiate=False))
            with self.server.connect(negotiate=False) as refused:
                self.assertEqual(
                    refused.greeting,
                    {"error": {"class": "GenericError", "desc": "There are 512 monitor clients already"}},
                )
                with self.assertRaises(EOFError):
                    refused.receive()
            tidemark.wait_until(
                lambda: "There are 512 monitor clients already" in self.server.log(), "the log"
            )
        self.assertIn("qemu", self.qmp.command("query-version"))

    def test_clients_come_and_go(self):
        for _ in range(50):
            with self.server.connect() as qmp:
                qmp.command("query-version")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.server.qmp_path)
            sock.sendall(b'{"execute": "qmp_capab')
        self.assertIn("qemu", self.qmp.command("query-version"))

    def test_a_client_that_does_not_read_stops_nobody(self):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.server.qmp_path)
            sock.setblocking(False)
            request = b'{"execute": "query-qmp-schema"}' * 2000
            try:
                sock.sendall(b'{"execute": "qmp_capabilities"}' + request)
            except BlockingIOError:
                pass
            self.start_nbd()
            for _ in range(100):
                self.export()
                self.qmp.command("block-export-del", id="export")
            self.assertEqual(len(self.qmp.events), 100)
        self.assertIn("qemu", self.qmp.command("query-version"))

    def test_a_client_may_send_all_before_it_reads(self):
        count = 4000
        with self.server.connect() as qmp:
            qmp.send_raw((b'{"execute": "query-jobs"}' + bytes(b" " * 103)) * count)
            answers = [qmp.receive_answer() for _ in range(count)]
        self.assertEqual(answers, [{"return": []}] * count)

    def test_long_answers_that_wait_are_not_held_against_the_client(self):
        for n in range(1100):
            self.qmp.command("blockdev-add", driver="null-co", node_name=f"n{n}")
        self.start_nbd()
        with self.server.connect() as qmp:
            qmp.send_raw(b'{"execute": "query-named-block-nodes"}' * 2)
            qmp.send_raw(b'{"execute": "query-blockstats", "arguments": {"query-nodes": true}}')
            # In the socket and in memory wait 0.5 MB each, then 1 MB more.
            time.sleep(0.5)
            self.export()
            self.qmp.command("block-export-del", id="export")
            self.qmp.command("query-version")
            for _ in range(3):
                self.assertGreater(len(qmp.receive_answer()["return"]), 1000)

    def test_quit_answers_then_ends(self):
        self.assertEqual(self.server.quit(), 0)
        self.assertFalse(os.path.exists(self.server.qmp_path))


class SchemaTest(QmpTest):
    def setUp(self):
        super().setUp()
        self.schema = {s["name"]: s for s in self.qmp.command("query-qmp-schema")}

    def test_commands_are_those_of_the_schema(self):
        commands = [c["name"] for c in self.qmp.command("query-commands")]
        self.assertEqual(
            sorted(commands),
            sorted(n for n, s in self.schema.items() if s["meta-type"] == "command"),
        )

    def test_the_table_of_commands_is_sorted(self):
        commands = [c["name"] for c in self.qmp.command("query-commands")]
        for one, next_one in zip(commands, commands[1:]):
            self.assertLess(one, next_one, "order of qmp_commands in src/qmp/table.c")

    def test_all_kinds_of_jobs_are_in_the_schema(self):
        kinds = []
        for path in glob.glob(os.path.join(SOURCE, "src", "job", "*.c")):
            with open(path, encoding="utf-8") as source:
                kinds += re.findall(r'struct job_driver \w+ = \{\s*\.type = "(.*?)"', source.read())
        self.assertIn("backup", kinds)
        self.assertEqual(
            sorted(set(kinds) - set(self.schema["JobType"]["values"])),
            [],
            "no value of qmp_type_job_type in src/qmp/job_types.c",
        )

    def check(self, type_name, value, path=""):
        """Whether a value is what the schema says."""
        entry = self.schema[type_name]
        meta = entry["meta-type"]
        if meta == "builtin":
            wanted = {"string": str, "boolean": bool, "int": int, "number": (int, float)}
            if entry["json-type"] != "value":
                self.assertIsInstance(value, wanted[entry["json-type"]], path)
        elif meta == "enum":
            self.assertIn(value, [m["name"] for m in entry["members"]], path)
        elif meta == "array":
            self.assertIsInstance(value, list, path)
            for i, element in enumerate(value):
                self.check(entry["element-type"], element, f"{path}[{i}]")
        elif meta == "alternate":
            kinds = {self.schema[m["type"]]["meta-type"]: m["type"] for m in entry["members"]}
            self.check(kinds["array" if isinstance(value, list) else "builtin"], value, path)
        else:
            self.assertEqual(meta, "object", path)
            members = {m["name"]: m for m in entry["members"]}
            for variant in entry.get("variants", []):
                if value[entry["tag"]] == variant["case"]:
                    more = self.schema[variant["type"]]["members"]
                    members.update({m["name"]: m for m in more})
            self.assertLessEqual(set(value), set(members), path)
            for name, member in members.items():
                if name in value:
                    self.check(member["type"], value[name], f"{path}.{name}")
                else:
                    self.assertIn("default", member, f"{path}.{name} is missing")

    def test_answers_are_what_the_schema_says(self):
        self.start_nbd()
        self.export()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        for name, entry in self.schema.items():
            if name.startswith("query-"):
                with self.subTest(name):
                    args = {"target": "node"} if name == "query-stats" else {}
                    self.check(entry["ret-type"], self.qmp.command(name, **args))

    def test_events_are_what_the_schema_says(self):
        self.start_nbd()
        self.export()
        self.qmp.command("block-export-del", id="export")
        event = self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.check(self.schema["BLOCK_EXPORT_DELETED"]["arg-type"], event["data"])


class NodeTest(QmpTest):
    maxDiff = None

    def test_add_and_delete(self):
        self.qmp.command("blockdev-add", driver="null-co", node_name="null", size=65536)
        self.assertEqual(self.qmp.node("null")["image"]["virtual-size"], 65536)
        self.qmp.command("blockdev-del", node_name="null")
        self.assertIsNone(self.qmp.node("null"))

    def test_query_tells_what_qemu_tells(self):
        overlay = self.path("overlay.qcow2")
        self.server.quit()
        tidemark.img("create", "-q", "-f", "qcow2", "-b", self.image, "-F", "qcow2", overlay)
        options = (
            "--blockdev",
            f"driver=file,node-name=file,filename={overlay}",
            "--blockdev",
            "driver=qcow2,node-name=disk,file=file,read-only=on",
        )
        answers = []
        for name, program in ("ours", None), ("qemu", [tidemark.qemu("qemu-storage-daemon")]):
            server = self.daemon(*options, name=name, program=program)
            answers.append([server.qmp.node("disk"), server.qmp.node("file")])
            nested = [
                n
                for n in server.qmp.command("query-named-block-nodes")
                if n["node-name"] == "disk"
            ]
            answers[-1].append(nested[0]["image"]["backing-image"]["filename"])
            server.quit()
        for node in answers[0][:2] + answers[1][:2]:
            # A file's length in whole sectors, what QEMU reports of files since 8.0, and flags that
            # it leaves out later.
            if node["drv"] == "file":
                node["image"].pop("virtual-size", None)
                node["image"].pop("format-specific", None)
            node["image"].pop("dirty-flag", None)
            node.pop("active", None)  # since 10.0
            # Here the depth of the chain; 0 in QEMU's storage daemon, whatever it is.
            node.pop("backing_file_depth")
        self.assertEqual(*answers)

    def test_errors(self):
        self.refused(
            "blockdev-add", "'node-name' must be specified for the root node", driver="null-co"
        )
        self.refused(
            "blockdev-add",
            "Parameter 'driver' does not accept value 'bogus'",
            driver="bogus",
            node_name="x",
        )
        self.refused("blockdev-add", "Parameter 'driver' is missing", node_name="x")
        self.refused(
            "blockdev-add",
            "Duplicate nodes with node-name='disk'",
            driver="null-co",
            node_name="disk",
        )
        self.refused("blockdev-del", "Failed to find node with node-name='x'", node_name="x")
        self.refused("blockdev-del", "Block device file is in use", node_name="file")
        self.refused("blockdev-del", "Parameter 'x' is unexpected", node_name="disk", x=1)

    def test_an_unknown_option_is_named_and_nothing_left(self):
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("blockdev-add", driver="null-co", node_name="n", bogus=1)
        self.assertIn("'bogus'", caught.exception.desc)
        self.assertIsNone(self.qmp.node("n"))
        self.qmp.command("blockdev-add", driver="null-co", node_name="n")

    def test_options_have_types_and_places(self):
        file = {"driver": "file", "filename": self.path("raw")}
        self.create("raw", "1M", fmt="raw")
        wrong_type = "Invalid parameter type for '%s', expected: %s"
        for options, wanted in (
            ({"file": file, "offset": "512"}, wrong_type % ("offset", "integer")),
            ({"file": file, "offset": 1.5}, wrong_type % ("offset", "integer")),
            ({"file": file, "read-only": "on"}, wrong_type % ("read-only", "boolean")),
            ({"file": {**file, "read-only": "on"}}, wrong_type % ("file.read-only", "boolean")),
            ({"file": {**file, "cache": {"direct": 1}}}, wrong_type % ("file.cache.direct", "boolean")),
            ({"file": {**file, "filename": 5}}, wrong_type % ("file.filename", "string")),
            ({"file": 5}, wrong_type % ("file", "BlockdevRef")),
            ({}, "Parameter 'file' is missing"),
            ({"file": {"filename": "x"}}, "Parameter 'file.driver' is missing"),
            ({"file": {"driver": "file"}}, "Parameter 'file.filename' is missing"),
            ({"file": {"driver": "none"}}, "Parameter 'driver' does not accept value 'none'"),
            ({"file": file, "bogus": 1}, "Parameter 'bogus' is unexpected"),
            ({"file": {**file, "bogus": 1}}, "Parameter 'file.bogus' is unexpected"),
            ({"file.driver": "file"}, "Parameter 'file' is missing"),
            ({"file": file, "file.driver": "file"}, "Parameter 'file.driver' is unexpected"),
            ({"file": file, "size": 1000}, "Specified size is not multiple of 512"),
            (
                {"file": file, "offset": 2 << 20},
                "Offset (2097152) cannot be greater than size of the containing file (1048576) "
                f"'{file['filename']}'",
            ),
        ):
            with self.subTest(wanted):
                self.refused("blockdev-add", wanted, **{"driver": "raw", "node-name": "r", **options})
        self.assertIsNone(self.qmp.node("r"))

    def test_objects_have_typed_options(self):
        self.refused(
            "object-add",
            "Invalid parameter type for 'verify-peer', expected: boolean",
            **{"qom-type": "tls-creds-anon", "id": "t", "verify-peer": "on", "endpoint": "server"},
        )

    def test_a_node_of_an_export_stays(self):
        self.start_nbd()
        self.export()
        self.refused("blockdev-del", "Node disk is in use", node_name="disk")
        self.qmp.command("block-export-del", id="export")
        self.qmp.command("blockdev-del", node_name="disk")
        self.qmp.command("blockdev-del", node_name="file")
        self.assertEqual(self.qmp.command("query-named-block-nodes"), [])

    def small_disk(self):
        """A node "small" of 64 MiB, whose image has room for a part of that only, full to the last
        cluster.
        """
        part = self.path("small.raw")
        tidemark.img("create", "-q", "-f", "raw", part, "1M")
        file = {"driver": "file", "filename": part}
        part_options = {"driver": "raw", "size": 1 << 20, "file": file}
        tidemark.img("create", "-q", "-f", "qcow2", self.path("template"), "64M")
        with open(self.path("template"), "rb") as template, open(part, "r+b") as image:
            image.write(template.read())
        self.qmp.command("blockdev-add", driver="qcow2", node_name="small", file=part_options)
        self.start_nbd()
        self.export(node="small", writable=True)

    def fill_small_disk(self):
        writes = [f"write {i * 65536} 64k" for i in range(20)]
        result = tidemark.io(self.uri("small"), *writes, fmt="raw", check=False)
        self.assertIn("No space left on device", result.stdout + result.stderr)
        self.qmp.command("block-export-del", id="export", mode="hard")

    def test_a_full_image_can_be_deleted(self):
        """A temporary image may fill up: nothing in it is worth keeping."""
        self.small_disk()
        self.fill_small_disk()
        self.qmp.command("blockdev-del", node_name="small")
        self.assertNotIn("small", [n["node-name"] for n in self.qmp.command("query-named-block-nodes")])

    def test_a_full_image_that_is_deleted_has_its_bitmaps(self):
        """Other programs see a superset of what was written, since there is no room for the bits.
        """
        self.small_disk()
        self.qmp.command("block-dirty-bitmap-add", node="small", name="b", persistent=True)
        self.fill_small_disk()
        self.assertGreater(self.qmp.bitmaps("small")["b"]["count"], 0)
        self.qmp.command("blockdev-del", node_name="small")
        self.assertNotIn("small", [n["node-name"] for n in self.qmp.command("query-named-block-nodes")])
        info = json.loads(tidemark.qemu_img("info", "--output=json", self.path("small.raw")).stdout)
        bitmap = {"name": "b", "granularity": 65536, "flags": ["auto"]}
        self.assertEqual(info["format-specific"]["data"]["bitmaps"], [bitmap])
        part = {"driver": "raw", "size": 1 << 20, "file": {"driver": "file", "filename": self.path("small.raw")}}
        self.qmp.command("blockdev-add", driver="qcow2", node_name="small", file=part)
        self.assertEqual(self.qmp.bitmaps("small")["b"]["count"], 64 << 20)

    def test_a_full_image_takes_no_new_bitmap(self):
        self.small_disk()
        self.fill_small_disk()
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("block-dirty-bitmap-add", node="small", name="b", persistent=True)
        self.assertIn("Could not reserve room for bitmap 'b'", caught.exception.desc)
        self.assertIn("No space left on device", caught.exception.desc)
        self.assertEqual(self.qmp.bitmaps("small"), {})
        self.qmp.command("blockdev-del", node_name="small")

    def test_the_owner_of_an_exported_bitmap_stays(self):
        self.start_nbd()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", disabled=True)
        self.qmp.command("blockdev-add", driver="null-co", node_name="other", size=64 << 20)
        self.export(node="other", bitmaps=[{"node": "disk", "name": "b"}])
        self.refused("blockdev-del", "Node disk is in use", node_name="disk")
        self.qmp.command("block-export-del", id="export")
        self.qmp.command("blockdev-del", node_name="disk")
        self.assertNotIn("disk", [n["node-name"] for n in self.qmp.command("query-named-block-nodes")])

    def test_a_child_opened_along_is_not_the_monitors(self):
        self.qmp.command(
            "blockdev-add",
            driver="raw",
            node_name="top",
            file={"driver": "null-co", "node-name": "below", "size": 512},
        )
        self.refused("blockdev-del", "Node below is not owned by the monitor", node_name="below")
        self.qmp.command("blockdev-del", node_name="top")
        self.assertIsNone(self.qmp.node("below"))


class ExportTest(QmpTest):
    def delete_export(self):
        """Whether it could be deleted; false while a client has it."""
        try:
            self.qmp.command("block-export-del", id="export")
        except QmpError as e:
            self.assertIn("still in use", str(e))
            return False
        return True

    def test_life_of_an_export(self):
        self.start_nbd()
        self.export(name="vol", writable=True)
        self.assertEqual(
            self.exports(),
            {
                "export": {
                    "id": "export",
                    "type": "nbd",
                    "node-name": "disk",
                    "shutting-down": False,
                }
            },
        )
        tidemark.io(self.uri("vol"), "write -P 7 0 64k", fmt="raw")
        tidemark.qemu_io(self.uri("vol"), "read -P 7 0 64k", fmt="raw", options=["-r"])
        # The server may hear a moment later than we that the clients have gone.
        tidemark.wait_until(self.delete_export, "the end of the clients")
        event = self.qmp.wait_event("BLOCK_EXPORT_DELETED")
        self.assertEqual(event["data"], {"id": "export"})
        self.assertEqual(sorted(event), ["data", "event", "timestamp"])
        self.assertLess(abs(event["timestamp"]["seconds"] - time.time()), 60)
        self.assertEqual(self.exports(), {})
        self.qmp.command("nbd-server-stop")
        self.assertFalse(os.path.exists(self.nbd) and tidemark.can_connect(self.nbd))

    def test_exports_of_the_older_commands(self):
        self.start_nbd()
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", disabled=True)
        self.qmp.command("nbd-server-add", device="disk", bitmap="b")
        self.qmp.command("nbd-server-add", device="disk", name="vol", writable=True)
        self.qmp.command("blockdev-add", driver="null-co", node_name="ro", read_only=True)
        self.qmp.command("nbd-server-add", device="ro", writable=True)
        self.qmp.command("nbd-server-remove", name="ro")
        self.assertEqual(sorted(self.exports()), ["disk", "vol"])
        contexts = tidemark.run("nbdinfo", "--list", self.uri("")).stdout
        self.assertIn("qemu:dirty-bitmap:b", contexts)
        tidemark.io(self.uri("vol"), "write -P 7 0 64k", fmt="raw")
        self.refused(
            "nbd-server-add", "Block export id 'vol' is already in use", device="disk", name="vol"
        )
        self.refused("nbd-server-remove", "Export 'x' is not found", name="x")
        self.qmp.command("nbd-server-remove", name="vol", mode="hard")
        self.qmp.command("nbd-server-remove", name="disk", mode="hard")
        self.assertEqual(self.exports(), {})

    def test_errors(self):
        arguments = {"type": "nbd", "id": "e", "node-name": "disk"}
        self.refused("block-export-add", "NBD server not running", **arguments)
        self.refused("nbd-server-stop", "NBD server not running")
        self.start_nbd()
        self.refused(
            "nbd-server-start",
            "NBD server already running",
            addr={"type": "unix", "data": {"path": self.nbd}},
        )
        self.refused(
            "block-export-add",
            "Cannot find device='' nor node-name='x'",
            **{**arguments, "node-name": "x"},
        )
        self.refused("block-export-add", "Invalid block export id", **{**arguments, "id": "!"})
        self.refused(
            "block-export-add", "Bitmap 'b' is not found", **{**arguments, "bitmaps": ["b"]}
        )
        self.refused(
            "block-export-add", 'iothread "t" not found', **{**arguments, "iothread": "t"}
        )
        self.export("e")
        self.refused("block-export-add", "Block export id 'e' is already in use", **arguments)
        self.refused(
            "block-export-add",
            "NBD server already has export named 'disk'",
            **{**arguments, "id": "e2"},
        )
        self.refused("block-export-del", "Export 'x' is not found", id="x")

    def has_no_clients(self):
        (export,) = self.qmp.command("x-tidemark-query-stats", target="export")
        return export["stats"]["clients"] == 0

    def test_an_iothread_can_be_deleted_when_its_exports_are_gone(self):
        self.start_nbd()
        for _ in range(2):
            self.qmp.command("object-add", qom_type="iothread", id="t")
            self.export(iothread="t")
            tidemark.qemu_io(self.uri(), "read -P 0 0 64k", fmt="raw", options=["-r"])
            self.refused("object-del", "object 't' is in use, can not be deleted", id="t")
            # The client has ended; the server may notice later.
            tidemark.wait_until(self.has_no_clients, "the end of the client")
            self.qmp.command("block-export-del", id="export")
            self.qmp.wait_event("BLOCK_EXPORT_DELETED")
            self.qmp.command("object-del", id="t")

    def test_a_refused_export_does_not_keep_its_iothread(self):
        self.start_nbd()
        self.qmp.command("object-add", qom_type="iothread", id="t")
        for node in "none", "disk":
            with self.assertRaises(QmpError):
                self.export(node=node, iothread="t", bitmaps=["none"])
        self.qmp.command("object-del", id="t")

    def test_events_reach_every_negotiated_monitor(self):
        self.start_nbd()
        self.export()
        with self.server.connect() as second, self.server.connect(negotiate=False) as third:
            self.qmp.command("block-export-del", id="export")
            for qmp in self.qmp, second:
                self.assertEqual(
                    qmp.wait_event("BLOCK_EXPORT_DELETED")["data"], {"id": "export"}
                )
            third.command("qmp_capabilities")
            self.assertEqual(third.events, [])

    def test_a_client_keeps_its_export_in_safe_mode(self):
        self.start_nbd()
        self.export()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.nbd)
            client.settimeout(10)
            receive_exactly(client, 18)
            client.sendall(b"\0\0\0\1" + b"IHAVEOPT\0\0\0\1\0\0\0\4disk")
            receive_exactly(client, 10 + 124)
            with self.assertRaises(QmpError) as caught:
                self.qmp.command("block-export-del", id="export")
            self.assertIn("still in use", caught.exception.desc)
            self.assertIn("export", self.exports())
            self.qmp.command("block-export-del", id="export", mode="hard")
            self.qmp.wait_event("BLOCK_EXPORT_DELETED")
            self.assertEqual(client.recv(1), b"")

    def test_stopping_the_server_deletes_its_exports(self):
        self.start_nbd()
        self.export("a", name="a")
        self.export("b", name="b")
        self.qmp.command("nbd-server-stop")
        gone = {self.qmp.wait_event("BLOCK_EXPORT_DELETED")["data"]["id"] for _ in "ab"}
        self.assertEqual(gone, {"a", "b"})
        self.assertEqual(self.exports(), {})

    def test_replace_puts_another_node_under_a_client(self):
        self.start_nbd()
        self.export(writable=True)
        tidemark.io(self.uri(), "write -P 1 0 64k", fmt="raw")
        self.qmp.command("blockdev-add", driver="raw", node_name="over", file="disk")
        self.qmp.command("blockdev-replace", export="export", node_name="over")
        self.assertEqual(self.exports()["export"]["node-name"], "over")
        tidemark.io(self.uri(), "read -P 1 0 64k", "write -P 2 0 64k", fmt="raw")
        self.qmp.command("blockdev-replace", export="export", node_name="disk")
        self.qmp.command("blockdev-del", node_name="over")
        tidemark.io(self.uri(), "read -P 2 0 64k", fmt="raw")

    def test_replace_refuses_what_does_not_fit(self):
        self.start_nbd()
        self.export()
        self.qmp.command("blockdev-add", driver="null-co", node_name="small", size=512)
        with self.assertRaises(QmpError):
            self.qmp.command("blockdev-replace", export="export", node_name="small")
        self.refused(
            "blockdev-replace", "Export 'x' is not found", export="x", node_name="small"
        )
        with self.assertRaises(QmpError) as caught:
            self.qmp.command("blockdev-replace", export="export", node_name="x")
        self.assertIn("'x'", caught.exception.desc)
        self.assertEqual(self.exports()["export"]["node-name"], "disk")


def receive_exactly(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class BitmapTest(QmpTest):
    def bitmap(self, name):
        return self.qmp.bitmaps("disk")[name]

    def write(self, offset, size):
        self.start_nbd()
        self.export(writable=True)
        tidemark.io(self.uri(), f"write {offset} {size}", fmt="raw")
        self.qmp.command("nbd-server-stop")

    def test_add_tells_its_state(self):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        self.assertEqual(
            self.bitmap("b"),
            {
                "name": "b",
                "recording": True,
                "persistent": False,
                "busy": False,
                "granularity": 65536,
                "count": 0,
                "x-tidemark-state": {"kind": "exact"},
            },
        )
        self.qmp.command(
            "block-dirty-bitmap-add",
            node="disk",
            name="p",
            granularity=4096,
            persistent=True,
            disabled=True,
        )
        bitmap = self.bitmap("p")
        self.assertEqual(
            (bitmap["granularity"], bitmap["persistent"], bitmap["recording"]),
            (4096, True, False),
        )

    def test_records_writes_while_enabled(self):
        for name in "on", "off":
            self.qmp.command("block-dirty-bitmap-add", node="disk", name=name)
        self.qmp.command("block-dirty-bitmap-disable", node="disk", name="off")
        self.write("1M", "128k")
        self.assertEqual(self.bitmap("on")["count"], 131072)
        self.assertEqual(self.bitmap("off")["count"], 0)
        self.qmp.command("block-dirty-bitmap-enable", node="disk", name="off")
        self.write("2M", "64k")
        self.assertEqual(self.bitmap("on")["count"], 196608)
        self.assertEqual(self.bitmap("off")["count"], 65536)

    def test_merge_and_clear(self):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="a")
        self.write("1M", "64k")
        self.qmp.command("block-dirty-bitmap-disable", node="disk", name="a")
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b")
        self.write("3M", "64k")
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="sum", disabled=True)
        self.qmp.command(
            "block-dirty-bitmap-merge",
            node="disk",
            target="sum",
            bitmaps=["a", {"node": "disk", "name": "b"}],
        )
        self.assertEqual(self.bitmap("sum")["count"], 131072)
        self.qmp.command("block-dirty-bitmap-clear", node="disk", name="sum")
        self.assertEqual(self.bitmap("sum")["count"], 0)

    def test_remove_also_from_the_image(self):
        for name in "keep", "gone":
            self.qmp.command("block-dirty-bitmap-add", node="disk", name=name, persistent=True)
        self.server.quit()
        self.assertEqual(self.stored(), ["gone", "keep"])
        server = self.daemon(
            "--blockdev", f"qcow2,node-name=disk,file.driver=file,file.filename={self.image}"
        )
        server.qmp.command("block-dirty-bitmap-remove", node="disk", name="gone")
        self.assertEqual(sorted(server.qmp.bitmaps("disk")), ["keep"])
        server.quit()
        self.assertEqual(self.stored(), ["keep"])

    def stored(self):
        info = json.loads(tidemark.qemu_img("info", "--output=json", self.image).stdout)
        bitmaps = info["format-specific"]["data"].get("bitmaps", [])
        self.assertEqual([b for b in bitmaps if "in-use" in b["flags"]], [])
        return sorted(b["name"] for b in bitmaps)

    def test_errors(self):
        add = "block-dirty-bitmap-add"
        self.qmp.command(add, node="disk", name="b")
        self.refused(add, "Bitmap already exists: b", node="disk", name="b")
        self.refused(
            add, "Cannot find device='x' nor node-name='x'", node="x", name="b"
        )
        self.refused(add, "Bitmap name cannot be empty", node="disk", name="")
        for granularity in 0, 3, 256:
            self.refused(
                add,
                "Granularity must be power of 2 and at least 512",
                node="disk",
                name="c",
                granularity=granularity,
            )
        for command in "remove", "clear", "enable", "disable":
            name = "block-dirty-bitmap-" + command
            self.refused(name, "Dirty bitmap 'x' not found", node="disk", name="x")
            self.refused(
                name, "Node 'x' not found", node="x", name="b"
            )
            self.refused(name, "Parameter 'name' is missing", node="disk")
            self.refused(name, "Parameter 'y' is unexpected", node="disk", name="b", y=1)
        merge = "block-dirty-bitmap-merge"
        self.refused(
            merge, "Dirty bitmap 'x' not found", node="disk", target="b", bitmaps=["x"]
        )
        self.refused(
            merge, "Dirty bitmap 'x' not found", node="disk", target="x", bitmaps=["b"]
        )
        self.assertEqual(sorted(self.qmp.bitmaps("disk")), ["b"])

    def test_a_busy_bitmap_stays_as_it_is(self):
        self.qmp.command("block-dirty-bitmap-add", node="disk", name="b", disabled=True)
        self.start_nbd()
        self.export(bitmaps=["b"])
        self.assertTrue(self.bitmap("b")["busy"])
        for command in "remove", "clear", "enable", "disable":
            with self.assertRaises(QmpError):
                self.qmp.command("block-dirty-bitmap-" + command, node="disk", name="b")
        self.qmp.command("block-export-del", id="export")
        self.assertFalse(self.bitmap("b")["busy"])
        self.qmp.command("block-dirty-bitmap-remove", node="disk", name="b")
