/* SPDX-License-Identifier: Apache-2.0 */
#include "file/drivers.h"

#include "file/file_drivers.h"
#include "file/posix_file.h"

const struct block_driver file_driver = {
    .name = "file",
    .help = "protocol: a regular file",
    .instance_size = sizeof(struct posix_file),
    .is_protocol = true,
    .keeps_zero_beyond_eof = true,
    .schemes = (const char *const[]){"file", NULL},
    .options = &posix_file_options,
    .parse_filename = posix_file_parse_filename,
    .co_open = posix_file_co_open_regular,
    .co_close = posix_file_co_close,
    .reopen_options = posix_file_reopen_options,
    .co_reopen_prepare = posix_file_co_reopen_prepare,
    .co_reopen_finish = posix_file_co_reopen_finish,
    .co_reopen_commit = posix_file_co_reopen_commit,
    .co_reopen_abort = posix_file_co_reopen_abort,
    .co_reload = posix_file_co_reload,
    .co_renew_size = posix_file_co_renew_size,
    .co_set_perm = posix_file_co_set_perm,
    .lasting_name = posix_file_lasting_name,
    .co_has_name = posix_file_co_has_name,
    .co_read_other = posix_file_co_read_other,
    .co_create = posix_file_co_create,
    .co_remove = posix_file_co_remove,
    .create_options = posix_file_create_options,
    .create_type = &posix_file_create_type,
    .co_allocated_size = posix_file_co_allocated_size,
    .co_specific_info = posix_file_co_specific_info,
    .specific_info_type = &posix_file_specific_info_type,
    .co_truncate = posix_file_co_truncate,
    .co_extend = posix_file_co_extend,
    .co_preadv = posix_file_co_preadv,
    .co_read_pages = posix_file_co_read_pages,
    .co_pwritev = posix_file_co_pwritev,
    .co_copy_from = posix_file_co_copy_from,
    .co_write_zeroes = posix_file_co_write_zeroes,
    .co_discard = posix_file_co_discard,
    .co_flush = posix_file_co_flush,
    .co_status = posix_file_co_status,
};

/*
 * A CD-ROM drive is treated as any device: a change of the medium while it is open is not noticed.
 */
#define DEVICE_FUNCTIONS                                                                           \
    .instance_size = sizeof(struct posix_file), .is_protocol = true,                               \
    .options = &posix_file_options, .parse_filename = posix_file_parse_filename,                   \
    .co_open = posix_file_co_open_device, .reopen_options = posix_file_reopen_options,             \
    .co_reopen_prepare = posix_file_co_reopen_prepare,                                             \
    .co_reopen_finish = posix_file_co_reopen_finish,                                               \
    .co_reopen_commit = posix_file_co_reopen_commit,                                               \
    .co_reopen_abort = posix_file_co_reopen_abort, .co_reload = posix_file_co_reload,              \
    .co_renew_size = posix_file_co_renew_size, .co_close = posix_file_co_close,                    \
    .co_set_perm = posix_file_co_set_perm, .lasting_name = posix_file_lasting_name,                \
    .co_has_name = posix_file_co_has_name, .co_read_other = posix_file_co_read_other,              \
    .co_create = posix_file_co_create, .create_options = posix_file_create_options,                \
    .co_allocated_size = posix_file_co_allocated_size,                                             \
    .co_specific_info = posix_file_co_specific_info, .co_truncate = posix_file_co_truncate_device, \
    .co_preadv = posix_file_co_preadv, .co_copy_from = posix_file_co_copy_from,                    \
    .co_read_pages = posix_file_co_read_pages, .co_pwritev = posix_file_co_pwritev,                \
    .co_write_zeroes = posix_file_co_zero_device, .co_discard = posix_file_co_discard_device,      \
    .co_flush = posix_file_co_flush, .co_status = posix_file_co_status

const struct block_driver host_device_driver = {
    .name = "host_device",
    .help = "protocol: a block device",
    .schemes = (const char *const[]){"host_device", NULL},
    DEVICE_FUNCTIONS,
};

static const struct block_driver host_cdrom_driver = {
    .name = "host_cdrom",
    .help = "protocol: a CD-ROM drive",
    .schemes = (const char *const[]){"host_cdrom", NULL},
    DEVICE_FUNCTIONS,
};

void file_register_drivers(void)
{
    block_register_driver(&file_driver);
    block_register_driver(&host_device_driver);
    block_register_driver(&host_cdrom_driver);
    block_register_driver(&null_co_driver);
    block_register_driver(&null_aio_driver);
    block_register_driver(&raw_driver);
    foreign_register_drivers();
}
