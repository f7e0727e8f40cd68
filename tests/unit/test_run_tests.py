# SPDX-License-Identifier: Apache-2.0
"""tools/run-tests counts what a test program says, and never takes silence for success."""

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
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

    def test_other_lines_of_sanitizers_are_no_failure(self):
        other = (
            "==1==WARNING: ASan doesn't fully support makecontext/swapcontext",
            "==1==Unable to get registers from thread 2.",
        )
        self.assertTrue(runner.is_harmless("\n".join(other)))
        for line in ("==1==ERROR: LeakSanitizer: detected memory leaks", "Unable to get registers"):
            self.assertFalse(runner.is_harmless("\n".join((*other, line))))

    def test_fuzz_target_is_asked_to_end_after_processor_time(self):
        job = shell_job("trap 'exit 0' USR1; while :; do :; done")
        job.fuzz_seconds = 0.3
        outcome = runner.run_job(job)
        self.assertEqual((outcome.passed, outcome.failed), (1, []))
        self.assertGreaterEqual(outcome.cpu_seconds, 0.3)


class RunningTogether(unittest.TestCase):
    def setUp(self):
        self.schedule = runner.test_schedule.Schedule(2)
        self.lock = threading.Lock()
        self.now = self.most = self.ended = 0

    def wait(self):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        with self.lock:
            self.now -= 1
            self.ended += 1

    def test_every_test_runs_and_not_all_at_once(self):
        for _ in range(40):
            self.schedule.add_test(self.wait, 1)
        self.schedule.run()
        self.assertEqual(self.ended, 40)
        self.assertGreaterEqual(self.most, 2)
        self.assertLessEqual(self.most, 2 * runner.test_schedule.WIDEST)

    def test_more_tests_run_while_processors_are_idle(self):
        self.schedule.processors.idle = lambda with_nice: 1.5
        runner.test_schedule.LOOK_SECONDS = 0.01
        for _ in range(40):
            self.schedule.add_test(self.wait, 1)
        self.schedule.run()
        self.assertGreater(self.most, 2)

    def test_no_more_tests_run_while_processors_are_busy(self):
        self.schedule.processors.idle = lambda with_nice: 0.1
        for _ in range(10):
            self.schedule.add_test(self.wait, 1)
        self.schedule.run()
        self.assertEqual(self.most, 2)

    def test_chore_adds_tests(self):
        self.schedule.add_chore(lambda: self.schedule.add_test(self.wait, 1))
        self.schedule.run()
        self.assertEqual(self.ended, 1)

    def test_alone_is_alone(self):
        for alone in (False, True, True):
            self.schedule.add_test(self.wait, 1, alone)
        self.schedule.run()
        self.assertEqual((self.ended, self.most), (3, 1))

    def test_defect_of_a_chore_is_no_success(self):
        self.schedule.add_chore(lambda: {}["absent"])
        with self.assertRaises(KeyError):
            self.schedule.run()

    def test_build_that_fails_is_reported_with_its_output(self):
        report = runner.Report()
        report.add_failure = lambda what, output: report.failures.append((what, output))
        args = runner.argparse.Namespace(jobs=1)
        runner.TOP, top = "/nonexistent", runner.TOP
        runner.run_make(["lint"], args, report)
        runner.TOP = top
        self.assertEqual(report.failures[0][0], "make lint failed")
        self.assertIn("/nonexistent", report.failures[0][1])

    def test_a_run_without_tests_fails_and_says_why(self):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = runner.Report().close()
        self.assertEqual(status, 1)
        self.assertRegex(printed.getvalue(), "No test matches.*\n0 passed, 0 failed\n$")


class SecondRuns(unittest.TestCase):
    """In a CI run a few failures are tried again alone; none is forgotten."""

    BAD = "echo 1..1; echo not ok 1 - b; exit 1"

    def setUp(self):
        self.flag = os.path.join(tempfile.mkdtemp(), "flag")
        self.addCleanup(shutil.rmtree, os.path.dirname(self.flag))
        self.once = (
            f"echo 1..2; echo ok 1 - a; if [ -e {self.flag} ]; then echo ok 2 - b; "
            f"else touch {self.flag}; echo not ok 2 - b; exit 1; fi"
        )

    def report(self, *scripts, second_runs=True):
        """(exit status, number of passed, failures, unsteady ones)."""
        report = runner.Report(second_runs)
        with contextlib.redirect_stdout(io.StringIO()):
            for script in scripts:
                report.add(runner.run_job(shell_job(script, tap=True, timeout=1)))
            report.decide()
            status = report.close()
        return status, report.passed, len(report.failures), len(report.unsteady)

    def test_what_passes_alone_is_unsteady(self):
        self.assertEqual(self.report(self.once), (0, 2, 0, 1))

    def test_what_fails_again_has_failed(self):
        self.assertEqual(self.report(self.BAD), (1, 0, 1, 0))

    def test_many_failures_stand(self):
        self.assertEqual(self.report(self.once, *[self.BAD] * 3), (1, 1, 4, 0))

    def test_no_second_run_outside_of_ci(self):
        self.assertEqual(self.report(self.once, second_runs=False), (1, 1, 1, 0))

    def test_crashes_hangs_and_reports_of_sanitizers_stand(self):
        for end in (
            "kill -9 $$",
            "sleep 5",
            "echo '# AssertionError: exit -6'; echo not ok 1 - b; exit 1",
            "echo '# ==1==ERROR: AddressSanitizer: x'; echo not ok 1 - b; exit 1",
        ):
            script = (
                f"echo 1..1; [ ! -e {self.flag} ] || {{ echo ok 1 - b; exit 0; }}; "
                f"touch {self.flag}; {end}"
            )
            with self.subTest(end):
                self.assertEqual(self.report(script)[0], 1)
            os.unlink(self.flag)


class Stopping(unittest.TestCase):
    def test_signal_ends_what_runs(self):
        script = (
            "import sys; sys.path.insert(0, sys.argv[1]); import test_schedule as t\n"
            "t.stop_on_signals(); s = t.Schedule(1)\n"
            "def chore():\n"
            "    p = t.start_group(['sleep', '60']); print(p.pid, flush=True); p.wait()\n"
            "s.add_chore(chore); s.run()\n"
        )
        cmd = [sys.executable, "-c", script, os.path.join(TOP, "tools")]
        with subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True) as process:
            pid = int(process.stdout.readline())
            process.terminate()
            self.assertEqual(process.wait(10), 128 + signal.SIGTERM)
        with self.assertRaises(ProcessLookupError):
            for _ in range(1000):
                os.kill(pid, 0)
                if is_zombie(pid):
                    raise ProcessLookupError
                time.sleep(0.01)


def is_zombie(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "Z"


if __name__ == "__main__":
    unittest.main()
