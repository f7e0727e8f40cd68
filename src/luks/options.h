/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options of new volumes and of changes of slots. The format `luks` has them by these names,
 * and qcow2 with the prefix "encrypt.". Main reactor; nothing here yields.
 */
#ifndef TIDEMARK_LUKS_OPTIONS_H
#define TIDEMARK_LUKS_OPTIONS_H

#include "block/options.h"
#include "luks/volume.h"

/* Rows of a struct block_option_desc table; `prefix` is a literal. */
#define LUKS_FORMAT_OPTION_DESCS(prefix)                                                           \
    {prefix "cipher-alg", "str", "Name of encryption cipher algorithm"},                           \
        {prefix "cipher-mode", "str", "Name of encryption cipher mode"},                           \
        {prefix "hash-alg", "str", "Name of encryption hash algorithm"},                           \
        {prefix "iter-time", "num", "Time to spend in PBKDF in milliseconds"},                     \
        {prefix "ivgen-alg", "str", "Name of IV generator algorithm"},                             \
    {                                                                                              \
        prefix "ivgen-hash-alg", "str", "Name of IV generator hash algorithm"                      \
    }
#define LUKS_CHANGE_OPTION_DESCS(prefix)                                                           \
    {prefix "iter-time", "num", "Time to spend in PBKDF in milliseconds"},                         \
        {prefix "keyslot", "num", "Select a single keyslot to modify explicitly"},                 \
        {prefix "new-secret", "str",                                                               \
         "New secret to set in the matching keyslots. Empty string to erase"},                     \
        {prefix "old-secret", "str", "Select all keyslots that match this password"},              \
    {                                                                                              \
        prefix "state", "str", "Select new state of affected keyslots (active/inactive)"           \
    }

/* Take the options of a new volume. luks_format_release() frees what the result points to. */
int luks_take_format(struct options *opts, const char *prefix, struct luks_format *ret_format,
                     struct error *err);

/* Whether an option of a change, or of a new volume, is given. */
bool luks_has_change(const struct options *opts, const char *prefix);
bool luks_has_format(const struct options *opts, const char *prefix);

/* Take the options of a change. luks_change_release() frees what the result points to. */
int luks_take_change(struct options *opts, const char *prefix, struct luks_change *ret_change,
                     struct error *err);

#endif
