#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for fuzz_qcow2: small images by qemu-img with everything that the format has."""

import os
import subprocess
import sys

# Name, options of creation, size, commands: qemu-io's, or others as (program, argument, ...).
IMAGES = {
    "empty": ("cluster_size=512", "64k", ()),
    "data": ("cluster_size=512", "64k", ("write -P 1 0 9k", "write -P 2 20k 512", "write -z 30k 4k")),
    "discard": ("cluster_size=512", "64k", ("write -P 1 0 9k", "discard 2k 3k", "write -zu 6k 1k")),
    "4k": ("cluster_size=4k", "1M", ("write -P 1 0 12k", "write -P 2 900k 4k")),
    "zlib": ("cluster_size=4k", "1M", ("write -c -P 1 0 4k", "write -c -P 2 4k 4k", "write 64k 1k")),
    "zstd": (
        "cluster_size=4k,compression_type=zstd",
        "1M",
        ("write -c -P 1 0 4k", "write -c -P 2 4k 4k"),
    ),
    "bitmaps": (
        "cluster_size=512",
        "1M",
        (
            ("bitmap", "--add", "-g", "512", "a"),
            ("bitmap", "--add", "-g", "64k", "b"),
            "write -P 1 0 9k",
            ("bitmap", "--disable", "b"),
        ),
    ),
    "snapshots": (
        "cluster_size=512",
        "64k",
        ("write -P 1 0 2k", ("snapshot", "-c", "one"), "write -P 2 1k 2k", ("snapshot", "-c", "two")),
    ),
    "narrow": ("cluster_size=512,refcount_bits=1", "64k", ("write -P 1 0 2k",)),
    "wide": ("cluster_size=512,refcount_bits=64", "64k", ("write -P 1 0 2k",)),
    "subclusters": (
        "cluster_size=16k,extended_l2=on",
        "128k",
        ("write -P 1 0 1k", "write -P 2 16k 20k", "write -z 17k 1k", "write -c -P 3 64k 16k"),
    ),
    "v2": ("cluster_size=512,compat=0.10", "64k", ("write -P 1 0 2k",)),
}


def make(path, options, size, commands):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size], check=True)
    for command in commands:
        if isinstance(command, str):
            words = ["qemu-io", "-f", "qcow2", "-c", command, path]
        elif command[0] == "bitmap":
            words = ["qemu-img", *command[:-1], path, command[-1]]
        else:
            words = ["qemu-img", *command, path]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def main(directory):
    for name, image in IMAGES.items():
        path = os.path.join(directory, name)
        make(path, *image)
        with open(path, "rb") as f:
            data = f.read()
        os.unlink(path)
        for how in range(0, 8, 7):
            with open(f"{path}-{how}", "wb") as f:
                f.write(data + bytes([how]))


main(sys.argv[1])
