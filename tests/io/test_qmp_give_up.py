# SPDX-License-Identifier: Apache-2.0
"""x-tidemark-give-up: a client does not wait for a command that hangs."""

import json
import socket

import tidemark


class GiveUp(tidemark.TestCase):
    """The command that hangs waits for an NBD server that says nothing."""

    def setUp(self):
        super().setUp()
        self.listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.listener.close)
        self.listener.bind(self.path("silent"))
        self.listener.listen()
        self.server = self.daemon()
        self.qmp = self.server.connect(negotiate=False)
        self.addCleanup(self.qmp.close)
        self.qmp.execute("qmp_capabilities", {"enable": ["oob"]})

    def send(self, name, arguments, number, kind="execute", qmp=None):
        request = {kind: name, "arguments": arguments, "id": number}
        (qmp or self.qmp).send_raw(json.dumps(request))

    def hang(self, node, number, qmp=None):
        """A command that has begun; the server's side of its connection."""
        server = {"type": "unix", "path": self.path("silent")}
        self.send("blockdev-add", {"driver": "nbd", "node-name": node, "server": server}, number, qmp=qmp)
        return self.listener.accept()[0]

    def give_up(self, number, kind="exec-oob", qmp=None):
        self.send("x-tidemark-give-up", {"id": number}, "give up", kind, qmp)

    def ask(self, name, arguments):
        """The answer is that to the request, and to no other."""
        self.send(name, arguments, "asked")
        answer = self.qmp.receive_answer()
        self.assertEqual(answer["id"], "asked")
        return answer

    def assert_not_found(self, qmp=None):
        desc = (qmp or self.qmp).receive_answer()["error"]["desc"]
        self.assertEqual(desc, "No command with this id is running on this monitor")

    def test_the_next_commands_are_executed(self):
        peer = self.hang("n", {"n": 1})
        for number in 2, 3:
            self.send("query-version", {}, number)
        self.give_up(3)
        self.give_up({"n": 1})
        answers = [self.qmp.receive_answer() for _ in range(5)]
        self.assertEqual([a["return"] for a in answers if a["id"] == "give up"], [{}, {}])
        answers = {json.dumps(a["id"]): a for a in answers}
        desc = answers["3"]["error"]["desc"]
        self.assertEqual(desc, "The command 'query-version' was given up before it began")
        desc = "The command 'blockdev-add' was given up, and goes on"
        self.assertEqual(answers['{"n": 1}']["error"], {"class": "GenericError", "desc": desc})
        self.assertIn("qemu", answers["2"]["return"])
        # It goes on, and has its name still; its end is answered to nobody.
        node = {"driver": "null-co", "node-name": "n"}
        self.assertIn("error", self.ask("blockdev-add", node))
        peer.close()
        self.listener.close()
        tidemark.wait_until(
            lambda: "return" in self.ask("blockdev-add", node), "the command to end"
        )
        self.assertIn("'blockdev-add', which was given up, has ended: ", self.server.log())

    def test_others_can_not_be_given_up(self):
        for kind in "exec-oob", "execute":
            self.give_up("give up", kind)
            self.assert_not_found()
        peer = self.hang("n", 1)
        for number in 2, None, "1":
            self.give_up(number)
            self.assert_not_found()
        with self.server.connect() as other:
            self.give_up(1, "execute", other)
            self.assert_not_found(other)
        peer.close()
        self.assertEqual(self.qmp.receive_answer()["id"], 1)

    def test_clients_leave_before_the_end(self):
        """Neither other sessions nor the end of the daemon wait for what was given up."""
        peers = []
        for client in range(3):
            with self.server.connect(negotiate=False) as qmp:
                qmp.execute("qmp_capabilities", {"enable": ["oob"]})
                for number in range(2):
                    peers.append(self.hang(f"n{client}-{number}", number, qmp))
                    self.give_up(number, qmp=qmp)
                    found = {qmp.receive_answer()["id"] for _ in range(2)}
                    self.assertEqual(found, {number, "give up"})
        self.assertIn("qemu", self.server.qmp.command("query-version"))
        peers[0].close()
        self.assertIn("qemu", self.server.qmp.command("query-version"))
        self.server.stop(timeout=20)
