# SPDX-License-Identifier: Apache-2.0
"""The table of planted faults fits the source and the tests as they are, and tools/mutants judges
rightly.
"""

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import sys
import tempfile
import unittest

TOP = os.environ["TIDEMARK_SOURCE"]
BUILD = os.environ["TIDEMARK_BUILD"]
ENTRY = """[[mutant]]
name = "{name}"
file = "src/co/a.c"
find = "lock();"
replace = ";"
loses = "order"
tests = ["unit/test_a"]
"""


def load_tool():
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("mutants", os.path.join(TOP, "tools", "mutants"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutants", loader))
    loader.exec_module(module)
    return module


tool = load_tool()


class Table(unittest.TestCase):
    """That of this tree."""

    @classmethod
    def setUpClass(cls):
        cls.mutants = tool.load_table(TOP)

    def test_each_entry_matches_its_source_once(self):
        self.assertGreaterEqual(len(self.mutants), 80)

    def test_each_entry_names_tests_that_there_are(self):
        tool.check_tests(self.mutants, tool.registered_tests(BUILD))

    def test_each_layer_has_some(self):
        layers = {m.layer for m in self.mutants}
        there = set(os.listdir(os.path.join(TOP, "src"))) - {"meson.build"}
        self.assertEqual(there - layers, set())

    def test_few_survive(self):
        self.assertLess(len([m for m in self.mutants if m.survives]), len(self.mutants) / 10)


class Entries(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tree = folder.name
        self.write("src/co/a.c", "lock();\nwork();\n")

    def write(self, path, text):
        full = os.path.join(self.tree, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as f:
            f.write(text)

    def load(self, *entries):
        self.write("tests/mutants/a.toml", "\n".join(entries))
        return tool.load_table(self.tree)

    def assert_refused(self, text, *entries):
        with self.assertRaisesRegex(tool.TableError, text):
            self.load(*entries)

    def test_a_good_one(self):
        (mutant,) = self.load(ENTRY.format(name="m"))
        self.assertEqual(mutant.layer, "co")
        self.assertEqual(mutant.plant("lock();\nwork();\n"), ";\nwork();\n")

    def test_source_that_changed_names_the_entry(self):
        self.write("src/co/a.c", "lock_all();\n")
        self.assert_refused("a.toml: m: .*0 times", ENTRY.format(name="m"))

    def test_source_that_occurs_twice(self):
        self.write("src/co/a.c", "lock();\nlock();\n")
        self.assert_refused("2 times", ENTRY.format(name="m"))

    def test_file_that_is_gone(self):
        os.unlink(os.path.join(self.tree, "src/co/a.c"))
        self.assert_refused("a.c", ENTRY.format(name="m"))

    def test_two_of_one_name(self):
        self.assert_refused("two of this name", ENTRY.format(name="m"), ENTRY.format(name="m"))

    def test_fields_that_lack_or_are_unknown(self):
        self.assert_refused("lacks loses", ENTRY.format(name="m").replace("loses", "#"))
        self.assert_refused("unknown field why", ENTRY.format(name="m") + 'why = "x"\n')

    def test_nobody_to_notice_and_no_reason(self):
        self.assert_refused("neither tests nor why", ENTRY.format(name="m").replace("tests =", "#"))

    def test_test_that_is_not_registered(self):
        with self.assertRaisesRegex(tool.TableError, "there is no test unit/test_a"):
            tool.check_tests(self.load(ENTRY.format(name="m")), {})


class Verdicts(unittest.TestCase):
    def mutant(self, **fields):
        entry = {"name": "m", "file": "src/co/a.c", "find": "a", "replace": "b", "loses": "c"}
        return tool.Mutant("a.toml", {**entry, "tests": ["unit/test_a"], **fields})

    def finish(self, *results):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = tool.finish(list(results))
        return status, out.getvalue().splitlines()[-1]

    def test_killed(self):
        result = tool.Result(self.mutant(), "killed")
        self.assertEqual(self.finish(result), (0, "1 killed, 0 survived, 0 did not build"))

    def test_survivor_without_reason(self):
        result = tool.Result(self.mutant(), "survived")
        self.assertEqual(self.finish(result), (1, "0 killed, 1 survived, 0 did not build"))

    def test_survivor_with_reason(self):
        result = tool.Result(self.mutant(survives="no device"), "survived")
        self.assertEqual(self.finish(result)[0], 0)

    def test_unexpected_kill(self):
        result = tool.Result(self.mutant(survives="no device"), "killed")
        self.assertEqual(self.finish(result)[0], 1)

    def test_one_of_the_named_tests_passes(self):
        result = tool.Result(self.mutant(), "killed", "unit/test_a does not notice it")
        self.assertEqual(self.finish(result)[0], 1)

    def test_source_that_does_not_compile(self):
        result = tool.Result(self.mutant(), "did not build")
        self.assertEqual(self.finish(result)[0], 1)

    def test_nothing_was_run(self):
        self.assertEqual(self.finish()[0], 1)


if __name__ == "__main__":
    unittest.main()
