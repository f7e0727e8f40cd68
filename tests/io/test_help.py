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
            r"^  ([a-z-]+) +\w", self.section(run(TIDEMARK, "--help").stdout, "commands"), re.M
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


class Slips(TestCase):
    """What the user reads who typed something else than what there is."""

    def refused(self, *words, program=TIDEMARK):
        result = run(program, *words, check=False)
        self.assertEqual((result.returncode, result.stdout), (1, ""))
        return result.stderr

    def test_a_command_with_a_slip_is_suggested(self):
        for typed, meant in (("imgg", "img"), ("bakcup", "backup"), ("restor", "restore")):
            self.assertEqual(
                self.refused(typed, "x"),
                f"tidemark: There is no command '{typed}'; did you mean 'tidemark {meant}'?\n",
            )
        self.assertIn("Command not found: craete; did you mean 'create'?",
                      self.refused("img", "craete", "x"))
        self.assertNotIn("did you mean", self.refused("img", "x" * 5000))

    def test_what_is_like_no_command_gets_no_suggestion(self):
        lists = "'tidemark --help' lists them\n"
        self.assertEqual(self.refused(), f"tidemark: A command is missing; {lists}")
        self.assertEqual(self.refused("xyzzy"), f"tidemark: There is no command 'xyzzy'; {lists}")

    def test_the_names_of_qemus_tools_have_their_words(self):
        self.assertEqual(
            self.refused("craete", program=compat("qemu-img")),
            "qemu-img: Command not found: craete\nTry 'qemu-img --help' for more info\n",
        )

    def test_a_file_that_is_not_there_is_named_once(self):
        missing = self.path("missing")
        for words in (("img", "info"), ("img", "resize"), ("nbd",)):
            rest = ("1G",) if "resize" in words else ()
            self.assertEqual(
                self.refused(*words, missing, *rest),
                f"tidemark {words[0]}: Could not open '{missing}': No such file or directory\n",
            )
        twice = f"Could not open '{missing}': " * 2
        self.assertIn(twice, self.refused("info", missing, program=compat("qemu-img")))


if __name__ == "__main__":
    unittest.main()
