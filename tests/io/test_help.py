# SPDX-License-Identifier: Apache-2.0
"""--help of every face and sub-command: examples as they are typed, text that lines up."""

import re
import unittest

from tidemark import TIDEMARK, TestCase, compat, img, run, tool

COLUMN = 33  # where options are described


class Help(TestCase):
    def texts(self):
        """Each command and its --help."""
        faces = re.findall(
            r"^  ([a-z-]+) +\w", self.section(run(TIDEMARK, "--help").stdout, "faces"), re.M
        )
        for face in faces:
            yield f"tidemark {face}", run(*tool(face), "--help").stdout
        for command in re.findall(r"^  ([a-z]+) +\[", img("--help").stdout, re.M):
            yield f"tidemark img {command}", img(command, "--help").stdout

    def section(self, text, name):
        return text.split(f"\n{name}:\n")[1].split("\n\n")[0].strip("\n")

    def test_examples_begin_with_the_command(self):
        seen = 0
        for command, text in self.texts():
            with self.subTest(command):
                first = self.section(text, "examples").splitlines()[0]
                self.assertTrue(first.startswith(f"  {command} "), first)
                seen += 1
        self.assertGreater(seen, 20)

    def test_examples_name_the_tool_that_was_called(self):
        text = run(compat("qemu-img"), "create", "--help").stdout
        for line in self.section(text, "examples").splitlines():
            self.assertTrue(line.startswith("  qemu-img create "), line)
        text = run(compat("qemu-nbd"), "--help").stdout
        self.assertIn("\n  qemu-nbd -L ", self.section(text, "examples"))

    def test_descriptions_line_up(self):
        for command, text in self.texts():
            if command == "tidemark img":
                continue
            for line in self.section(text, "options").splitlines():
                with self.subTest(command, line=line):
                    if re.match(r" {2,6}-.* [^-]", line):
                        self.assertRegex(line, rf"\A.{{{COLUMN - 1}}} \S")
                    elif not re.match(r" {2,6}-", line):
                        self.assertRegex(line, rf"\A {{{COLUMN}}}\S")

    def test_lines_fit_100_columns(self):
        for command, text in self.texts():
            for line in text.split("\n\n", 1)[1].splitlines():
                with self.subTest(command):
                    if not line.startswith("Supported formats"):  # as qemu-img prints them
                        self.assertLessEqual(len(line), 100)


if __name__ == "__main__":
    unittest.main()
