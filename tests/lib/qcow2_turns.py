# SPDX-License-Identifier: Apache-2.0
"""A qcow2 image on which two programs take turns, and a model of what it has to hold.

The model is the judge: an array of bytes for the disk, one for each snapshot, and for each bitmap
what must be and what may be dirty. What a discard leaves is up to the program: until the next look,
a sector may hold what it held, or zeroes.
"""

import os

from qcow2_edit import Image
from tidemark import img, io, qemu_img, qemu_io

SECTOR = 512
OURS, THEIRS = (img, io), (qemu_img, qemu_io)


class Mismatch(AssertionError):
    pass


class Bitmap:
    def __init__(self, granularity):
        self.granularity = granularity
        self.recording = True
        self.must, self.may = set(), set()

    def granules(self, start, end):
        if end <= start:
            return range(0)
        return range(start // self.granularity, (end - 1) // self.granularity + 1)

    def mark(self, start, end, surely=True):
        self.may.update(self.granules(start, end))
        if surely:
            self.must.update(self.granules(start, end))

    def cut(self, size):
        end = -(-size // self.granularity)
        self.must = {n for n in self.must if n < end}
        self.may = {n for n in self.may if n < end}


class Disk:
    """What a guest sees."""

    def __init__(self, data):
        self.data = bytearray(data)
        self.others = {}  # sector: what it may hold besides

    def copy(self):
        return Disk(self.data)

    def _set(self, start, end, byte):
        self.data[start:end] = bytes([byte]) * (end - start)
        for sector in range(start // SECTOR, -(-end // SECTOR)):
            if sector in self.others:
                first, last = max(start - sector * SECTOR, 0), min(end - sector * SECTOR, SECTOR)
                self.others[sector] = {
                    other[:first] + bytes([byte]) * (last - first) + other[last:]
                    for other in self.others[sector]
                }

    def write(self, start, end, byte):
        self._set(start, end, byte)

    def discard(self, start, end):
        for sector in range(start // SECTOR, -(-end // SECTOR)):
            self.others.setdefault(sector, set()).add(bytes(SECTOR))

    def resize(self, size):
        self.data = self.data[:size].ljust(size, b"\0")
        self.others = {s: o for s, o in self.others.items() if s * SECTOR < size}

    def settle(self, found, who):
        """Compare; what was undecided is as found from now on."""
        if len(found) != len(self.data):
            raise Mismatch(f"{who} has {len(found)} bytes, not {len(self.data)}")
        for sector, others in self.others.items():
            at = sector * SECTOR
            if found[at : at + SECTOR] in others:
                self.data[at : at + SECTOR] = found[at : at + SECTOR]
        self.others = {}
        if found != self.data:
            first = next(i for i, pair in enumerate(zip(found, self.data)) if pair[0] != pair[1])
            raise Mismatch(f"{who}: byte {first:#x} is {found[first]}, not {self.data[first]}")


def pick_format(rng, number):
    """Creation options, going through all cluster sizes and widths as `number` counts up."""
    f = {"cluster_size": 512 << number % 13, "refcount_bits": 1 << (number // 13 + number) % 7}
    f["compat"] = "v2" if rng.randrange(6) == 0 else "v3"
    if f["compat"] == "v2":
        f["refcount_bits"] = 16
        return f
    if f["cluster_size"] >= 16384 and rng.randrange(2):
        f["extended_l2"] = "on"
    data_file = rng.choice((None, None, None, None, "cooked", "raw"))
    if data_file:
        f["data_file"] = data_file
        if data_file == "raw":
            f["data_file_raw"] = "on"
    elif rng.randrange(2):
        f["compression_type"] = rng.choice(("zlib", "zstd"))
    if rng.randrange(4) == 0 and not data_file:
        f["lazy_refcounts"] = "on"
    return f


class Turns:
    def __init__(self, folder, rng, number, size=None):
        self.folder, self.rng = folder, rng
        self.path = os.path.join(folder, "image.qcow2")
        self.format = pick_format(rng, number)
        self.cluster = self.format["cluster_size"]
        most = max(self.cluster * 3, min(self.cluster * 400, 3 << 20))
        self.size = size or rng.randrange(1, most // SECTOR) * SECTOR
        self.snapshots, self.bitmaps, self.touched = {}, {}, set()
        self.base, self.log, self.names = None, [], 0

    # --- what is done ----------------------------------------------------------------------

    def run(self, tool, *words, **more):
        self.log.append(f"{tool.__name__} {' '.join(map(str, words))}")
        return tool(*words, **more)

    def create(self, who):
        options = dict(self.format)
        if "data_file" in options:
            options["data_file"] = os.path.join(self.folder, "data.raw")
        more = []
        if not options.get("data_file_raw") and self.rng.randrange(3) == 0:
            more = self._make_base()
        elif self.rng.randrange(3) == 0:
            modes = ("metadata", "falloc", "full")
            options["preallocation"] = self.rng.choice(modes)
            self.touched.update(range(-(-self.size // self.cluster)))
        words = ",".join(f"{k}={v}" for k, v in options.items())
        self.run(
            who[0], "create", "-q", "-f", "qcow2", "-o", words, *more, self.path, self.size
        )  # fmt: skip
        start = self.base[: self.size] if self.base else b""
        self.disk = Disk(bytes(start).ljust(self.size, b"\0"))

    def _make_base(self):
        path, length = os.path.join(self.folder, "base"), self.rng.choice((1, 2, 4)) * self.size // 2
        length = max(length // SECTOR, 1) * SECTOR
        self.base = b"".join(
            bytes([self.rng.randrange(256)]) * SECTOR for _ in range(length // SECTOR)
        )
        with open(path + ".raw", "wb") as file:
            file.write(self.base)
        if self.rng.randrange(2):
            return ["-b", path + ".raw", "-F", "raw"]
        qemu_img("convert", "-O", "qcow2", path + ".raw", path + ".qcow2")
        return ["-b", path + ".qcow2", "-F", "qcow2"]

    def place(self, unit=SECTOR):
        """A range of the disk, in units, that is not empty."""
        units = self.size // unit
        start = self.rng.randrange(units)
        most = max(1, min(units - start, max(3 * self.cluster, 64 << 10) // unit))
        return start * unit, (start + self.rng.randint(1, most)) * unit

    def guest(self, who):
        """Requests of a guest, by one process."""
        self._open = who
        commands = [c for c in (self._request(who) for _ in range(self.rng.randint(1, 12))) if c]
        self.run(who[1], self.path, *commands, fmt="qcow2", options=("-d", "unmap"))

    def _request(self, who):
        kind = self.rng.choice(("write", "write", "odd", "zero", "unmap", "discard", "compressed", "flush"))
        if kind == "flush":
            return "flush"
        if kind == "compressed":
            return self._compressed(who)
        start, end = self.place()
        if kind == "odd" and end - start > 2:
            start, end = start + self.rng.randrange(end - start - 1), end - self.rng.randrange(2)
            end = max(end, start + 1)
        byte = 0 if kind in ("zero", "unmap") else self.rng.randrange(1, 256)
        self._changed(start, end, surely=kind != "discard")
        if kind == "discard":
            self.disk.discard(start, end)
            return f"discard {start} {end - start}"
        self.disk.write(start, end, byte)
        how = {"zero": "-z", "unmap": "-z -u"}.get(kind, f"-P {byte}")
        return f"write {how} {start} {end - start}"

    def _compressed(self, who):
        """QEMU takes them where nothing was written before, and where a cluster can have several
        references.
        """
        if "data_file" in self.format or self.size < self.cluster:
            return None
        start, end = self.place(self.cluster)
        clusters = range(start // self.cluster, end // self.cluster)
        if who is THEIRS and (self.format["refcount_bits"] < 8 or self.touched & set(clusters)):
            return None
        if self.format["refcount_bits"] < 8 and self.snapshots:
            return None
        byte = self.rng.randrange(1, 256)
        self._changed(start, end)
        self.disk.write(start, end, byte)
        return f"write -c -P {byte} {start} {end - start}"

    def _changed(self, start, end, surely=True):
        self.touched.update(range(start // self.cluster, -(-end // self.cluster)))
        for b in self.bitmaps.values():
            if b.recording:
                b.mark(start, end, surely)

    # --- what is done to the image ---------------------------------------------------------

    def change(self, who):
        self.look(self.rng.choice((OURS, THEIRS)))
        names = ["snapshot", "snapshot", "apply", "delete", "resize", "amend", "flatten"]
        if self.format["compat"] == "v3":
            names += ["add_bitmap", "add_bitmap", "bitmap", "bitmap"]
        getattr(self, "_" + self.rng.choice(names))(who)

    def _how(self, who):
        return ("-f", "qcow2") if who is OURS else ()

    def _snapshot(self, who):
        name = f"s{self.names}"
        self.names += 1
        done = self.run(who[0], "snapshot", *self._how(who), "-c", name, self.path, check=False)
        few = self.format["refcount_bits"] < 8 or "data_file" in self.format
        if done.returncode == 0:
            self.snapshots[name] = (self.disk.copy(), self.size, set(self.touched))
            if "data_file" in self.format:
                raise Mismatch("a snapshot with an external data file")
        elif not few:
            raise Mismatch(f"no snapshot: {done.stderr}")
        elif who is THEIRS:
            # What it took before it found that a count is full, it leaks.
            self.run(img, "check", "-q", "-f", "qcow2", "-r", "leaks", self.path)

    def _apply(self, who):
        if not self.snapshots:
            return
        name = self.rng.choice(sorted(self.snapshots))
        disk, size, touched = self.snapshots[name]
        if size != self.size and (self.bitmaps or self.format["compat"] == "v2"):
            return
        if self.format["refcount_bits"] < 8:
            who = OURS  # QEMU counts the new references before it drops the old ones
        done = self.run(who[0], "snapshot", *self._how(who), "-a", name, self.path, check=False)
        if done.returncode == 0:
            if self.bitmaps and who is THEIRS:
                raise Mismatch("bitmaps do not know of the snapshot that was applied")
            self._mark_what_differs(disk)
            self.disk, self.size, self.touched = disk.copy(), size, set(touched)
        elif not self.bitmaps or who is OURS:
            raise Mismatch(f"not applied: {done.stderr}")

    def _mark_what_differs(self, disk):
        """Bitmaps that record learn of a snapshot that is applied."""
        for at in range(0, self.size, SECTOR):
            differs = self.disk.data[at : at + SECTOR] != disk.data[at : at + SECTOR]
            for b in self.bitmaps.values():
                if b.recording:
                    b.mark(at, min(at + SECTOR, self.size), surely=differs)

    def _delete(self, who):
        if self.snapshots:
            name = self.rng.choice(sorted(self.snapshots))
            self.run(who[0], "snapshot", *self._how(who), "-d", name, self.path)
            del self.snapshots[name]

    def _resize(self, who):
        size = self.rng.randrange(1, self.size * 2 // SECTOR + 2) * SECTOR
        if self.format["compat"] == "v2" and self.snapshots:
            return
        if size > self.size and (self.size % self.cluster or self.format["compat"] == "v2"):
            # QEMU lets the rest of the last cluster show, and can't hide a backing file in version
            # 2.
            who = OURS
        how = ["--shrink"]
        if size > self.size and self.rng.randrange(3) == 0:
            how = ["--preallocation=" + self.rng.choice(("metadata", "falloc", "full"))]
            who = OURS  # QEMU can't where the file has free clusters at its end
        self.run(who[0], "resize", "-q", "-f", "qcow2", *how, self.path, size)
        self.disk.resize(size)
        self.touched.update(range(self.size // self.cluster, -(-size // self.cluster)))
        for b in self.bitmaps.values():
            b.cut(size)
            # What the disk had once may count as changed.
            b.mark(self.size, size, surely=False)
        self.size = size

    def _amend(self, who):
        options = self.rng.choice(
            (
                "lazy_refcounts=on",
                "lazy_refcounts=off",
                "compat=v3",
                "compat=v2",
                "refcount_bits=16",
                "refcount_bits=64",
            )
        )
        if options == "compat=v2":
            self._downgrade(who)
            return
        if self.format["compat"] == "v2" and options != "compat=v3":
            return
        if "data_file" in self.format and options == "lazy_refcounts=on":
            return
        if "refcount_bits" in options:
            who = OURS  # QEMU does not come back if nothing has to be allocated for it
        self.run(who[0], "amend", "-f", "qcow2", "-o", options, self.path)
        key, value = options.split("=")
        self.format[key] = int(value) if value.isdigit() else value

    def _downgrade(self, who):
        """Zero clusters, also of snapshots, become data; what version 2 can't have has to go
        before, or prevents it.
        """
        f = self.format
        if f["compat"] == "v2" or self.bitmaps or "data_file" in f or "extended_l2" in f:
            return
        if f.get("compression_type") == "zstd":
            return
        if f["refcount_bits"] != 16:
            self.run(img, "amend", "-f", "qcow2", "-o", "refcount_bits=16", self.path)
        sizes = {size for _, size, _ in self.snapshots.values()}
        done = self.run(who[0], "amend", "-f", "qcow2", "-o", "compat=v2", self.path, check=False)
        f["refcount_bits"] = 16
        if (done.returncode == 0) != (sizes <= {self.size}):
            raise Mismatch(f"downgraded: {done.returncode}, {sizes}: {done.stderr}")
        if done.returncode == 0:
            f["compat"] = "v2"
            f.pop("lazy_refcounts", None)

    def _flatten(self, who):
        if self.base and not self.snapshots:
            self.run(who[0], "rebase", "-f", "qcow2", "-b", "", self.path)
            self.base = None
            self.touched.update(range(-(-self.size // self.cluster)))
            for b in self.bitmaps.values():
                b.mark(0, self.size, surely=False)

    def _add_bitmap(self, who):
        name, granularity = f"b{self.names}", 512 << self.rng.randrange(10)
        self.names += 1
        self.run(
            who[0], "bitmap", "--add", "-f", "qcow2", "-g", granularity, self.path, name
        )  # fmt: skip
        self.bitmaps[name] = Bitmap(granularity)

    def _bitmap(self, who):
        if not self.bitmaps:
            return
        name, other = (self.rng.choice(sorted(self.bitmaps)) for _ in range(2))
        b = self.bitmaps[name]
        what = self.rng.choice(("remove", "clear", "enable", "disable", "merge"))
        words = ["--" + what] + ([other] if what == "merge" else [])
        self.run(who[0], "bitmap", "-f", "qcow2", *words, self.path, name)
        if what == "remove":
            del self.bitmaps[name]
        elif what == "clear":
            b.must, b.may = set(), set()
        elif what == "merge":
            source = self.bitmaps[other]
            for n in list(source.may):
                at = n * source.granularity
                b.mark(at, min(at + source.granularity, self.size), n in source.must)
        else:
            b.recording = what == "enable"

    # --- what is looked at -----------------------------------------------------------------

    def contents(self, who, *words):
        out = os.path.join(self.folder, "out.raw")
        self.run(who[0], "convert", *words, "-O", "raw", self.path, out)
        with open(out, "rb") as file:
            return file.read()

    def look(self, who):
        self.disk.settle(self.contents(who, "-f", "qcow2"), who[0].__name__)

    def verify(self):
        for who in (OURS, THEIRS):
            self.run(who[0], "check", "-q", "-f", "qcow2", self.path)
        for who in (OURS, THEIRS):
            self.look(who)
        for name, (disk, size, _) in self.snapshots.items():
            for who in (OURS, THEIRS):
                found = self.contents(who, "-l", f"snapshot.name={name}")
                if who is THEIRS and size != self.size:
                    # QEMU shows as much of it as the disk has now.
                    found = (found[:size] + disk.data[len(found) :])[:size]
                disk.settle(found, f"{who[0].__name__}, snapshot {name}")
        if self.base:
            self._verify_without_backing()
        if self.format.get("data_file_raw"):
            with open(os.path.join(self.folder, "data.raw"), "rb") as file:
                Disk(self.disk.data).settle(file.read()[: self.size], "the data file")
        self._verify_bitmaps()

    def _verify_without_backing(self):
        out, found = os.path.join(self.folder, "out.raw"), []
        name = f'json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{self.path}"}}}}'
        for who in (OURS, THEIRS):
            self.run(who[0], "convert", "-O", "raw", name, out)
            with open(out, "rb") as file:
                found.append(file.read())
        if found[0] != found[1]:
            raise Mismatch("they differ without the backing file")

    def _verify_bitmaps(self):
        found = Image(self.path).bitmaps()
        if sorted(found) != sorted(self.bitmaps):
            raise Mismatch(f"bitmaps {sorted(found)}, not {sorted(self.bitmaps)}")
        for name, b in self.bitmaps.items():
            _, flags, dirty = found[name]
            if flags != (2 if b.recording else 0):
                raise Mismatch(f"bitmap {name} has flags {flags}")
            if not b.must <= dirty <= b.may:
                raise Mismatch(
                    f"bitmap {name}: lacks {sorted(b.must - dirty)[:9]}, "
                    f"should not have {sorted(dirty - b.may)[:9]} of {b.granularity}"
                )
            b.must, b.may = set(dirty), set(dirty)

    def play(self, turns):
        first, second = self.rng.choice(((OURS, THEIRS), (THEIRS, OURS)))
        self.create(first)
        for _ in range(turns):
            first, second = second, first
            self.guest(first)
            if self.rng.randrange(2):
                self.change(self.rng.choice((OURS, THEIRS)))
            if self.rng.randrange(3) == 0:
                self.verify()
        self.verify()
