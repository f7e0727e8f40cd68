/* SPDX-License-Identifier: Apache-2.0 */
/* The commands. table.h says what a qmp_co_command takes and returns. */
#ifndef TIDEMARK_QMP_COMMANDS_H
#define TIDEMARK_QMP_COMMANDS_H

#include "qmp/answer.h"
#include "qmp/table.h"

struct block_node;

qmp_co_command qmp_co_capabilities;
qmp_co_command qmp_co_query_version;
qmp_co_command qmp_co_quit;
qmp_co_command qmp_co_x_tidemark_give_up; /* of our own */

qmp_co_command qmp_co_chardev_add;
qmp_co_command qmp_co_chardev_change;
qmp_co_command qmp_co_chardev_remove;
qmp_co_command qmp_co_chardev_send_break;
qmp_co_command qmp_co_query_yank;
qmp_co_command qmp_co_yank;
qmp_co_command qmp_co_query_chardev;
qmp_co_command qmp_co_query_chardev_backends;
qmp_co_command qmp_co_ringbuf_read;
qmp_co_command qmp_co_ringbuf_write;

qmp_co_command qmp_co_add_fd;
qmp_co_command qmp_co_closefd;
qmp_co_command qmp_co_getfd;
qmp_co_command qmp_co_query_fdsets;
qmp_co_command qmp_co_remove_fd;

qmp_co_command qmp_co_query_named_block_nodes;
qmp_co_command qmp_co_block_latency_histogram_set;
qmp_co_command qmp_co_x_blockdev_change;
qmp_co_command qmp_co_x_blockdev_set_iothread;
qmp_co_command qmp_co_query_block;
qmp_co_command qmp_co_query_blockstats;
qmp_co_command qmp_co_query_stats;
qmp_co_command qmp_co_query_stats_schemas;
qmp_co_command qmp_co_x_blockdev_checksums; /* of our own */
qmp_co_command qmp_co_x_debug_query_block_graph;
qmp_co_command qmp_co_x_debug_bitmap_sha256;
qmp_co_command qmp_co_x_tidemark_query_stats; /* of our own: all figures there are */

qmp_co_command qmp_co_query_block_exports;
qmp_co_command qmp_co_nbd_server_add;
qmp_co_command qmp_co_nbd_server_remove;
qmp_co_command qmp_co_nbd_server_start;
qmp_co_command qmp_co_nbd_server_stop;
qmp_co_command qmp_co_query_nbd_server; /* Tidemark's own: where the NBD server listens */
qmp_co_command qmp_co_block_export_del;
qmp_co_command qmp_co_object_add;
qmp_co_command qmp_co_object_del;
qmp_co_command qmp_co_qom_get;
qmp_co_command qmp_co_qom_list;
qmp_co_command qmp_co_qom_list_properties;
qmp_co_command qmp_co_qom_list_types;
qmp_co_command qmp_co_qom_set;

qmp_co_command qmp_co_blockdev_backup;
qmp_co_command qmp_co_drive_backup;
qmp_co_command qmp_co_query_jobs;
qmp_co_command qmp_co_job_cancel;
qmp_co_command qmp_co_job_complete;
qmp_co_command qmp_co_job_dismiss;
qmp_co_command qmp_co_job_finalize;
qmp_co_command qmp_co_job_pause;
qmp_co_command qmp_co_job_resume;
qmp_co_command qmp_co_query_block_jobs;
qmp_co_command qmp_co_block_job_cancel;
qmp_co_command qmp_co_block_job_change;
qmp_co_command qmp_co_block_job_complete;
qmp_co_command qmp_co_block_job_dismiss;
qmp_co_command qmp_co_block_job_finalize;
qmp_co_command qmp_co_block_job_pause;
qmp_co_command qmp_co_block_job_resume;
qmp_co_command qmp_co_block_job_set_speed;
qmp_co_command qmp_co_blockdev_mirror;
qmp_co_command qmp_co_blockdev_create;
qmp_co_command qmp_co_x_blockdev_amend;
qmp_co_command qmp_co_block_commit;
qmp_co_command qmp_co_block_stream;
qmp_co_command qmp_co_drive_mirror;

qmp_co_command qmp_co_trace_event_get_state;
qmp_co_command qmp_co_trace_event_set_state;

qmp_co_command qmp_co_transaction;
qmp_co_command qmp_co_block_resize;
qmp_co_command qmp_co_block_set_write_threshold;
qmp_co_command qmp_co_blockdev_reopen;
qmp_co_command qmp_co_blockdev_set_active;
qmp_co_command qmp_co_change_backing_file;
qmp_co_command qmp_co_snapshot_delete_internal;
qmp_co_command qmp_co_x_tidemark_lease; /* lease.c */
qmp_co_command qmp_co_x_tidemark_snapshot_apply;
/* Commands that are actions of transactions as well: each runs as a transaction of one. */
qmp_co_command qmp_co_block_export_add;
qmp_co_command qmp_co_blockdev_add;
qmp_co_command qmp_co_blockdev_del;
qmp_co_command qmp_co_blockdev_replace;
qmp_co_command qmp_co_blockdev_snapshot;
qmp_co_command qmp_co_blockdev_snapshot_sync;
qmp_co_command qmp_co_snapshot_internal;
qmp_co_command qmp_co_bitmap_add;
qmp_co_command qmp_co_bitmap_remove;
qmp_co_command qmp_co_bitmap_clear;
qmp_co_command qmp_co_bitmap_enable;
qmp_co_command qmp_co_bitmap_disable;
qmp_co_command qmp_co_bitmap_merge;

/*
 * Parts of answers, for programs that add queries of their own: the node of a disk as a
 * BlockDeviceInfo, with the whole chain below (yields), and a node with what is below it as a
 * BlockStats. Without the filters below that no user has named. New references.
 */
struct json_object *qmp_co_disk_json(struct block_node *node);
struct json_object *qmp_node_stats_json(struct block_node *node);
/* A SnapshotInfo. A new reference. */
struct block_snapshot_info;
struct json_object *qmp_snapshot_json(const struct block_snapshot_info *info);

/*
 * Start the NBD server. `args` is a NbdServerOptions with a flat address (--nbd-server). 0, or
 * errors of export_co_nbd_server_start(). Yields.
 */
int qmp_co_start_nbd_server(struct json_object *args, struct error *err);

/*
 * Whether answers show members of our own, such as x-tidemark-state of bitmaps: not to who compares
 * with QEMU's, the default. Does not yield.
 */
void qmp_show_own_members(bool show);

#endif
