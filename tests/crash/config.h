/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kinds of images that the crash explorer works on. Everything follows from the seed of a
 * workload.
 */
#ifndef TIDEMARK_TESTS_CONFIG_H
#define TIDEMARK_TESTS_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

enum crash_amend { AMEND_NOTHING, AMEND_REFCOUNT_BITS, AMEND_LAZY_REFCOUNTS, AMEND_VERSION };

/* What is done to a chain of images in use. */
enum crash_job {
    CRASH_NO_JOB,
    CRASH_STREAM,
    CRASH_COMMIT,        /* of images in the middle */
    CRASH_COMMIT_ACTIVE, /* of the image in use, with a pivot */
    CRASH_MIRROR,        /* with a pivot */
    CRASH_SNAPSHOT,      /* an overlay is put on top */
    CRASH_LIVE,          /* its size and options change */
};

struct crash_config {
    const char *name; /* of the kind, see crash_config_names */
    unsigned kind;    /* its number */
    /* the image */
    const char *format;                       /* NULL: qcow2 */
    unsigned version;                         /* to begin with, if it is amended */
    uint32_t cluster_size, base_cluster_size; /* bytes */
    unsigned refcount_bits;
    bool extended_l2, lazy_refcounts, zstd;
    bool long_names;               /* of data files: longer than a sector */
    bool data_file, data_file_raw; /* an external one; raw: it alone is the disk */
    bool backing;                  /* has a backing file */
    bool commit;                   /* is committed into it now and then */
    enum crash_job job;            /* with a chain of images; see chain.h */
    const char *preallocation;     /* NULL: off */
    /* how it is used */
    bool discard_no_unref;
    bool small_caches;
    bool compressed; /* some writes are */
    bool bitmaps;    /* persistent ones, changed between the requests */
    bool joint;      /* another image, and changes of the bitmaps of both at once; see joint.h */
    bool snapshots, resize;
    bool keys;              /* encrypted by LUKS, and key slots change; see keys.h */
    bool detached_header;   /* of LUKS, on the disk IMAGE_BASE_FILE */
    unsigned room;          /* clusters by which the file can grow; 0: there is no end to it */
    enum crash_amend amend; /* what is changed of the image itself */
};

/* The kinds, then the groups; ends with NULL. */
extern const char *const crash_config_names[];
#define CRASH_CONFIG_KINDS 33u

/*
 * `name`: a kind, or a group of them ("images", "jobs": of qcow2; "formats": the others); NULL:
 * another kind of qcow2 for each seed.
 */
void crash_config_choose(struct crash_config *c, uint64_t seed, const char *name);

#endif
