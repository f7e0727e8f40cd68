# SPDX-License-Identifier: Apache-2.0
"""What libvirt's driver for QEMU says to a monitor, and what it waits for.

Each image is two nodes, libvirt-N-storage and libvirt-N-format. Jobs never dismiss themselves: the
end is the state "concluded", after which query-jobs says whether there was an error; then come
job-dismiss, what becomes of bitmaps, and blockdev-del of what is not used any more.
"""

import contextlib
import os
import threading

import chain_case
from qmp import QmpError

TEMPORARY = "libvirt-tmp-activewrite"  # records between the end of a job and the merge of bitmaps
QUIET = {"paused", "standby"}  # how often a job is drained is nobody's business


class Guest(chain_case.Guest):
    """A guest that can be frozen for a moment, as by its agent."""

    def __init__(self, *args, **more):
        self.lock = threading.Lock()
        super().__init__(*args, **more)

    def step(self, client):
        with self.lock:
            super().step(client)

    @contextlib.contextmanager
    def frozen(self):
        """No write is on its way; what the disk has at this moment."""
        with self.lock:
            yield bytes(self.disk)


class Moment(contextlib.ExitStack):
    """Guests frozen together; `contents` has what their disks have then, in their order."""

    def __init__(self, *guests):
        super().__init__()
        self.guests, self.contents = guests, None

    def __enter__(self):
        super().__enter__()
        self.contents = [self.enter_context(guest.frozen()) for guest in self.guests]
        return self


class Image:
    """One image of a chain, and its two nodes."""

    def __init__(self, number, path, fmt="qcow2", backing=None, read_only=False):
        self.path, self.fmt, self.backing, self.read_only = path, fmt, backing, read_only
        self.storage, self.node = f"libvirt-{number}-storage", f"libvirt-{number}-format"

    def chain(self, base=None):
        """This image and those below it, down to the one above `base`."""
        image = self
        while image is not None and image is not base:
            yield image
            image = image.backing

    def storage_options(self):
        return {
            "driver": "file",
            "filename": self.path,
            "node-name": self.storage,
            "auto-read-only": True,
            "discard": "unmap",
        }

    def format_options(self, backing):
        options = {
            "node-name": self.node,
            "read-only": self.read_only,
            "discard": "unmap",
            "driver": self.fmt,
            "file": self.storage,
        }
        if self.fmt == "qcow2":
            options["backing"] = backing.node if backing else None
        return options


class Dialogue:
    """One monitor. `answers`: what it said to commands; `states`: what events said of jobs."""

    def __init__(self, qmp, directory):
        self.qmp, self.directory = qmp, directory
        self.count = 0
        self.answers = []
        self.states = {}

    def say(self, command, /, **arguments):
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self.qmp.execute(command, named)
        if not command.startswith("query-"):
            self.answers.append((command, answer.get("return"), answer.get("error")))
        if "error" in answer:
            raise QmpError(answer["error"])
        return answer["return"]

    def transaction(self, *actions):
        return self.say("transaction", actions=[{"type": t, "data": data} for t, data in actions])

    # Images.

    def image(self, name, **more):
        self.count += 1
        return Image(self.count, os.path.join(self.directory, name), **more)

    def add(self, image, backing=None):
        """Open one image, over `backing`."""
        self.say("blockdev-add", **image.storage_options())
        self.say("blockdev-add", **image.format_options(backing))

    def add_chain(self, top):
        for image in reversed(list(top.chain())):
            self.add(image, image.backing)

    def create(self, image, like, recorded=None, backing=None):
        """Make an image of the size and cluster size of `like`. Its header gets the name of
        `recorded`, and its node is opened over `backing`.
        """
        node = self.nodes()[like.node]["image"]
        with open(image.path, "xb"):
            pass
        size = node["virtual-size"]
        self.job(
            "blockdev-create",
            f"create-{image.storage}",
            options={"driver": "file", "filename": image.path,
                     "size": size if image.fmt == "raw" else node["actual-size"]},
        )  # fmt: skip
        self.say("blockdev-add", **image.storage_options())
        if image.fmt == "qcow2":
            options = {"driver": "qcow2", "file": image.storage, "size": size}
            options["cluster-size"] = node["cluster-size"]
            if recorded:
                options.update({"backing-file": recorded.path, "backing-fmt": recorded.fmt})
            self.job("blockdev-create", f"create-{image.node}", options=options)
        self.say("blockdev-add", **image.format_options(backing))

    def remove(self, *images):
        for image in images:
            self.say("blockdev-del", node_name=image.node)
            self.say("blockdev-del", node_name=image.storage)

    def reopen(self, image, read_only):
        """Only the format's node: that of the file follows by auto-read-only."""
        if image.read_only != read_only:
            image.read_only = read_only
            self.say("blockdev-reopen", options=[image.format_options(image.backing)])

    def nodes(self):
        nodes = self.say("query-named-block-nodes", flat=True)
        return {node["node-name"]: node for node in nodes}

    # Jobs.

    def start(self, command, job, **arguments):
        self.states[job] = []
        self.say(command, job_id=job, auto_finalize=arguments.pop("auto_finalize", True),
                 auto_dismiss=False, **arguments)  # fmt: skip

    def next_event(self):
        if not self.qmp.events:
            self.qmp.events.append(self.qmp.receive())
        return self.qmp.events.pop(0)

    def note(self, event):
        if not event["event"].startswith(("JOB_", "BLOCK_JOB_")):
            return
        data = event["data"]
        seen = self.states.setdefault(data.get("id", data.get("device")), [])
        if event["event"] == "JOB_STATUS_CHANGE":
            state = data["status"]
            if state not in QUIET and state not in seen:
                seen.append(state)
        else:
            seen.append((event["event"], data.get("error")))

    def wait(self, job, *states):
        """Take events until the job gets into one of the states, or has been there."""
        while not set(self.states.get(job, ())) & set(states):
            self.note(self.next_event())
        return self.states[job][-1]

    def until(self, name):
        """Take events until there is one of that name."""
        while True:
            event = self.next_event()
            if event["event"] == name:
                return
            self.note(event)

    def conclude(self, job):
        """The end of a job; its error, which query-jobs has to know by then."""
        self.wait(job, "concluded")
        found = [j for j in self.say("query-jobs") if j["id"] == job]
        assert len(found) == 1 and found[0]["status"] == "concluded", found
        self.say("job-dismiss", id=job)
        self.wait(job, "null")
        return found[0].get("error")

    def job(self, command, job, **arguments):
        """A job from its begin to its end, without error."""
        self.states[job] = []
        self.say(command, job_id=job, **arguments)
        error = self.conclude(job)
        if error:
            raise AssertionError(f"{job}: {error}")

    def succeed(self, job):
        error = self.conclude(job)
        if error:
            raise AssertionError(f"{job}: {error}")

    # Bitmaps.

    def bitmap(self, nodes, image, name):
        for bitmap in nodes.get(image.node, {}).get("dirty-bitmaps", ()):
            if bitmap.get("name") == name:
                return bitmap
        return None

    def valid(self, nodes, top, name):
        """Is it in the top image and those right below it, always recording, and stored?"""
        ended = False
        for number, image in enumerate(top.chain()):
            bitmap = self.bitmap(nodes, image, name)
            if not bitmap:
                if number == 0:
                    return False
                ended = True
            elif ended or not (bitmap["recording"] and bitmap["persistent"]):
                return False
            elif bitmap.get("inconsistent"):
                return False
        return True

    def merges(self, top, base, target, name=None, into=None, writes=None):
        """The actions that give `target` what bitmaps say of the images from `top` to above `base`:
        all of them under their names, or one as a temporary one, `into`.
        """
        nodes = self.nodes()
        actions = []
        for found in nodes[top.node].get("dirty-bitmaps", ()):
            this = found.get("name")
            if not this or (name and this != name) or not self.valid(nodes, top, this):
                continue
            images = [i for i in top.chain(base) if self.bitmap(nodes, i, this)]
            sources = [{"node": i.node, "name": this} for i in images]
            if into or not self.bitmap(nodes, target, this):
                actions.append(("block-dirty-bitmap-add", {
                    "node": target.node, "name": into or this, "persistent": not into,
                    "disabled": bool(into), "granularity": found["granularity"]}))  # fmt: skip
            if writes:
                sources.append({"node": writes.node, "name": TEMPORARY})
            actions.append(("block-dirty-bitmap-merge",
                            {"node": target.node, "target": into or this, "bitmaps": sources}))  # fmt: skip
        if writes:
            actions.append(("block-dirty-bitmap-remove", {"node": writes.node, "name": TEMPORARY}))
        return actions

    def watch_writes(self, image):
        self.transaction(("block-dirty-bitmap-add", {
            "node": image.node, "name": TEMPORARY, "persistent": False, "disabled": False}))  # fmt: skip

    # What users ask for.

    def checkpoint_actions(self, name, *disks):
        return [
            ("block-dirty-bitmap-add",
             {"node": d.node, "name": name, "persistent": True, "disabled": False})
            for d in disks
        ]  # fmt: skip

    def delete_checkpoint(self, name, *disks):
        """The bitmap is in every image of the chain that was in use since."""
        nodes = self.nodes()
        found = [i for d in disks for i in d.chain() if self.bitmap(nodes, i, name)]
        below = [i for i in found if i not in disks]
        for image in below:
            self.reopen(image, False)
        self.transaction(*(("block-dirty-bitmap-remove", {"node": i.node, "name": name}) for i in found))
        for image in below:
            self.reopen(image, True)

    def backup(self, disks, since=None, checkpoint=None, pull=False, moment=None, **more):
        """Begin jobs of several disks (name: image) in one transaction. `moment` is a context that
        holds while that is done. What there is then: {name: (job, image, bitmap)}.
        """
        actions = self.checkpoint_actions(checkpoint, *disks.values()) if checkpoint else []
        begun = {}
        for name, disk in disks.items():
            image = self.image(f"{name}.{'scratch' if pull else 'backup'}{self.count}")
            below = disk if pull or since else None
            bitmap = f"backup-{name}" if since else None
            self.create(image, disk, below, below)
            if bitmap:
                actions += self.merges(disk, None, image if pull else disk, since, bitmap)
            how = {"sync": "none" if pull else "full", **more}
            if bitmap and not pull:
                how.update({"sync": "incremental", "bitmap": bitmap})
            job = f"backup-{name}-{disk.node}"
            self.states[job] = []
            actions.append(("blockdev-backup", {
                "device": disk.node, "job-id": job, "target": image.node, **how,
                "auto-finalize": True, "auto-dismiss": False}))  # fmt: skip
            begun[name] = (job, image, bitmap)
        with moment or contextlib.nullcontext():
            self.transaction(*actions)
        return begun

    def end_backup(self, disks, begun, pull=False, server=False):
        """Wait for the jobs; those of pull mode have to be cancelled. Errors by name of disk."""
        errors = {}
        for job, *_ in begun.values() if pull else ():
            self.say("block-job-cancel", device=job, force=True)
        for name, (job, image, bitmap) in begun.items():
            errors[name] = self.conclude(job)
            if pull and server:
                self.say("nbd-server-stop")
                server = False
            self.remove(image)
            if bitmap and not pull:
                self.say("block-dirty-bitmap-remove", node=disks[name].node, name=bitmap)
        return errors

    def export(self, image, name, bitmap=None):
        more = {"bitmaps": [bitmap]} if bitmap else {}
        self.say("block-export-add", type="nbd", id=f"libvirt-nbd-{image.node}",
                 node_name=image.node, writable=False, name=name, **more)  # fmt: skip

    def snapshot(self, disks, names):
        """Overlays for several disks at one moment. The new images."""
        nodes = self.nodes()
        actions, overlays = [], []
        for disk, name in zip(disks, names):
            overlay = self.image(name)
            self.create(overlay, disk, recorded=disk)
            for bitmap in nodes[disk.node].get("dirty-bitmaps", ()):
                if bitmap["persistent"] and bitmap["recording"] and not bitmap.get("inconsistent"):
                    actions.append(("block-dirty-bitmap-add", {
                        "node": overlay.node, "name": bitmap["name"], "persistent": True,
                        "disabled": False, "granularity": bitmap["granularity"]}))  # fmt: skip
            actions.append(("blockdev-snapshot", {"node": disk.node, "overlay": overlay.node}))
            overlays.append(overlay)
        self.transaction(*actions)
        for disk, overlay in zip(disks, overlays):
            disk.read_only, overlay.backing = True, disk
        return overlays

    def copy(self, disk, image, shallow=False, reuse=False, **more):
        """Begin a copy; the job's name. With `reuse` the image is there already, and what is
        below it is opened only when it takes over.
        """
        if reuse:
            self.add(image)
        else:
            below = disk.backing if shallow else None
            self.create(image, disk, below, below)
            image.backing = below
        job = f"copy-{disk.node}"
        self.start("blockdev-mirror", job, device=disk.node, target=image.node,
                   sync="top" if shallow else "full", **more)  # fmt: skip
        return job

    def pivot_copy(self, job, disk, image, shallow=False, below=None):
        self.wait(job, "ready")
        if below:
            self.add_chain(below)
            self.transaction(("blockdev-snapshot", {"node": below.node, "overlay": image.node}))
            image.backing = below
        self.watch_writes(image)
        self.say("job-complete", id=job)
        self.succeed(job)
        actions = self.merges(disk, disk.backing if shallow else None, image, writes=image)
        self.transaction(*actions)
        self.remove(*(i for i in disk.chain() if i not in set(image.chain())))

    def abort(self, job, *images):
        """Give a copy or commit up. The job's error."""
        self.say("block-job-cancel", device=job)
        error = self.conclude(job)
        self.remove(*images)
        return error

    def commit(self, disk, top, base, **more):
        job = f"commit-{top.node}"
        if top is not disk:
            more["backing_file"] = base.path
        self.start("block-commit", job, device=disk.node, top_node=top.node, base_node=base.node, **more)
        return job

    def end_commit(self, job, disk, top, base):
        """After its end: bitmaps move down, and the images above the base are closed."""
        self.succeed(job)
        removed = list(top.chain(base))
        if top is disk:
            base.read_only = False
            self.transaction(*self.merges(top, base, base, writes=base))
        else:
            actions = self.merges(top, base, base)
            if actions:
                self.reopen(base, False)
                self.transaction(*actions)
                self.reopen(base, True)
            over = next(i for i in disk.chain() if i.backing is top)
            over.backing = base
        self.remove(*removed)

    def pivot_commit(self, job, disk, top, base):
        self.wait(job, "ready")
        self.watch_writes(base)
        self.say("job-complete", id=job)
        self.end_commit(job, disk, top, base)

    def pull(self, disk, base=None, **more):
        job = f"pull-{disk.node}"
        if base:
            more.update(base_node=base.node, backing_file=base.path)
        self.start("block-stream", job, device=disk.node, **more)
        return job

    def end_pull(self, job, disk, base=None):
        """Bitmaps of the images that leave the chain move up."""
        self.succeed(job)
        removed = [i for i in disk.chain(base) if i is not disk]
        actions = self.merges(disk, base, disk)
        if actions:
            self.transaction(*actions)
        disk.backing = base
        self.remove(*removed)
