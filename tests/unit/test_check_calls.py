# SPDX-License-Identifier: Apache-2.0
"""tools/check-calls finds functions whose name and calls disagree."""

import os
import subprocess
import tempfile
import unittest

TOP = os.environ["TIDEMARK_SOURCE"]


def function(name, *calls, static=False):
    body = "".join(f"    {call};\n" for call in calls)
    return f"{'static ' * static}void {name}(void)\n{{\n{body}}}\n\n"


class CheckCalls(unittest.TestCase):
    def complaints(self, **files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = os.path.join(folder, "src", name.replace("__", "/") + ".c")
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w") as f:
                    f.write(text)
            cmd = [os.path.join(TOP, "tools", "check-calls"), folder]
            result = subprocess.run(cmd, stdout=subprocess.PIPE, text=True)
        lines = result.stdout.splitlines()
        self.assertEqual(result.returncode, 1 if lines else 0)
        return lines

    def assert_complaint(self, complaint, **files):
        lines = self.complaints(**files)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn(complaint, lines[0])

    def assert_clean(self, **files):
        self.assertEqual(self.complaints(**files), [])

    def test_function_that_suspends(self):
        self.assert_complaint("take() may yield in co_suspend()", a=function("take", "co_suspend()"))

    def test_function_that_suspends_through_others(self):
        a = function("a_co_wait", "co_mutex_lock(&m)")
        b = function("take", "x = a_co_wait()")
        self.assert_complaint("b.c:1: take() may yield in a_co_wait()", a=a, b=b)

    def test_function_that_calls_a_member_that_may_yield(self):
        self.assert_complaint("take() may yield", a=function("take", "return node->co_read(node)"))

    def test_functions_that_say_that_they_yield_pass(self):
        a = function("co_take", "co_suspend()", static=True) + function("a_co_take", "co_take()")
        self.assert_clean(a=a)

    def test_static_function_hides_one_of_another_file(self):
        a = function("a_co_wait", "co_suspend()")
        b = function("a_co_wait", static=True) + function("take", "a_co_wait()")
        lines = self.complaints(a=a, b=b)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("b.c:1: a_co_wait() never yields", lines[0])

    def test_array_parameter_makes_no_static_function(self):
        a = function("a_co_wait", "co_suspend()").replace("(void)", "(char x[static 4])")
        self.assert_complaint("take() may yield", a=a, b=function("take", "a_co_wait(x)"))

    def test_starting_a_coroutine_is_no_yield(self):
        a = function("co_entry_of_a", "co_suspend()") + function("start", "co_spawn(co_entry_of_a)")
        self.assert_clean(a=a)

    def test_call_in_a_comment_or_string_is_none(self):
        self.assert_clean(a=function("take", 'f("co_suspend()")', "/* co_suspend() */"))

    def test_name_of_one_that_never_yields(self):
        self.assert_complaint("co_take() never yields", a=function("co_take", "f()"))

    def test_implementation_of_an_interface_may_never_yield(self):
        table = "struct driver d = {.co_take = a_co_take};\n"
        self.assert_clean(a=function("a_co_take", "f()") + table)

    def test_call_of_locked_without_lock(self):
        self.assert_complaint("take() calls a_locked()", a=function("take", "a_locked()"))

    def test_calls_of_locked_under_a_lock_pass(self):
        a = function("take", "pthread_mutex_lock(&m)", "a_locked()", "pthread_mutex_unlock(&m)")
        a += function("take_locked", "a_locked()")
        a += function("co_give", "co_mutex_lock(&m)", "a_locked()")
        a += function("assure", "CO_ASSERT_HELD(&m)", "a_locked()")
        self.assert_clean(a=a)

    def test_block_is_no_lock(self):
        self.assert_complaint("takes no lock", a=function("take", "block_read()", "a_locked()"))


if __name__ == "__main__":
    unittest.main()
