# SPDX-License-Identifier: Apache-2.0
"""A small QMP client: connect, run commands and transactions, wait for events."""

import json
import socket
import time


class QmpError(Exception):
    """An error answer; `error_class` and `desc` hold what it said."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.error_class = error["class"]
        self.desc = error["desc"]


class Qmp:
    """One connection to a monitor on a unix socket, by its path or already connected. Use as a
    context manager."""

    def __init__(self, path, negotiate=True, timeout=20):
        if isinstance(path, socket.socket):
            self.sock = path
            self.sock.settimeout(timeout)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(timeout)
            self.sock.connect(path)
        self.buffer = b""
        self.events = []
        self.greeting = self.receive()
        if negotiate:
            answer = self.execute("qmp_capabilities")
            if "return" not in answer:  # who waits for the start of a program tries again
                raise ConnectionError(f"qmp_capabilities was answered {answer}")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.sock.close()

    def send_raw(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else data.encode())

    def receive(self):
        """The next message of any kind as an object; EOFError when the server hung up."""
        while b"\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError("the monitor closed the connection")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def receive_answer(self):
        """The next message that is no event; events are put aside."""
        while True:
            message = self.receive()
            if "event" not in message:
                return message
            self.events.append(message)

    def execute(self, name, arguments=None, **more):
        """Run a command and give the whole answer; `more` are members in addition to `execute`."""
        message = {"execute": name, **more}
        if arguments is not None:
            message["arguments"] = arguments
        self.send_raw(json.dumps(message) + "\n")
        return self.receive_answer()

    def command(self, name, /, **arguments):
        """Run a command; its return value, or QmpError. An underscore in a name means a dash."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self.execute(name, named)
        if "error" in answer:
            raise QmpError(answer["error"])
        return answer["return"]

    def transaction(self, *actions):
        """Run (type, data) pairs, all or nothing."""
        return self.command(
            "transaction", actions=[{"type": kind, "data": data} for kind, data in actions]
        )

    def wait_event(self, name, timeout=20):
        """The oldest event of that name not yet taken."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no event {name}")
            before = self.sock.gettimeout()
            self.sock.settimeout(left)
            try:
                message = self.receive()
            finally:
                self.sock.settimeout(before)
            if "event" in message:
                self.events.append(message)

    # Conveniences for what most tests do.

    def node(self, name):
        """The query-named-block-nodes entry of a node; None if there is none."""
        for node in self.command("query-named-block-nodes", flat=True):
            if node.get("node-name") == name:
                return node
        return None

    def bitmaps(self, node):
        """The dirty bitmaps of a node that have names, by name."""
        bitmaps = (self.node(node) or {}).get("dirty-bitmaps", [])
        return {b["name"]: b for b in bitmaps if "name" in b}
