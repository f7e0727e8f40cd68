# SPDX-License-Identifier: Apache-2.0
"""tools/run-tests counts what a test program says, and never takes silence for success."""

import importlib.machinery
import importlib.util
import os
import sys
import time
import unittest

TOP = os.environ["TIDEMARK_SOURCE"]


def load_runner():
    sys.dont_write_bytecode = True
    path = os.path.join(TOP, "tools", "run-tests")
    loader = importlib.machinery.SourceFileLoader("run_tests", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_tests", loader))
    loader.exec_module(module)
    return module


runner = load_runner()


def shell_job(script, tap=False, timeout=10):
    return runner.Job(
        "/nonexistent",
        "release",
        {
            "name": "case",
            "suite": ["tidemark:io"],
            "cmd": ["/bin/sh", "-c", script],
            "env": {},
            "protocol": "tap" if tap else "exitcode",
            "is_parallel": True,
            "timeout": timeout,
        },
    )


class TapCounting(unittest.TestCase):
    def test_counts_passed_and_failed(self):
        self.assertEqual(runner.parse_tap("1..3\nok 1 - a\nnot ok 2 - b\nok 3 - c\n"), (2, ["b"]))

    def test_adds_up_several_plans(self):
        self.assertEqual(runner.parse_tap("1..1\nok 1 - a\n# ok - t\n1..1\nok 1 - b\n"), (2, []))

    def test_skip_is_failure(self):
        passed, failed = runner.parse_tap("1..2\nok 1 - a # SKIP no disk\nnot ok 2 # SKIP b\n")
        self.assertEqual((passed, len(failed)), (0, 2))

    def test_plan_cut_short_is_failure(self):
        passed, failed = runner.parse_tap("1..3\nok 1 - a\n")
        self.assertEqual(passed, 1)
        self.assertEqual(failed, ["2 of 3 planned cases did not run"])

    def test_first_plan_cut_short_is_failure(self):
        self.assertEqual(len(runner.parse_tap("1..2\nok 1 - a\n1..1\nok 1 - b\n")[1]), 1)

    def test_silence_is_failure(self):
        self.assertEqual(runner.parse_tap(""), (0, ["printed no test plan"]))

    def test_empty_plan_is_failure(self):
        self.assertEqual(runner.parse_tap("1..0\n"), (0, ["planned no test"]))

    def test_bail_out_is_failure(self):
        self.assertEqual(len(runner.parse_tap("1..1\nok 1 - a\nBail out! lost\n")[1]), 1)


class RunningPrograms(unittest.TestCase):
    def test_script_that_succeeds_counts_one(self):
        outcome = runner.run_job(shell_job("true"))
        self.assertEqual((outcome.passed, outcome.failed), (1, []))

    def test_script_that_fails_counts_one_failed(self):
        outcome = runner.run_job(shell_job("echo why; exit 3"))
        self.assertEqual((outcome.passed, outcome.failed), (0, ["exit status 3"]))
        self.assertIn("why", outcome.output)

    def test_crash_after_good_cases_is_failure(self):
        outcome = runner.run_job(shell_job("echo 1..1; echo ok 1 - a; kill -SEGV $$", tap=True))
        self.assertEqual((outcome.passed, outcome.failed), (1, ["killed by SIGSEGV"]))

    def test_bad_exit_after_good_cases_is_failure(self):
        outcome = runner.run_job(shell_job("echo 1..1; echo ok 1 - a; exit 1", tap=True))
        self.assertEqual(outcome.failed, ["exit status 1"])

    def test_timeout_is_failure(self):
        outcome = runner.run_job(shell_job("sleep 60", timeout=0.2))
        self.assertEqual((outcome.passed, outcome.failed), (0, ["timed out after 0.2 s"]))

    def test_left_over_process_is_ended(self):
        outcome = runner.run_job(shell_job("sleep 60 & echo $!"))
        pid = int(outcome.output)
        with self.assertRaises(ProcessLookupError):
            for _ in range(1000):
                os.kill(pid, 0)
                if is_zombie(pid):
                    raise ProcessLookupError
                time.sleep(0.01)

    def test_sanitizer_report_of_any_process_is_failure(self):
        script = "path=${ASAN_OPTIONS#log_path=}; echo bad >${path%%:*}.1"
        outcome = runner.run_job(shell_job(script))
        self.assertIn("a sanitizer reported an error", outcome.failed)
        self.assertIn("bad", outcome.output)


def is_zombie(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "Z"


if __name__ == "__main__":
    unittest.main()
