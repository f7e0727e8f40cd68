# SPDX-License-Identifier: Apache-2.0
# A thin front for meson and ninja. `make help` lists the targets: lines that begin with `#:`.
#
#: Targets:
#:   make            release build in build/; every other target below builds what it needs
#:   make test       install what is missing, build, and run every test
#:   make demo       install what is missing, and show the main job from end to end
#:   make deps       install the Debian packages to build, test and lint; make deps-SECTION those of
#:                   one section of dependencies.txt (bench, arm64, coverage ...)
#:   make install    programs, manual pages, completion and systemd units; make uninstall
#:   make lint       style and static checks          make format      run clang-format over the tree
#:   make debug      ASan and UBSan, build-debug/     make tsan        TSan, build-tsan/
#:   make clang      built by clang, build-clang/     make coverage    what the quick tests reach
#:   make fuzz       libFuzzer targets, build-fuzz/   make fuzz-run    each of them for FUZZ_SECONDS (600)
#:   make bench      compare speed with others        make crash-long  many more states after a crash
#:   make mutants    plant faults, see what notices   make model       random jobs for MODEL_SECONDS (7200)
#:   make bitmap-model  random work on bitmaps, as long; make backup-model  days of backups
#:   make guest      backups of a guest that runs, in QEMU, and a boot of what is restored
#:   make luks-matrix   volumes of all kinds, by and for cryptsetup in a guest
#:   make reference  the tables of docs/qmp.md
#:   make arm64      cross build, build-arm64/        make test-arm64  its unit tests in qemu-user
#:   make clean      remove all build directories
#:
#: Variables:
#:   JOBS=N          compile and test N at a time (default: the number of processors)
#:   CC=COMPILER     another compiler than gcc
#:   TEST_ARGS=...   arguments for tools/run-tests, for instance --quick or '--only qcow2'
#:   DEPS=check      make test and make demo, too, only name missing packages; DEPS=install: every
#:                   target installs them
#:   prefix=/usr/local, DESTDIR=, COMPAT=no    for make install; COMPAT=yes also installs
#:                   qemu-img, qemu-io, qemu-nbd and qemu-storage-daemon as links to tidemark

JOBS ?= $(shell nproc)
ifneq ($(origin CC),default)
export CC
endif

build = tools/configure build$(1) $(2) && ninja -C build$(1) -j $(JOBS) $(3)

all: need-build
	@$(call build,,release,programs)

help:
	@sed -n 's/^#: \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

debug tsan: need-build
	@$(call build,-$@,$@,programs)

# With the tests.
clang fuzz: need-build need-test
	@$(call build,-$@,$@,all)

FUZZ_SECONDS ?= 600
fuzz-run: need-build need-test
	@tools/configure build-fuzz fuzz
	@nice -n 19 tools/run-tests --build build-fuzz --suite fuzz --fuzz-seconds $(FUZZ_SECONDS) -j 1 $(TEST_ARGS)

arm64: need-build need-arm64
	@$(call build,-$@,$@,programs)

test-arm64: arm64 need-test
	@tools/run-tests --build build-arm64 --suite unit -j $(JOBS) $(TEST_ARGS)

test: need-build need-test
	@tools/run-tests -j $(JOBS) $(TEST_ARGS)

# Seeds from the clock are fresh; a failure names what repeats it.
CRASH_STATES ?= 200000
CRASH_SEED ?= $(shell date +%s)000

crash-long: need-build need-test
	@$(call build,,release,tests/crash/crash_explorer)
	@nice build/tests/crash/crash_explorer --keep-going --states $(CRASH_STATES) --seed $(CRASH_SEED) $(CRASH_ARGS)

# Jobs on disks in use, against a model; a failure names the seed that repeats it.
MODEL_SECONDS ?= 7200
model: need-build need-test
	@$(call build,,release,programs)
	@TIDEMARK_BUILD=build nice tests/lib/job_model.py --seconds $(MODEL_SECONDS) $(MODEL_ARGS)

# Likewise bitmaps through operations on chains, other programs and kills.
bitmap-model: need-build need-test
	@$(call build,,release,programs)
	@TIDEMARK_BUILD=build nice tests/lib/bitmap_model.py --seconds $(MODEL_SECONDS) $(MODEL_ARGS)

# Likewise backups of disks that are resized and moved, and whose daemons are killed.
backup-model: need-build need-test
	@$(call build,,release,programs)
	@cd tests/io && TIDEMARK_BUILD=../../build TIDEMARK_MODEL_SECONDS=$(MODEL_SECONDS) TIDEMARK_MODEL_DAYS=40 \
		PYTHONPATH=../lib nice python3 -B -m unittest -v test_backup_model test_backup_model_machine

luks-matrix: all need-guest
	@tools/luks-matrix --build build

guest: need-build need-guest
	@$(call build,,release,programs)
	@TIDEMARK_BUILD=$(CURDIR)/build TIDEMARK_SOURCE=$(CURDIR) PYTHONPATH=tests/lib \
	    python3 -B -m unittest nbd_guest ktls_guest
	@tools/guest-proof --build build $(GUEST_ARGS)

# Planted faults; MUTANTS_ARGS for some of them, as in --layer qcow2,nbd.
mutants: need-build need-test
	@nice -n 19 tools/mutants $(MUTANTS_ARGS)

demo: need-demo all
	@demo/run

bench: need-bench all
	@bench/run
	@bench/convert
	@bench/backup
	@bench/check
	@bench/jobs
	@bench/open
	@bench/tracking
	@bench/many_nodes
	@bench/status
	@bench/nbd_client
	@bench/slow_readers
	@bench/fleece
	@if [ $$(id -u) = 0 ]; then bench/hung_file; else sudo -n bench/hung_file; fi

reference: need-build
	@$(call build,,release,test-tools)
	@tools/qmp-reference build docs/qmp.md

lint: need-build need-test need-lint
	@tools/lint -j $(JOBS)

# Lines and branches that the quick tests reach; the report by lines is build-coverage/report/index.html.
# A test that kills a program with SIGKILL gets no counts of it. gcovr can't merge the two variants of co/context.c.
coverage: need-build need-test need-coverage
	@$(call build,-$@,$@,all)
	@find build-coverage -name '*.gcda' -delete
	@tools/run-tests --build build-coverage --quick -j $(JOBS) $(TEST_ARGS) || echo "coverage: in spite of failed tests:"
	@mkdir -p build-coverage/report
	@gcovr -r . --object-directory build-coverage --filter src/ --gcov-ignore-parse-errors \
		--exclude-directories '.*ucontext.*' --html-details build-coverage/report/index.html --print-summary

format: need-lint
	@find src tests bench -name '*.[ch]' | xargs clang-format -i

# What a target needs is only checked; test and demo, which anyone can start with, install it.
test demo: DEPS ?= install
need-%:
	@tools/install-deps $(if $(filter install,$(DEPS)),,--check) $*

deps: deps-build deps-test deps-lint
deps-%:
	@tools/install-deps $*

prefix ?= /usr/local
COMPAT ?= no
install: all
	@meson configure build -Dprefix=$(prefix) -Dcompat=$(if $(filter yes,$(COMPAT)),true,false)
	@ninja -C build -j $(JOBS) programs
	@DESTDIR=$(DESTDIR) meson install -C build --no-rebuild

# What the last `make install` from here has put there.
uninstall:
	@ninja -C build uninstall

clean:
	rm -rf build build-debug build-tsan build-clang build-fuzz build-coverage build-arm64 build-arm64-sysroot build-mutants

.PHONY: all help debug tsan clang fuzz fuzz-run arm64 test test-arm64 crash-long model bitmap-model backup-model guest luks-matrix \
	mutants demo bench lint \
	reference format deps install uninstall coverage clean
