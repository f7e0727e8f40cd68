/* SPDX-License-Identifier: Apache-2.0 */
/* What docs/qmp.md says of commands and events, in the order of their names. */
#include "qmp/reference.h"

#include <string.h>

#include "schema/define.h"

static const struct qmp_reference commands[] = {
    {"add-fd", .help = "add a passed descriptor to a set: see [Descriptors](#descriptors)"},
    {"block-commit",
     .help = "a job that writes images of a backing chain into one below them, and drops them"},
    {"block-dirty-bitmap-add", .help = "add a bitmap to a node"},
    {"block-dirty-bitmap-clear", .help = "forget what a bitmap has recorded"},
    {"block-dirty-bitmap-disable", .help = "stop recording"},
    {"block-dirty-bitmap-enable", .help = "record from now on"},
    {"block-dirty-bitmap-merge",
     .help = "add what other bitmaps have recorded, also those of other nodes"},
    {"block-dirty-bitmap-remove", .help = "remove a bitmap, also from the image"},
    {"block-export-add", .help = "export a node; `x-lease`: see [fleecing.md](fleecing.md)"},
    {"block-export-del",
     .help = "remove an export; `mode` is `safe` (refused while it has clients) or `hard`"},
    {"block-job-cancel",
     .help = "end a block job; one that is ready ends with success, unless by force"},
    {"block-job-change", .help = "change the copy mode of a mirror, in both directions"},
    {"block-job-complete", .help = "the older form of `job-complete`, for block jobs"},
    {"block-job-dismiss", .help = "the older form of `job-dismiss`"},
    {"block-job-finalize", .help = "the older form of `job-finalize`"},
    {"block-job-pause", .help = "the older form of `job-pause`"},
    {"block-job-resume", .help = "the older form of `job-resume`"},
    {"block-job-set-speed", .help = "limit a block job, in bytes per second; 0: no limit"},
    {"block-latency-histogram-set", .help = "boundaries of the latency histograms of an export "
                                            "or a node: see [statistics.md](statistics.md)"},
    {"block-set-write-threshold",
     .help = "report the next write of the node that ends beyond the offset; 0: none"},
    {"block-stream", .help = "a job that copies into an image what its backing files down to a "
                             "base have, and makes the base its backing file"},
    {"block_resize", .help = "change the size of a disk in use: see below"},
    {"blockdev-add", .help = "open a node"},
    {"blockdev-backup", .help = "a job that copies what a disk has at this moment to another node: "
                                "see [jobs.md](jobs.md)"},
    {"blockdev-create",
     .help = "a job that makes an image in a node, or a file: see [jobs.md](jobs.md#creation)"},
    {"blockdev-del", .help = "close a node that nothing uses"},
    {"blockdev-mirror", .help = "copy a node to another, follow its writes, and move its users "
                                "there: see [jobs.md](jobs.md#mirror)"},
    {"blockdev-reopen", .help = "give nodes other options, all or nothing: see below"},
    {"blockdev-replace", .help = "put another node under an export: see below"},
    {"blockdev-set-active",
     .help = "hand a node (all nodes) over to another process, or take it over: see below"},
    {"blockdev-snapshot", .help = "put an overlay, which is open, on a node in use: see below",
     FEATURES("allow-write-only-overlay")},
    {"blockdev-snapshot-delete-internal-sync",
     .help = "delete a snapshot inside an image; returns what it was"},
    {"blockdev-snapshot-internal-sync", .help = "make a snapshot inside an image in use"},
    {"blockdev-snapshot-sync", .help = "make or open an overlay, and put it on a node in use"},
    {"change-backing-file",
     .help = "change the backing file that an image records; the nodes stay as they are"},
    {"chardev-add", .help = "add a chardev: see [Chardevs](#chardevs)"},
    {"chardev-change", .help = "put another chardev in the place of one that nothing uses"},
    {"chardev-remove", .help = "remove a chardev that nothing uses"},
    {"chardev-send-break", .help = "without effect: only serial lines have a break"},
    {"closefd", .help = "close a descriptor that has a name: see [Descriptors](#descriptors)"},
    {"drive-backup",
     .help = "as `blockdev-backup`, to a file, which is made unless `mode` is `existing`",
     FEATURES("deprecated")},
    {"drive-mirror", .help = "as `blockdev-mirror`, onto a file that is made (`mode` "
                             "`absolute-paths`) or there already (`existing`)"},
    {"getfd", .help = "give a passed descriptor a name: see [Descriptors](#descriptors)"},
    {"job-cancel", .help = "end a job by force"},
    {"job-complete", .help = "let a job that is ready do its last steps"},
    {"job-dismiss", .help = "forget a job that is concluded"},
    {"job-finalize",
     .help = "let a job that is pending, and those of its transaction, take effect"},
    {"job-pause", .help = "pause a job"},
    {"job-resume", .help = "resume a job that was paused"},
    {"nbd-server-add", .help = "export a node; the older form of `block-export-add`",
     FEATURES("deprecated")},
    {"nbd-server-remove", .help = "the older form of `block-export-del`", FEATURES("deprecated")},
    {"nbd-server-start", .help = "start the NBD server"},
    {"nbd-server-stop", .help = "disconnect all clients, and stop the NBD server"},
    {"object-add", .help = "add an object: `iothread`, `secret`, `tls-creds-*`, `authz-*`"},
    {"object-del", .help = "remove an object that nothing uses"},
    {"qmp_capabilities", .help = "end the negotiation"},
    {"qom-get", .help = "the value of a property of an object: see below"},
    {"qom-list", .help = "the properties of an object, or the objects of `/objects`"},
    {"qom-list-properties", .help = "the properties that objects of a type have"},
    {"qom-list-types", .help = "the types of objects"},
    {"qom-set", .help = "change a property of an object: see below"},
    {"query-block",
     .help = "the disks of guests: the daemon has none, and returns an empty list, as QEMU's does"},
    {"query-block-exports", .help = "the exports"},
    {"query-block-jobs", .help = "the block jobs"},
    {"query-blockstats",
     .help = "figures of exports, or of nodes: see [statistics.md](statistics.md)"},
    {"query-chardev", .help = "the chardevs"},
    {"query-chardev-backends", .help = "the types of chardevs"},
    {"query-commands", .help = "the names of the commands"},
    {"query-fdsets", .help = "the descriptor sets"},
    {"query-jobs", .help = "the jobs"},
    {"query-named-block-nodes", .help = "the nodes, their images and bitmaps"},
    {"query-nbd-server", .help = "where the NBD server listens: see below"},
    {"query-qmp-schema", .help = "the types of all commands and events"},
    {"query-stats", .help = "figures of nodes, exports, clients or reactors: see "
                            "[statistics.md](statistics.md)"},
    {"query-stats-schemas", .help = "the names, kinds and units of these figures"},
    {"query-version", .help = "the version of QEMU whose QMP this follows, and of Tidemark"},
    {"query-yank", .help = "what `yank` can cut"},
    {"quit", .help = "answer, then end the daemon"},
    {"remove-fd", .help = "close one descriptor of a set, or all of them"},
    {"ringbuf-read", .help = "take bytes from a ring buffer, the oldest first"},
    {"ringbuf-write", .help = "put bytes into a ring buffer"},
    {"trace-event-get-state", .help = "the trace events that match a name or pattern, and whether "
                                      "they are on: see [tracing.md](tracing.md)"},
    {"trace-event-set-state", .help = "turn trace events on or off"},
    {"transaction", .help = "several actions, all or nothing"},
    {"x-blockdev-amend", .help = "a job that changes key slots of LUKS: see [luks.md](luks.md)",
     FEATURES("unstable")},
    {"x-blockdev-change",
     .help = "a node joins the children of `parent`, a quorum, or the child of the name `child` "
             "leaves it",
     FEATURES("unstable")},
    {"x-blockdev-checksums", .help = "the SHA-256 of blocks of a node: see below",
     FEATURES("unstable")},
    {"x-blockdev-set-iothread",
     .help =
         "the thread that serves exports of a node, and of nodes above, which are made from now "
         "on without `iothread`; null: none. Exports that exist stay where they are",
     FEATURES("unstable")},
    {"x-debug-block-dirty-bitmap-sha256",
     .help = "the SHA-256 of a bitmap, as QEMU computes it: the bits of 64 granules a word, the "
             "last word filled with zeroes",
     FEATURES("unstable")},
    {"x-debug-query-block-graph",
     .help = "nodes, their users, and the edges between them with permissions. For debugging, as "
             "in QEMU",
     FEATURES("unstable")},
    {"x-tidemark-give-up",
     .help =
         "the command with this `id` on this monitor is answered with an error at once, and goes "
         "on: see [Execution out of band](#execution-out-of-band)",
     FEATURES("unstable")},
    {"x-tidemark-lease",
     .help = "a view of a point in time, by its node, goes with this connection: see "
             "[fleecing.md](fleecing.md)",
     FEATURES("unstable")},
    {"x-tidemark-query-stats", .help = "all figures there are: see [statistics.md](statistics.md)",
     FEATURES("unstable")},
    {"x-tidemark-snapshot-apply",
     .help = "a disk in use becomes what it was when an internal snapshot was made; bitmaps that "
             "record get what differs",
     FEATURES("unstable")},
    {"yank", .help = "cut connections that hang, for good: see [Connections that hang]"
                     "(#connections-that-hang)"},
    {.name = NULL},
};

static const struct qmp_reference events[] = {
    {"BLOCK_EXPORT_DELETED", .help = "an export is gone"},
    {"BLOCK_IMAGE_CORRUPTED",
     .help = "an image is found corrupt; if `fatal`, it takes no more writes"},
    {"BLOCK_IO_ERROR", .help = "a request of an export's client has failed in the node: see below"},
    {"BLOCK_JOB_CANCELLED", .help = "a block job has been cancelled"},
    {"BLOCK_JOB_COMPLETED", .help = "a block job has ended, with an error if `error` says so"},
    {"BLOCK_JOB_ERROR",
     .help = "a request of a block job has failed; `action` is what the job does"},
    {"BLOCK_JOB_PENDING", .help = "a block job waits for `job-finalize`"},
    {"BLOCK_JOB_READY", .help = "a block job can be completed"},
    {"BLOCK_WRITE_THRESHOLD", .help = "a write has passed the threshold of a node, which is reset"},
    {"JOB_STATUS_CHANGE", .help = "a job has entered another state"},
    {"QUORUM_FAILURE", .help = "too few children of a quorum agree"},
    {"QUORUM_REPORT_BAD", .help = "a child of a quorum fails or disagrees"},
    {.name = NULL},
};

static const struct qmp_reference *find_in_list(const struct qmp_reference *table, const char *name)
{
    while (table->name && strcmp(table->name, name) != 0) {
        table++;
    }
    return table->name ? table : NULL;
}

const struct qmp_reference *qmp_command_reference(const char *name)
{
    return find_in_list(commands, name);
}

const struct qmp_reference *qmp_event_reference(const char *name)
{
    return find_in_list(events, name);
}
