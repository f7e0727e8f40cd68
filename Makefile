# SPDX-License-Identifier: Apache-2.0
# A thin front for meson and ninja; each target installs what it needs first.
#
#   make          release build in build/          make test     build and run every test
#   make debug    ASan and UBSan, build-debug/     make demo     the main job, end to end
#   make tsan     TSan, build-tsan/                make bench    compare with others
#   make clang    built by clang, build-clang/     make lint     style and static checks
#   make fuzz     libFuzzer targets, build-fuzz/   make format   run clang-format over the tree
#   make fuzz-run    run each target for FUZZ_SECONDS (600), one after the other
#   make mutants  plant faults in a copy of the tree, and see which tests notice
#   make arm64    cross build, build-arm64/        make test-arm64   run its unit tests in qemu-user
#
# JOBS=N limits parallel compilation, CC=clang chooses the compiler, and TEST_ARGS passes
# arguments to tools/run-tests.

JOBS ?= $(shell nproc)
ifneq ($(origin CC),default)
export CC
endif

build = tools/configure build$(1) $(2) && ninja -C build$(1) -j $(JOBS) $(3)

all: deps-build
	@$(call build,,release,programs)

debug tsan: deps-build
	@$(call build,-$@,$@,programs)

# With the tests.
clang fuzz: deps-build deps-test
	@$(call build,-$@,$@,all)

FUZZ_SECONDS ?= 600
fuzz-run: deps-build deps-test
	@tools/configure build-fuzz fuzz
	@nice -n 19 tools/run-tests --build build-fuzz --suite fuzz --fuzz-seconds $(FUZZ_SECONDS) -j 1 $(TEST_ARGS)

arm64: deps-build deps-arm64
	@$(call build,-$@,$@,programs)

test-arm64: arm64 deps-test
	@tools/run-tests --build build-arm64 --suite unit -j $(JOBS) $(TEST_ARGS)

test: deps-build deps-test
	@tools/run-tests -j $(JOBS) $(TEST_ARGS)

# Seeds from the clock are fresh; a failure names what repeats it.
CRASH_STATES ?= 200000
CRASH_SEED ?= $(shell date +%s)000

crash-long: deps-build deps-test
	@$(call build,,release,tests/crash/crash_explorer)
	@nice build/tests/crash/crash_explorer --keep-going --states $(CRASH_STATES) --seed $(CRASH_SEED) $(CRASH_ARGS)

# Planted faults; MUTANTS_ARGS for some of them, as in --layer qcow2,nbd.
mutants: deps-build deps-test
	@nice -n 19 tools/mutants $(MUTANTS_ARGS)

demo: deps-demo all
	@demo/run

bench: deps-bench all
	@bench/run
	@bench/convert
	@bench/check
	@bench/open
	@bench/status
	@bench/slow_readers
	@if [ $$(id -u) = 0 ]; then bench/hung_file; else sudo -n bench/hung_file; fi

lint: deps-build deps-test deps-lint
	@tools/lint -j $(JOBS)

format: deps-lint
	@find src tests bench -name '*.[ch]' | xargs clang-format -i

deps-%:
	@tools/install-deps $*

install: all
	@meson install -C build --no-rebuild

clean:
	rm -rf build build-debug build-tsan build-clang build-fuzz build-arm64 build-arm64-sysroot build-mutants

.PHONY: all debug tsan clang fuzz fuzz-run arm64 test test-arm64 crash-long mutants demo bench lint format install clean
