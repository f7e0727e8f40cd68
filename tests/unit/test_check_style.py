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

    def test_printing_in_cli_passes(self):
        self.write("src/cli/a.c", SPDX + '    printf("a"); fprintf(stderr, "a"); perror("a");\n')
        self.assert_clean("src/base/a.c", SPDX + '    snprintf(b, 1, "");\n')

    def test_printing_to_stderr(self):
        for call in ['fprintf(stderr, "a")', 'perror("a")', 'fputs("a", stderr)']:
            with self.subTest(call):
                self.assert_complaint("src/base/a.c", f"{SPDX}    {call};\n", "standard error")

    def test_printing_to_stderr_in_the_log_passes(self):
        self.write("src/base/meson.build", LIST + "'log.c'\n")
        self.assert_clean("src/base/log.c", SPDX + "    write(STDERR_FILENO, a, 1);\n")

    def test_members_that_another_file_owns(self):
        for text in ("b->enabled = true;", "b->enabled |= 1;", "b->recorder=NULL;"):
            body = f"void f(struct b *b)\n{{\n    {text}\n}}\n"
            self.assert_complaint("src/base/a.c", SPDX + body, "only src/block/bitmap_list.c assigns")

    def test_members_that_are_read_pass(self):
        self.assert_clean("src/base/a.c", SPDX + "int f(struct b *b)\n{\n    return b->enabled == 1;\n}\n")

    def test_private_header(self):
        self.write("src/meson.build", LAYERS.replace("'co'", "'block',\n  'co'"))
        self.write("src/block/meson.build", LIST)
        self.write("src/block/a.c", SPDX + '#include "block/driver.h"\n')
        self.assert_complaint("src/cli/a.c", SPDX + '#include "block/driver.h"\n', "private")

    def test_wide_lines(self):
        self.assert_complaint("src/base/a.c", f"{SPDX}/* {'x' * 95} */\n", "101 columns")
        os.remove(os.path.join(self.folder.name, "src/base/a.c"))
        self.assert_complaint("docs/a.md", "word " * 20 + "end.\n", "104 columns")
        self.write("docs/a.md", "Short.\n")
        self.write("src/base/a.c", SPDX)
        self.assert_clean("src/base/meson.build", LIST + f"x = '{'x' * 110}'\n")
        self.assert_complaint("src/base/meson.build", LIST + f"# {'x' * 99}\n", "101 columns")

    def test_wide_lines_that_pass(self):
        self.write("docs/a.md", "| a " * 40 + "|\n```\n" + "a " * 60 + "\n```\n" + "    " + "a " * 60)
        self.assert_clean("src/base/a.c", f"{SPDX}/* {'é' * 94} */\n")

    def test_torn_declarations(self):
        for text in [
            "struct a {\n    uint64_t\n        size; /* in bytes */\n};\n",
            "#define A            \\\n    1u /* the first */\n",
            "void f(int a,\n       int b); /* both */\n",
        ]:
            with self.subTest(text):
                self.assert_complaint("src/base/a.c", SPDX + text, "comment behind it")

    def test_declarations_that_are_not_torn(self):
        self.assert_clean(
            "src/base/a.c",
            SPDX
            + "/* In bytes. */\nuint64_t size;\n"
            + f"void f(int {'a' * 50},\n       int {'b' * 50}); /* both */\n"
            + "void f(int a, /* one */\n       int b); /* and another */\n"
            + "int a; /* one */\nint b; /* another */\n",
        )

    def assert_header(self, text, complaint=None):
        guard = "#ifndef TIDEMARK_BASE_A_H\n#define TIDEMARK_BASE_A_H\n\n%s\n\n#endif\n"
        if complaint:
            self.assert_complaint("src/base/a.h", SPDX + guard % text, complaint)
        else:
            self.assert_clean("src/base/a.h", SPDX + guard % text)

    def test_static_function_with_the_name_of_another(self):
        self.write("src/base/meson.build", LIST.replace("'a.c'", "'a.c', 'b.c'"))
        self.write("src/base/a.c", SPDX + "static int f(void)\n{\n}\n")
        self.assert_clean("src/base/b.c", SPDX + "static int g(void)\n{\n    return f();\n}\n")
        self.assert_clean("tests/unit/a.c", SPDX + "static int f(void)\n{\n}\n")
        self.assert_complaint("src/base/b.c", SPDX + "static int f(void)\n{\n}\n", "src/base/a.c")

    def test_function_without_comment_in_header(self):
        self.assert_header("/* Other. */\nint a;\n\nint f(void);", "f()")

    def test_inline_function_without_comment_in_header(self):
        self.assert_header("static inline int f(void)\n{\n    return 1;\n}", "f()")

    def test_function_below_a_struct_with_comment(self):
        self.assert_header("/* A. */\nstruct a {\n    int x;\n};\nint f(struct a *a);", "f()")

    def test_functions_with_comments_in_header_pass(self):
        self.assert_header("/* One\n * or two. */\nint f(int a,\n      int b);\nint g(void);")
        self.assert_header("int f(void); /* one */")
        self.assert_header("typedef int f(int x);\nstruct a {\n    int (*f)(int x);\n};")

    def test_words(self):
        self.assert_complaint("src/base/a.c", SPDX + "/* Ask anew. */\n", "'anew': again")
        self.assert_complaint("src/base/a.c", SPDX + 'f("They are Told");\n', "'Told'")
        os.remove(os.path.join(self.folder.name, "src/base/a.c"))
        self.assert_complaint("man/a.1", ".Nd so many\n", "'so many'")

    def test_paths_in_documents(self):
        self.assert_complaint("docs/a.md", "See `base/b.c` there.\n", "no base/b.c")

    def test_paths_in_documents_that_pass(self):
        text = "`base/meson.build`, `src/base/meson.build`, `src/NAME/a.c`, `build/tidemark`, `a/b`\n"
        self.assert_clean("docs/a.md", text)

    def test_words_in_code_pass(self):
        self.assert_clean("src/base/a.c", SPDX + "anew = beside(); /* renewed */\n")

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
