# SPDX-License-Identifier: Apache-2.0
"""tools/measure-source --links: objects of this build need each other in no circle."""

import os
import subprocess
import tempfile
import unittest

TOP = os.environ["TIDEMARK_SOURCE"]
LAYERS = "layers = [\n  'base',\n  'co',\n]\n"


def check_links(build, tree):
    cmd = [os.path.join(TOP, "tools", "measure-source"), "--links", "--build", build, tree]
    result = subprocess.run(cmd, stdout=subprocess.PIPE, text=True)
    return result.returncode, result.stdout.splitlines()


class Links(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        os.makedirs(os.path.join(self.folder.name, "src"))
        with open(os.path.join(self.folder.name, "src", "meson.build"), "w") as f:
            f.write(LAYERS)

    def compile(self, layer, name, text):
        folder = os.path.join(self.folder.name, f"lib{layer}.a.p")
        os.makedirs(folder, exist_ok=True)
        cmd = ["gcc", "-x", "c", "-c", "-", "-o", os.path.join(folder, f"{name}.c.o")]
        subprocess.run(cmd, input=text, text=True, check=True)

    def check(self):
        return check_links(self.folder.name, self.folder.name)

    def test_this_build(self):
        status, lines = check_links(os.environ["TIDEMARK_BUILD"], TOP)
        self.assertEqual((status, lines[1:]), (0, []))
        self.assertGreater(int(lines[0].split()[0]), 300)

    def test_a_line_of_objects_passes(self):
        self.compile("base", "a", "int b(void); int a(void) { return b(); }")
        self.compile("base", "b", "int b(void) { return 1; }")
        self.compile("co", "c", "int a(void); int c(void) { return a(); }")
        self.assertEqual(self.check(), (0, ["3 objects"]))

    def test_a_circle_is_named(self):
        self.compile("base", "a", "int b(void); int a(void) { return b(); }")
        self.compile("base", "b", "int c(void); int b(void) { return c(); }")
        self.compile("base", "c", "int a(void); int c(void) { return a(); }")
        self.compile("base", "d", "int a(void); int d(void) { return a(); }")
        self.assertEqual(self.check(), (1, ["4 objects", "circle of 3 base: a b c"]))

    def test_a_link_to_a_layer_above_is_named(self):
        self.compile("base", "a", "int c(void); int a(void) { return c(); }")
        self.compile("co", "c", "int c(void) { return 1; }")
        self.assertEqual(self.check(), (1, ["2 objects", "link up: base/a -> co/c"]))


if __name__ == "__main__":
    unittest.main()
