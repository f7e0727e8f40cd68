# SPDX-License-Identifier: Apache-2.0
"""docs/qmp.md has every command and event, with its arguments, and no others."""

import os
import re
import unittest

from tidemark import TestCase

PAGE = os.path.join(os.environ.get("TIDEMARK_SOURCE", "."), "docs", "qmp.md")


class QmpReference(TestCase):
    UNIONS = {"BlockdevOptions", "ObjectOptions"}

    def setUp(self):
        super().setUp()
        schema = self.daemon().qmp.command("query-qmp-schema")
        self.types = {t["name"]: t for t in schema}
        with open(PAGE, encoding="utf-8") as page:
            self.page = page.read()

    def section(self, title):
        """The rows of the table below a heading: name -> the other columns."""
        text = self.page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", text, re.M)
        return {name: [column.strip() for column in rest.split("|")] for name, rest in rows}

    def assert_rows(self, title, rows, names):
        for missing in sorted(names - set(rows)):
            self.fail(f"docs/qmp.md, table of '{title}': no row for '{missing}'")
        for other in sorted(set(rows) - names):
            self.fail(f"docs/qmp.md, table of '{title}': the schema does not have '{other}'")

    def members(self, name):
        """Of a type of the schema: the members, those of its variants too: name -> optional."""
        found = {}
        shown = self.types[name]
        for member in shown["members"]:
            found[member["name"]] = "default" in member
        # Options of drivers are in tables of their own.
        for variant in shown.get("variants", []) if name not in self.UNIONS else []:
            for inner in self.types[variant["type"]]["members"]:
                found[inner["name"]] = "default" in inner
        return found

    def assert_arguments(self, column, members, name):
        shown = {}
        for left, argument in re.findall(r"(\[?)`([\w-]+)`", column):
            shown[argument] = left == "["
        self.assertEqual(shown, members, f"docs/qmp.md: arguments of {name} (True: optional)")

    def test_commands(self):
        rows = self.section("Commands")
        commands = [t for t in self.types.values() if t["meta-type"] == "command"]
        self.assert_rows("Commands", rows, {c["name"] for c in commands})
        for command in commands:
            with self.subTest(command["name"]):
                members = self.members(command["arg-type"])
                self.assert_arguments(rows[command["name"]][1], members, command["name"])

    def test_actions_of_transactions(self):
        actions = self.types["TransactionActionKind"]
        marked = {name for name, columns in self.section("Commands").items() if columns[0] == "T"}
        self.assertEqual(marked | {"abort"}, set(actions["values"]))

    def test_events(self):
        rows = self.section("Events")
        events = [t for t in self.types.values() if t["meta-type"] == "event"]
        self.assert_rows("Events", rows, {e["name"] for e in events})
        for event in events:
            with self.subTest(event["name"]):
                members = self.members(event["arg-type"])
                self.assert_arguments(rows[event["name"]][0], members, event["name"])


if __name__ == "__main__":
    unittest.main()
