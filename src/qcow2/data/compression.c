/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deflate streams are made by libdeflate. At its lowest level clusters become as small as at
 * zlib's default level with the window of 4 KiB that QEMU uses, in a fifth of the time.
 * libdeflate's window is the 32 KiB of RFC 1951, since the specification of qcow2 sets no smaller
 * one. Readers that give zlib a window of 4 KiB, as QEMU does, can read the streams: they inflate
 * a cluster in one call, and then the output is the window.
 */
#include "qcow2/data/compression.h"

#include <errno.h>
#include <libdeflate.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "base/cleanup.h"

#define DEFLATE_LEVEL 1
#define ZSTD_LEVEL 2
/*
 * For clusters of the usual sizes: 1.2% smaller than by that level, in 1.2 of the time, since the
 * tables for matches are so small that a processor's first caches have them.
 */
#define ZSTD_TABLE_BITS 13
#define ZSTD_TABLES_FROM (32 * KiB)
#define ZSTD_TABLES_TO (64 * KiB)
/* For clusters of 256 KiB: 3% larger than by that level, in 0.84 of the time. */
#define ZSTD_LARGE_SHORT_BITS 12
#define ZSTD_LARGE_MATCH 5
#define ZSTD_LARGE_FROM (128 * KiB + 1)
#define ZSTD_LARGE_TO (256 * KiB)
/* Bytes of a frame that say how long its header is. */
#define ZSTD_HEADER_BEGIN 5u
#define DEFLATE_WINDOW_BITS (-12) /* QEMU's window; negative: no header */
#define REPETITION_RATIO 512
#define REPETITION_BYTES_MAX 4096u
#define INFLATE_WINDOW_BITS (-15) /* the greatest window; negative: no header */

/* --- working memory of a thread --------------------------------------------------------------- */

struct codec {
    struct libdeflate_compressor *deflate;
    struct libdeflate_decompressor *inflate;
    ZSTD_CCtx *zstd;
    ZSTD_CCtx *zstd_tables; /* with small tables */
    ZSTD_CCtx *zstd_large;  /* the same for larger clusters */
    ZSTD_DCtx *unzstd;
};

static pthread_key_t codec_key;
static pthread_once_t codec_once = PTHREAD_ONCE_INIT;
static int codec_key_result;

static void codec_free(void *arg)
{
    struct codec *c = arg;

    libdeflate_free_compressor(c->deflate);
    libdeflate_free_decompressor(c->inflate);
    ZSTD_freeCCtx(c->zstd);
    ZSTD_freeCCtx(c->zstd_tables);
    ZSTD_freeCCtx(c->zstd_large);
    ZSTD_freeDCtx(c->unzstd);
    free(c);
}

static void codec_make_key(void)
{
    codec_key_result = pthread_key_create(&codec_key, codec_free);
}

/* This thread's codec. NULL: no memory. */
static struct codec *codec_get(void)
{
    struct codec *c;

    pthread_once(&codec_once, codec_make_key);
    if (codec_key_result != 0) {
        return NULL;
    }
    c = pthread_getspecific(codec_key);
    if (!c) {
        c = calloc(1, sizeof(*c));
        if (c && pthread_setspecific(codec_key, c) != 0) {
            free(c);
            c = NULL;
        }
    }
    return c;
}

/* --- compress --------------------------------------------------------------------------------- */

/*
 * Try zlib, and replace the contents of `out` if they get smaller. For a cluster that repeats one
 * pattern libdeflate makes blocks that zlib does not need, and zlib is fast as well.
 */
static void deflate_repetition(const void *in, size_t in_size, void *out, size_t *size)
{
    z_stream z = {.next_in = (void *)(uintptr_t)in, .avail_in = (uInt)in_size};
    uint8_t smaller[REPETITION_BYTES_MAX] = {0};

    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, DEFLATE_WINDOW_BITS, MAX_MEM_LEVEL,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
        return;
    }
    z.next_out = smaller;
    z.avail_out = (uInt)MIN(*size - 1, sizeof(smaller));
    if (deflate(&z, Z_FINISH) == Z_STREAM_END) {
        *size = z.total_out;
        memcpy(out, smaller, *size);
    }
    (void)deflateEnd(&z);
}

static int deflate_cluster(struct codec *c, const void *in, size_t in_size, void *out, size_t room,
                           size_t *ret_size)
{
    size_t n;

    if (!c->deflate) {
        c->deflate = libdeflate_alloc_compressor(DEFLATE_LEVEL);
    }
    if (!c->deflate) {
        return -ENOMEM;
    }
    n = libdeflate_deflate_compress(c->deflate, in, in_size, out, room);
    if (n == 0) {
        return -E2BIG;
    }
    if (n <= MIN(in_size / REPETITION_RATIO, REPETITION_BYTES_MAX)) {
        deflate_repetition(in, in_size, out, &n);
    }
    *ret_size = n;
    return 0;
}

/* `short_bits`: of the table of short matches, of `min_match` bytes and more. */
static ZSTD_CCtx *new_zstd_tables(int short_bits, int min_match)
{
    const struct {
        ZSTD_cParameter parameter;
        int value;
    } wanted[] = {
        {ZSTD_c_strategy, ZSTD_dfast},
        {ZSTD_c_hashLog, ZSTD_TABLE_BITS},
        {ZSTD_c_chainLog, short_bits},
        {ZSTD_c_minMatch, min_match},
    };
    ZSTD_CCtx *c = ZSTD_createCCtx();

    for (size_t i = 0; c && i < ARRAY_SIZE(wanted); i++) {
        (void)ZSTD_CCtx_setParameter(c, wanted[i].parameter, wanted[i].value);
    }
    return c;
}

static int zstd_cluster(struct codec *c, const void *in, size_t in_size, void *out, size_t room,
                        size_t *ret_size)
{
    bool tables = in_size >= ZSTD_TABLES_FROM && in_size <= ZSTD_TABLES_TO;
    bool large = in_size >= ZSTD_LARGE_FROM && in_size <= ZSTD_LARGE_TO;
    ZSTD_CCtx **context = tables ? &c->zstd_tables : large ? &c->zstd_large : &c->zstd;
    size_t n;

    if (!*context) {
        *context = tables  ? new_zstd_tables(ZSTD_TABLE_BITS, 4)
                   : large ? new_zstd_tables(ZSTD_LARGE_SHORT_BITS, ZSTD_LARGE_MATCH)
                           : ZSTD_createCCtx();
    }
    if (!*context) {
        return -ENOMEM;
    }
    n = tables || large ? ZSTD_compress2(*context, out, room, in, in_size)
                        : ZSTD_compressCCtx(*context, out, room, in, in_size, ZSTD_LEVEL);
    if (ZSTD_isError(n)) {
        return ZSTD_getErrorCode(n) == ZSTD_error_dstSize_tooSmall ? -E2BIG : -EIO;
    }
    *ret_size = n;
    return 0;
}

int codec_compress(enum compression_type type, const void *in, size_t in_size, void *out,
                   size_t room, size_t *ret_size)
{
    struct codec *c = codec_get();

    if (!c) {
        return -ENOMEM;
    }
    return type == COMPRESSION_ZSTD ? zstd_cluster(c, in, in_size, out, room, ret_size)
                                    : deflate_cluster(c, in, in_size, out, room, ret_size);
}

/* --- decompress ------------------------------------------------------------------------------- */

/* By zlib, which stops when the output is full, so streams without an end can be read. */
static int inflate_unended(const void *in, size_t in_size, void *out, size_t out_size)
{
    z_stream z = {
        .next_in = (void *)(uintptr_t)in,
        .avail_in = (uInt)in_size,
        .next_out = out,
        .avail_out = (uInt)out_size,
    };
    int r;

    if (inflateInit2(&z, INFLATE_WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

static int inflate_cluster(struct codec *c, const void *in, size_t in_size, void *out,
                           size_t out_size)
{
    if (!c->inflate) {
        c->inflate = libdeflate_alloc_decompressor();
    }
    if (!c->inflate) {
        return -ENOMEM;
    }
    /* NULL for the resulting size makes anything but a full cluster an error. */
    if (libdeflate_deflate_decompress(c->inflate, in, in_size, out, out_size, NULL) ==
        LIBDEFLATE_SUCCESS) {
        return 0;
    }
    return inflate_unended(in, in_size, out, out_size);
}

/*
 * Of a frame with more than is wanted: input is given block by block, as zstd would decompress the
 * next block too, and fail if that is damaged.
 */
static int unzstd_beginning(ZSTD_DCtx *unzstd, const void *in, size_t in_size, ZSTD_outBuffer *to)
{
    ZSTD_inBuffer from = {.src = in};
    size_t n = ZSTD_HEADER_BEGIN;

    while (to->pos < to->size) {
        size_t from_before = from.pos, to_before = to->pos;

        from.size = n ? MIN(in_size, from.pos + n) : in_size;
        n = ZSTD_decompressStream(unzstd, to, &from);
        if (ZSTD_isError(n) || (from.pos == from_before && to->pos == to_before)) {
            return -EIO;
        }
    }
    return 0;
}

static int unzstd_cluster(struct codec *c, const void *in, size_t in_size, void *out,
                          size_t out_size)
{
    unsigned long long contents = ZSTD_getFrameContentSize(in, in_size);
    ZSTD_inBuffer from = {.src = in, .size = in_size};
    ZSTD_outBuffer to = {.dst = out, .size = out_size};

    if (!c->unzstd) {
        c->unzstd = ZSTD_createDCtx();
    }
    if (!c->unzstd) {
        return -ENOMEM;
    }
    ZSTD_DCtx_reset(c->unzstd, ZSTD_reset_session_only);
    if (contents > out_size && contents < ZSTD_CONTENTSIZE_ERROR) {
        return unzstd_beginning(c->unzstd, in, in_size, &to);
    }
    while (to.pos < to.size) {
        size_t from_before = from.pos, to_before = to.pos;
        size_t n = ZSTD_decompressStream(c->unzstd, &to, &from);

        if (ZSTD_isError(n) || (from.pos == from_before && to.pos == to_before)) {
            return -EIO;
        }
    }
    return 0;
}

int codec_decompress(enum compression_type type, const void *in, size_t in_size, void *out,
                     size_t out_size)
{
    struct codec *c = codec_get();

    if (!c) {
        return -ENOMEM;
    }
    return type == COMPRESSION_ZSTD ? unzstd_cluster(c, in, in_size, out, out_size)
                                    : inflate_cluster(c, in, in_size, out, out_size);
}
