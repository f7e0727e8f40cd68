# SPDX-License-Identifier: Apache-2.0
"""tools/check-style complains about each kind of offence, and about nothing else."""

import os
import subprocess
import tempfile
import unittest

TOP = os.environ["TIDEMARK_SOURCE"]
SPDX = "/* SPDX-License-Identifier: Apache-2.0 */\n"
LAYERS = "# SPDX-License-Identifier: Apache-2.0\nlayers = [\n  'base',\n  'co',\n  'cli',\n]\n"
LIST = "# SPDX-License-Identifier: Apache-2.0\nbase_sources = files('a.c')\n"


class CheckStyle(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.write("src/meson.build", LAYERS)
        self.write("src/base/meson.build", LIST)
        self.write("src/cli/meson.build", LIST)

    def write(self, path, text):
        full = os.path.join(self.folder.name, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w") as f:
            f.write(text)

    def complaints(self):
        cmd = [os.path.join(TOP, "tools", "check-style"), self.folder.name]
        result = subprocess.run(cmd, stdout=subprocess.PIPE, text=True)
        lines = result.stdout.splitlines()
        self.assertEqual(result.returncode, 1 if lines else 0)
        return lines

    def assert_clean(self, path, text):
        self.write(path, text)
        self.assertEqual(self.complaints(), [])

    def assert_complaint(self, path, text, complaint):
        self.write(path, text)
        lines = self.complaints()
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(path, lines[0])
        self.assertIn(complaint, lines[0])

    def test_good_file_passes(self):
        self.assert_clean("src/base/a.c", SPDX + '#include "base/a.h"\nint f(void)\n{\n}\n')

    def test_missing_license(self):
        self.assert_complaint("src/base/a.c", "int a;\n", "SPDX")

    def test_missing_license_in_script_without_suffix(self):
        self.assert_complaint("tools/run", "#!/bin/sh\ntrue\n", "SPDX")

    def test_license_below_interpreter_line_passes(self):
        self.assert_clean("tools/run", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n")

    def test_include_of_higher_layer(self):
        self.assert_complaint("src/base/a.c", SPDX + '#include "co/co.h"\n', "above it")

    def test_include_of_lower_layer_passes(self):
        self.assert_clean("src/cli/a.c", SPDX + '#include "base/a.h"\n')

    def test_include_without_layer(self):
        self.assert_complaint("src/base/a.c", SPDX + '#include "a.h"\n', "layer/file.h")

    def test_include_of_unknown_layer(self):
        self.assert_complaint("src/base/a.c", SPDX + '#include "attic/a.h"\n', "layer/file.h")

    def test_file_too_long(self):
        self.assert_complaint("src/base/a.c", SPDX + "int a;\n" * 1000, "1001 lines")

    def test_function_too_long(self):
        text = SPDX + "void f(void)\n{\n" + "    g();\n" * 101 + "}\n"
        self.assert_complaint("src/base/a.c", text, "a function of 101 lines")

    def test_function_of_100_lines_passes(self):
        self.assert_clean("src/base/a.c", SPDX + "void f(void)\n{\n" + "    g();\n" * 100 + "}\n")

    def test_banned_functions(self):
        for name in [
            "strcpy", "strcat", "sprintf", "gets", "strtok", "atoi", "atol", "system", "popen",
            "alloca", "mktemp", "tmpnam",
        ]:  # fmt: skip
            with self.subTest(name):
                self.assert_complaint("src/base/a.c", f"{SPDX}int x = {name}(y);\n", f"{name}()")

    def test_banned_function_in_test(self):
        self.write("tests/unit/meson.build", LIST + "'test_a'\n")
        self.assert_complaint("tests/unit/test_a.c", f"{SPDX}int x = atoi(y);\n", "atoi()")

    def test_like_names_pass(self):
        text = 'my_system(); ops->system(); x.gets(); /* atoi(s) */ f("strcpy(a, b)"); // popen(x)\n'
        self.assert_clean("src/base/a.c", SPDX + text)

    def test_exit_outside_cli(self):
        self.assert_complaint("src/base/a.c", SPDX + "    exit(1);\n", "exit()")

    def test_exit_in_cli_passes(self):
        self.assert_clean("src/cli/a.c", SPDX + "    exit(1);\n")

    def test_printing_outside_the_edge(self):
        for call in ['printf("a")', 'puts("a")', 'fprintf(stdout, "a")']:
            with self.subTest(call):
                self.assert_complaint("src/base/a.c", f"{SPDX}    {call};\n", "standard output")

    def test_printing_in_cli_or_to_stderr_passes(self):
        self.write("src/cli/a.c", SPDX + '    printf("a");\n')
        self.assert_clean("src/base/a.c", SPDX + '    fprintf(stderr, "a"); snprintf(b, 1, "");\n')

    def test_unfinished_marks(self):
        for word in ["TO" + "DO", "FIX" + "ME", "XX" + "X"]:
            with self.subTest(word):
                self.assert_complaint("src/base/a.c", f"{SPDX}/* {word}: later */\n", "unfinished")

    def test_template_of_mkostemp_passes(self):
        self.assert_clean("src/base/a.c", SPDX + 'char t[] = "/tmp/a-XXXXXX";\n')

    def test_source_missing_from_build(self):
        self.assert_complaint("src/base/b.c", SPDX, "src/base/meson.build")

    def test_test_missing_from_build(self):
        self.write("tests/io/meson.build", LIST)
        text = "# SPDX-License-Identifier: Apache-2.0\n"
        self.assert_complaint("tests/io/test_a.py", text, "tests/io/meson.build")

    def test_header_without_guard(self):
        self.assert_complaint("src/base/a.h", SPDX + "int f(void);\n", "TIDEMARK_BASE_A_H")

    def test_header_with_guard_passes(self):
        guard = "#ifndef TIDEMARK_BASE_A_H\n#define TIDEMARK_BASE_A_H\n#endif\n"
        self.assert_clean("src/base/a.h", SPDX + guard)


if __name__ == "__main__":
    unittest.main()
