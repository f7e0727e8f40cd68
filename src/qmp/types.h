/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types of QMP that are defined apart from the table of commands (qmp/table.c), by the file that
 * defines them. Names and members are those of QEMU's QAPI schema.
 */
#ifndef TIDEMARK_QMP_TYPES_H
#define TIDEMARK_QMP_TYPES_H

#include "qmp/schema.h"

/* job_types.c: what jobs are, arguments of their verbs, their events. */
extern const struct schema_type qmp_type_job_infos, qmp_type_block_job_infos;
extern const struct schema_type qmp_type_job, qmp_type_block_job, qmp_type_block_job_cancel,
    qmp_type_block_job_speed;
extern const struct schema_type qmp_type_block_job_event, qmp_type_block_job_completed,
    qmp_type_block_job_error, qmp_type_block_job_pending, qmp_type_job_status_change;
/* JobType, BlockDeviceIoStatus. */
extern const struct schema_type qmp_type_job_type, qmp_type_io_status;
extern const struct schema_type qmp_type_io_operation, qmp_type_error_action;
/* BlockdevOnError, MirrorSyncMode, BitmapSyncMode, NewImageMode: of commands that start jobs. */
extern const struct schema_type qmp_type_on_error, qmp_type_sync_mode, qmp_type_bitmap_mode,
    qmp_type_new_image_mode;

/* chardev_commands.c */
extern const struct schema_type qmp_type_yank, qmp_type_yank_instances;
extern const struct schema_type qmp_type_chardev_add, qmp_type_chardev_return, qmp_type_chardev_id,
    qmp_type_chardev_infos, qmp_type_chardev_backend_infos;
extern const struct schema_type qmp_type_ringbuf_read, qmp_type_ringbuf_write;

/* fd_commands.c: descriptors that are passed to the monitor. */
extern const struct schema_type qmp_type_add_fd, qmp_type_add_fd_info, qmp_type_fd_name,
    qmp_type_remove_fd, qmp_type_fdset_infos;

/* backup_types.c */
extern const struct schema_type qmp_type_blockdev_backup, qmp_type_drive_backup;
extern const struct schema_type qmp_type_blockdev_backup_wrapper, qmp_type_drive_backup_wrapper;

/* mirror_types.c */
extern const struct schema_type qmp_type_blockdev_mirror, qmp_type_drive_mirror,
    qmp_type_block_job_change;
/* create_commands.c */
extern const struct schema_type qmp_type_blockdev_create, qmp_type_blockdev_amend;

/* commit_types.c: arguments of the jobs that shorten backing chains. */
extern const struct schema_type qmp_type_block_commit, qmp_type_block_stream;

/* checksums.c */
extern const struct schema_type qmp_type_checksums_args, qmp_type_checksums;

/* graph_types.c: arguments and results of the commands that change images and the graph. */
extern const struct schema_type qmp_type_block_resize, qmp_type_change_backing, qmp_type_set_active;
extern const struct schema_type qmp_type_set_write_threshold, qmp_type_write_threshold;
extern const struct schema_type qmp_type_snapshot, qmp_type_snapshot_wrapper,
    qmp_type_snapshot_sync, qmp_type_snapshot_sync_wrapper;
extern const struct schema_type qmp_type_snapshot_internal, qmp_type_snapshot_internal_wrapper,
    qmp_type_snapshot_delete_internal, qmp_type_snapshot_apply, qmp_type_snapshot_info;
extern const struct schema_type qmp_type_lease;

/* query_types.c: results of questions about disks and bitmaps. */
extern const struct schema_type qmp_type_block_infos, qmp_type_bitmap_sha256;
extern const struct schema_type qmp_type_device_info; /* BlockDeviceInfo */
extern const struct schema_type qmp_type_set_iothread, qmp_type_change_children;
extern const struct schema_type qmp_type_latency_set, qmp_type_io_error;
extern const struct schema_type qmp_type_qom_path, qmp_type_qom_get, qmp_type_qom_set,
    qmp_type_qom_list_types, qmp_type_qom_list_properties;
extern const struct schema_type qmp_type_property_infos, qmp_type_type_infos;

#endif
