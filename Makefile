# SPDX-License-Identifier: Apache-2.0
# A thin front for meson and ninja.
JOBS ?= $(shell nproc)

all:
	test -d build || meson setup build
	ninja -C build -j $(JOBS)

debug:
	test -d build-debug || meson setup build-debug --buildtype=debug -Doptimization=1 -Db_sanitize=address,undefined -Db_lundef=false
	ninja -C build-debug -j $(JOBS)

tsan:
	test -d build-tsan || meson setup build-tsan --buildtype=debug -Doptimization=1 -Db_sanitize=thread -Db_lundef=false
	ninja -C build-tsan -j $(JOBS)

.PHONY: all debug tsan
