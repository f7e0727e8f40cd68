/* SPDX-License-Identifier: Apache-2.0 */
/* Files of a repository: what is written is read back, and nothing that is read is trusted. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/chain.h"
#include "backup/chain_map.h"
#include "backup/files.h"
#include "backup/manifest.h"
#include "backup/pull_internal.h"
#include "backup/repository.h"
#include "backup/set.h"
#include "backup/sums.h"
#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/hmac.h"
#include "base/sha256.h"

#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

/* --- keys --- */

/* RFC 4231, cases 2 (short key) and 6 (a key longer than a block). */
static void codes_are_those_of_the_standard(void **state)
{
    static const char what[] = "what do ya want for nothing?";
    static const char larger[] = "Test Using Larger Than Block-Size Key - Hash Key First";
    uint8_t key[131], mac[SHA256_SIZE];
    char hex[SHA256_HEX_SIZE];

    assert_int_equal(hmac_sha256("Jefe", 4, what, strlen(what), mac), 0);
    sha256_to_hex(mac, hex);
    assert_string_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, sizeof(key));
    assert_int_equal(hmac_sha256(key, sizeof(key), larger, strlen(larger), mac), 0);
    sha256_to_hex(mac, hex);
    assert_string_equal(hex, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

/* --- digests --- */

/* Sizes around the ends of blocks, where the end of a message needs another block; a cluster. */
static void digests_of_two_are_those_of_each(void **state)
{
    enum { MOST = 260 };
    uint8_t *a = malloc(BACKUP_CLUSTER_SIZE + 1), *b = malloc(BACKUP_CLUSTER_SIZE);

    for (size_t i = 0; i < BACKUP_CLUSTER_SIZE; i++) {
        a[i + 1] = (uint8_t)(i * 7 + i / 251);
        b[i] = (uint8_t)(i * 13 + i / 241);
    }
    for (size_t size = 0; size <= MOST; size++) {
        const size_t n = size < MOST ? size : BACKUP_CLUSTER_SIZE;
        uint8_t both[2][SHA256_SIZE], one[SHA256_SIZE];

        assert_int_equal(sha256_of_pair(a + 1, b, n, both[0], both[1]), 0);
        assert_int_equal(sha256_of_buffer(a + 1, n, one), 0);
        assert_memory_equal(both[0], one, SHA256_SIZE);
        assert_int_equal(sha256_of_buffer(b, n, one), 0);
        assert_memory_equal(both[1], one, SHA256_SIZE);
    }
    free(a);
    free(b);
}

/* More than are made at once, and a remainder of each kind; at an odd address. */
static void digests_of_many_are_those_of_each(void **state)
{
    enum { COUNT = 35, MOST = 260 };
    uint8_t *data = malloc((size_t)COUNT * BACKUP_CLUSTER_SIZE + 1);

    for (size_t i = 0; i < (size_t)COUNT * BACKUP_CLUSTER_SIZE; i++) {
        data[i + 1] = (uint8_t)(i * 7 + i / 251 + i / BACKUP_CLUSTER_SIZE);
    }
    for (size_t size = 0; size <= MOST; size++) {
        const size_t n = size < MOST ? size : BACKUP_CLUSTER_SIZE;
        uint8_t all[COUNT][SHA256_SIZE], one[SHA256_SIZE];

        assert_int_equal(sha256_of_each(data + 1, n, COUNT, all), 0);
        for (size_t i = 0; i < COUNT; i++) {
            assert_int_equal(sha256_of_buffer(data + 1 + i * n, n, one), 0);
            assert_memory_equal(all[i], one, SHA256_SIZE);
        }
    }
    free(data);
}

/* --- manifests --- */

static struct manifest sample(const char *id, const char *parent, uint64_t sequence)
{
    struct manifest m = {
        .sequence = sequence,
        .reason = parent[0] ? NULL : strdup("there is no earlier backup"),
        .node = strdup("disk"),
        .bitmap = strdup("x"),
        .virtual_size = 1 << 30,
        .cluster_size = parent[0] ? BACKUP_CLUSTER_SIZE : BACKUP_FULL_CLUSTER_SIZE,
        .changed = 65536,
        .moved = 65536,
        .stored = 4096,
        .duration_ms = 1500,
        .image_size = 327680,
        .sums_size = 96,
    };

    snprintf(m.id, sizeof(m.id), "%s", id);
    snprintf(m.parent, sizeof(m.parent), "%s", parent);
    memcpy(m.image_sha256, SHA, sizeof(SHA));
    memcpy(m.sums_sha256, SHA, sizeof(SHA));
    backup_moment_now(&m.begin);
    backup_moment_now(&m.end);
    return m;
}

static char *to_text(const struct manifest *m)
{
    struct json_object *o = manifest_to_json(m);
    char *text;

    assert_non_null(o);
    text = strdup(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY));
    json_object_put(o);
    return text;
}

static void manifest_is_read_back(void **state)
{
    struct manifest m = sample("20261120T093000Z", "20261119T093000Z-2", 7), back;
    char *text AUTO_FREE = to_text(&m);
    ERROR_AUTO(err);

    assert_int_equal(manifest_parse(text, strlen(text), "m", &back, &err), 0);
    assert_string_equal(back.id, m.id);
    assert_string_equal(back.parent, m.parent);
    assert_null(back.reason);
    assert_string_equal(back.node, "disk");
    assert_int_equal(back.sequence, 7);
    assert_int_equal(back.virtual_size, 1 << 30);
    assert_int_equal(back.cluster_size, BACKUP_CLUSTER_SIZE);
    assert_int_equal(back.begin.monotonic_ns, m.begin.monotonic_ns);
    assert_string_equal(back.sums_sha256, SHA);
    manifest_clear(&m);
    manifest_clear(&back);
}

static void refuse(const char *text, size_t size, const char *why)
{
    struct manifest m;
    ERROR_AUTO(err);

    assert_true(manifest_parse(text, size, "m", &m, &err) < 0);
    if (!strstr(error_message(&err), why)) {
        fail_msg("'%s' does not say '%s'", error_message(&err), why);
    }
}

static void every_changed_byte_of_a_manifest_is_noticed(void **state)
{
    struct manifest m = sample("20261120T093000Z", "", 1), back;
    char *text AUTO_FREE = to_text(&m);
    size_t size = strlen(text);

    for (size_t i = 0; i < size; i++) {
        char before = text[i];

        if (before == ' ' || before == '\n') {
            continue; /* layout between the members is not part of the checksum */
        }
        text[i] = before == '1' ? '2' : '1';
        if (manifest_parse(text, size, "m", &back, NULL) == 0) {
            fail_msg("'%c' changed to '%c' at %zu and was accepted", before, text[i], i);
        }
        text[i] = before;
    }
    manifest_clear(&m);
}

static void every_cut_manifest_is_refused(void **state)
{
    struct manifest m = sample("20261120T093000Z", "", 1), back;
    char *text AUTO_FREE = to_text(&m);

    for (size_t size = 0; size < strlen(text); size++) {
        assert_true(manifest_parse(text, size, "m", &back, NULL) < 0);
    }
    refuse(text, strlen(text) / 2, "it is cut short");
    refuse("[]", 2, "it holds another value");
    manifest_clear(&m);
}

/* `o` with one member replaced, its checksum made right again: only the value itself is wrong. */
static void refuse_value(const char *key, struct json_object *value, const char *why)
{
    struct manifest m = sample("20261120T093000Z", "20261119T093000Z", 2);
    struct json_object *o = manifest_to_json(&m);
    uint8_t digest[SHA256_SIZE];
    char hex[SHA256_HEX_SIZE];
    const char *text;
    size_t size;

    json_object_object_del(o, "sha256");
    if (value) {
        json_object_object_add(o, key, value);
    } else {
        json_object_object_del(o, key);
    }
    text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN, &size);
    assert_int_equal(sha256_of_buffer(text, size, digest), 0);
    sha256_to_hex(digest, hex);
    json_object_object_add(o, "sha256", json_object_new_string(hex));
    text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN, &size);
    refuse(text, size, why);
    json_object_put(o);
    manifest_clear(&m);
}

static void hostile_values_of_a_manifest_are_refused(void **state)
{
    char long_name[2000];

    memset(long_name, 'x', sizeof(long_name));
    refuse_value("id", json_object_new_string("../../etc"), "'id' is not the id");
    refuse_value("parent", json_object_new_string("/etc/shadow"), "'parent' is not the id");
    refuse_value("parent", json_object_new_string("20261120/../x"), "'parent' is not the id");
    refuse_value("parent", json_object_new_string(""), "'parent' is not the id");
    refuse_value("parent", json_object_new_string_len("1\0002", 3), "holds a NUL");
    refuse_value("kind", json_object_new_string("half"), "no kind of backup");
    refuse_value("kind", json_object_new_int(1), "is no string");
    refuse_value("node", json_object_new_string_len(long_name, sizeof(long_name)), "too long");
    refuse_value("node", json_object_new_string("a\x1b[2J"), "control characters");
    refuse_value("virtual-size", json_object_new_int64(-1), "out of range");
    refuse_value("virtual-size", json_object_new_uint64(UINT64_MAX), "out of range");
    refuse_value("virtual-size", json_object_new_int64(INT64_MAX), "out of range");
    refuse_value("virtual-size", json_object_new_int(0), "out of range");
    refuse_value("cluster-size", json_object_new_int(512), "cluster size");
    refuse_value("version", json_object_new_int(2), "knows version 1");
    refuse_value("image", json_object_new_string("x"), "is no object");
    refuse_value("image", NULL, "has no 'image'");
    refuse_value("checkpoint", json_object_new_array(), "is no object");
    refuse_value("format", json_object_new_string("x"), "is not the manifest");
}

static void what_is_no_json_object_is_refused(void **state)
{
    char *deep AUTO_FREE = malloc(100000);
    char *huge AUTO_FREE = calloc(1, MANIFEST_SIZE_MAX + 1);

    refuse("", 0, "not a JSON object");
    refuse("[]", 2, "not a JSON object");
    refuse("null", 4, "not a JSON object");
    refuse("{}", 2, "has no 'format'");
    memset(deep, '[', 100000);
    refuse(deep, 100000, "not a JSON object");
    refuse(huge, MANIFEST_SIZE_MAX + 1, "longer than");
}

static void only_names_of_backups_are_ids(void **state)
{
    assert_true(backup_id_is_valid("20261120T093000Z"));
    assert_true(backup_id_is_valid("20261120T093000Z-12"));
    assert_false(backup_id_is_valid(""));
    assert_false(backup_id_is_valid("."));
    assert_false(backup_id_is_valid(".."));
    assert_false(backup_id_is_valid("-1"));
    assert_false(backup_id_is_valid("1/2"));
    assert_false(backup_id_is_valid("20261120T093000Z-0000000000000000000000"));
}

/* --- checksum files --- */

static char *write_sums(const struct sums_runs *runs, uint64_t disk_size)
{
    char *path = strdup("sums-XXXXXX");
    int fd AUTO_CLOSE = mkostemp(path, O_CLOEXEC);
    struct stored *file = stored_create(fd, NULL, STORED_SUMS);

    assert_true(fd >= 0 && file);
    for (uint64_t i = 0; i < runs->digests; i++) {
        uint8_t digest[SUMS_DIGEST_SIZE];

        memset(digest, (int)i + 1, sizeof(digest));
        assert_int_equal(sums_write_digests(file, i, digest, 1), 0);
    }
    assert_int_equal(sums_write_finish(file, runs, disk_size), 0);
    stored_free(file);
    return path;
}

static void checksum_file_is_read_back(void **state)
{
    struct sums_runs runs = {0};
    struct sums sums;
    uint8_t digests[3 * SUMS_DIGEST_SIZE];
    char *path AUTO_FREE = NULL;
    ERROR_AUTO(err);

    assert_int_equal(sums_runs_add(&runs, 2, 3, SUMS_DATA), 0);
    assert_int_equal(sums_runs_add(&runs, 5, 1, SUMS_DATA), 0);
    assert_int_equal(sums_runs_add(&runs, 6, 4, SUMS_ZERO), 0);
    assert_int_equal(sums_runs_add(&runs, 12, 2, SUMS_DATA), 0);
    path = write_sums(&runs, 15 * BACKUP_CLUSTER_SIZE - 1);
    assert_int_equal(sums_open(open(path, O_RDONLY | O_CLOEXEC), NULL, path,
                               15 * BACKUP_CLUSTER_SIZE - 1, &sums, &err),
                     0);
    assert_int_equal(sums.runs.count, 3);
    assert_int_equal(sums.runs.list[0].first, 2);
    assert_int_equal(sums.runs.list[0].count, 4);
    assert_int_equal(sums.runs.list[1].kind, SUMS_ZERO);
    assert_int_equal(sums.runs.list[2].digest, 8);
    assert_int_equal(sums_read_digests(&sums, 7, digests, 3), 0);
    assert_int_equal(digests[SUMS_DIGEST_SIZE], 9);
    assert_int_equal(sums_read_digests(&sums, 8, digests, 3), -EINVAL);
    sums_close(&sums);
    sums_runs_clear(&runs);
    unlink(path);
}

/* Store `value` of `bits` at an offset of a sound file, and expect that it is refused. */
static void refuse_sums(uint64_t offset, int bits, uint64_t value)
{
    struct sums_runs runs = {0};
    struct sums sums;
    uint8_t bytes[8];
    char *path AUTO_FREE = NULL;
    int fd AUTO_CLOSE = -1;

    sums_runs_add(&runs, 2, 3, SUMS_DATA);
    sums_runs_add(&runs, 7, 2, SUMS_DATA);
    path = write_sums(&runs, 10 * BACKUP_CLUSTER_SIZE);
    fd = open(path, O_RDWR | O_CLOEXEC);
    store_le64(bytes, value);
    assert_int_equal(pwrite(fd, bytes, (size_t)bits / 8, (off_t)offset), bits / 8);
    assert_int_equal(sums_open(open(path, O_RDONLY | O_CLOEXEC), NULL, path,
                               10 * BACKUP_CLUSTER_SIZE, &sums, NULL),
                     -EINVAL);
    sums_runs_clear(&runs);
    unlink(path);
}

static void hostile_checksum_files_are_refused(void **state)
{
    uint64_t runs = SUMS_HEADER_SIZE + 5 * SUMS_DIGEST_SIZE;

    refuse_sums(0, 64, 0);
    refuse_sums(8, 32, 2);
    refuse_sums(12, 32, 9);
    refuse_sums(16, 64, 9 * BACKUP_CLUSTER_SIZE);
    refuse_sums(24, 64, UINT64_MAX / SUMS_DIGEST_SIZE + 2);
    refuse_sums(24, 64, 4);
    refuse_sums(32, 64, UINT64_MAX);
    refuse_sums(32, 64, 1);
    refuse_sums(runs, 64, UINT64_MAX - 1); /* first cluster */
    refuse_sums(runs, 64, 9);              /* beyond the disk's end */
    refuse_sums(runs + 8, 32, 0);          /* empty */
    refuse_sums(runs + 8, 32, UINT32_MAX); /* too long */
    refuse_sums(runs + 12, 32, 3);         /* no kind */
    refuse_sums(runs + 16, 64, 4);         /* overlaps the first */
    refuse_sums(runs + 16, 64, 1);         /* descends */
    refuse_sums(runs + 24, 32, 1);         /* fewer clusters than digests */
}

static void cut_checksum_file_is_refused(void **state)
{
    struct sums_runs runs = {0};
    struct sums sums;
    char *path AUTO_FREE = NULL;
    struct stat st;

    sums_runs_add(&runs, 2, 3, SUMS_DATA);
    path = write_sums(&runs, 10 * BACKUP_CLUSTER_SIZE);
    assert_int_equal(stat(path, &st), 0);
    for (off_t size = st.st_size - 1; size >= 0; size--) {
        assert_int_equal(truncate(path, size), 0);
        assert_true(sums_open(open(path, O_RDONLY | O_CLOEXEC), NULL, path,
                              10 * BACKUP_CLUSTER_SIZE, &sums, NULL) < 0);
    }
    sums_runs_clear(&runs);
    unlink(path);
}

/* --- layers --- */

static void newest_layer_that_has_a_cluster_decides(void **state)
{
    struct layer files[3] = {0};
    struct chain_layer layers[3] = {{.file = &files[0], .clusters = 20},
                                    {.file = &files[1], .clusters = 20},
                                    {.file = &files[2], .clusters = 20}};
    struct chain chain = {.layers = layers, .count = 3, .clusters = 20};
    struct chain_extent e;
    /* cluster   0  2  4  5  6  8  9  10     20
     * layer 0      [data        ][data ]
     * layer 1            [zero ]
     * layer 2         [d]                        */
    static const struct {
        uint64_t first, count;
        int layer; /* -1: none */
        enum sums_kind kind;
    } expected[] = {{0, 2, -1, 0},        {2, 2, 0, SUMS_DATA}, {4, 1, 2, SUMS_DATA},
                    {5, 3, 1, SUMS_ZERO}, {8, 2, 0, SUMS_DATA}, {10, 10, -1, 0}};

    sums_runs_add(&files[0].runs, 2, 8, SUMS_DATA);
    sums_runs_add(&files[1].runs, 5, 3, SUMS_ZERO);
    sums_runs_add(&files[2].runs, 4, 1, SUMS_DATA);
    chain.map = chain_map_new(&chain);
    assert_int_equal(chain_data_bytes(&chain), 5 * BACKUP_CLUSTER_SIZE);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        assert_true(chain_next(&chain, 100, &e));
        assert_int_equal(e.first, expected[i].first);
        assert_int_equal(e.count, expected[i].count);
        assert_ptr_equal(e.layer, expected[i].layer < 0 ? NULL : &layers[expected[i].layer]);
        if (e.layer) {
            assert_int_equal(e.kind, expected[i].kind);
        }
    }
    assert_false(chain_next(&chain, 100, &e));
    free(chain.map);
    for (int i = 0; i < 3; i++) {
        sums_runs_clear(&files[i].runs);
    }
}

static void past_the_end_of_a_layer_are_zeroes(void **state)
{
    struct layer files[3] = {0};
    struct chain_layer layers[3] = {{.file = &files[0], .clusters = 20},
                                    {.file = &files[1], .clusters = 8},
                                    {.file = &files[2], .clusters = 25}};
    struct chain chain = {.layers = layers, .count = 3, .clusters = 25, .below = 18};
    struct chain_extent e, at;
    /* cluster   0      8    12  14     18  20  25
     * layer 0  [data                        ]
     * layer 1           |
     * layer 2               [data]                */
    static const struct {
        uint64_t first, count;
        int layer; /* -1: none */
        enum sums_kind kind;
        uint64_t digest;
    } expected[] = {{0, 8, 0, SUMS_DATA, 0},
                    {8, 4, 1, SUMS_ZERO, CHAIN_NO_DIGEST},
                    {12, 2, 2, SUMS_DATA, 0},
                    {14, 4, 1, SUMS_ZERO, CHAIN_NO_DIGEST},
                    {18, 7, -1, 0, 0}};

    sums_runs_add(&files[0].runs, 0, 20, SUMS_DATA);
    sums_runs_add(&files[2].runs, 12, 2, SUMS_DATA);
    chain.map = chain_map_new(&chain);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        assert_true(chain_next(&chain, 100, &e));
        assert_int_equal(e.first, expected[i].first);
        assert_int_equal(e.count, expected[i].count);
        assert_ptr_equal(e.layer, expected[i].layer < 0 ? NULL : &layers[expected[i].layer]);
        assert_true(e.kind == expected[i].kind && e.digest == expected[i].digest);
        chain_extent_at(&chain, e.first, 100, &at);
        assert_memory_equal(&at, &e, sizeof(e));
    }
    assert_false(chain_next(&chain, 100, &e));
    free(chain.map);
    for (int i = 0; i < 3; i++) {
        sums_runs_clear(&files[i].runs);
    }
}

/* Random runs, the same for the same seed. */
static void fill_runs(struct sums_runs *runs, uint64_t clusters)
{
    for (uint64_t at = (uint64_t)random() % 8; at < clusters;) {
        uint64_t count = 1 + (uint64_t)random() % 6;

        count = count < clusters - at ? count : clusters - at;
        sums_runs_add(runs, at, count, random() % 4 ? SUMS_DATA : SUMS_ZERO);
        at += count + (uint64_t)random() % 12;
    }
}

/* Of 1 to 40 layers of all sizes: the map says of each cluster what asking the layers says. */
static void map_is_what_the_layers_say(void **state)
{
    enum { LAYERS = 40, CLUSTERS = 64 };

    srandom(1);
    for (size_t count = 1; count <= LAYERS; count++) {
        struct layer files[LAYERS] = {0};
        struct chain_layer layers[LAYERS];
        struct chain chain = {.layers = layers, .count = count, .below = (uint64_t)random() % 80};
        struct chain_extent asked[CLUSTERS], e;

        for (size_t i = 0; i < count; i++) {
            layers[i] = (struct chain_layer){.file = &files[i],
                                             .clusters = 1 + (uint64_t)random() % CLUSTERS};
            fill_runs(&files[i].runs, layers[i].clusters);
        }
        chain.clusters = layers[count - 1].clusters;
        for (uint64_t i = 0; i < chain.clusters; i++) {
            chain_extent_at(&chain, i, 1, &asked[i]);
        }
        chain.map = chain_map_new(&chain);
        for (uint64_t i = 0; i < chain.clusters; i++) {
            chain_extent_at(&chain, i, 1, &e);
            assert_memory_equal(&e, &asked[i], sizeof(e));
            assert_true(chain_next(&chain, 1, &e));
            assert_memory_equal(&e, &asked[i], sizeof(e));
        }
        assert_false(chain_next(&chain, 1, &e));
        free(chain.map);
        for (size_t i = 0; i < count; i++) {
            sums_runs_clear(&files[i].runs);
        }
    }
}

/* --- plans --- */

static void plan_is_walked_in_chunks_of_one_kind(void **state)
{
    const uint64_t n = PULL_CHUNK_CLUSTERS;
    struct pull_plan plan = {.data_clusters = 0};
    struct pull_cursor cursor = {0};
    struct pull_chunk c;
    struct sums_runs sums = {0};

    sums_runs_add(&plan.runs, 10, n + 11, SUMS_DATA);
    sums_runs_add(&plan.runs, 100, 3, SUMS_DATA);
    assert_int_equal(kind_map_init(&plan.kinds, n + 14), 0);
    kind_map_set(&plan.kinds, 0, n + 1, PULL_DATA);
    kind_map_set(&plan.kinds, n + 1, 6, PULL_ZERO);
    kind_map_set(&plan.kinds, n + 11, 3, PULL_DATA); /* between them: PULL_SKIP */
    assert_true(pull_plan_next(&plan, 1, &cursor, &c));
    assert_true(c.first == 10 && c.count == n && c.slot == 0);
    assert_true(pull_plan_next(&plan, 1, &cursor, &c));
    assert_true(c.first == 10 + n && c.count == 1 && c.slot == n && c.kind == PULL_DATA);
    assert_true(pull_plan_next(&plan, 1, &cursor, &c));
    assert_true(c.first == 11 + n && c.count == 6 && c.slot == n + 1 && c.kind == PULL_ZERO);
    assert_true(pull_plan_next(&plan, 1, &cursor, &c));
    assert_true(c.first == 100 && c.count == 3 && c.slot == n + 7 && c.kind_index == n + 11);
    assert_false(pull_plan_next(&plan, 1, &cursor, &c));
    assert_int_equal(pull_plan_to_sums(&plan, &sums), 0);
    assert_int_equal(sums.count, 3);
    assert_int_equal(sums.digests, n + 10);
    assert_true(sums.list[2].first == 100 && sums.list[2].digest == n + 7);
    sums_runs_clear(&sums);
    pull_plan_clear(&plan);
}

static void check_group_chunk(const struct pull_plan *plan, struct pull_cursor *cursor,
                              uint64_t first, uint64_t count, uint64_t slot, const char *holes)
{
    struct pull_chunk c;

    assert_true(pull_plan_next(plan, BACKUP_FULL_CLUSTER_PARTS, cursor, &c));
    assert_int_equal(c.first, first);
    assert_int_equal(c.count, count);
    assert_int_equal(c.kind_index, first);
    assert_int_equal(c.slot, slot);
    for (uint64_t i = 0; i < count; i++) {
        assert_int_equal(c.is_hole[i], holes[i] == '-');
    }
}

static void plan_of_a_full_backup_is_walked_in_whole_clusters(void **state)
{
    static const char disk[] = "-----D---D-D--------DDDDDDDDDDDDDDDDD-------------------D";
    const uint64_t count = sizeof(disk) - 1;
    struct pull_plan plan = {.data_clusters = 0};
    struct pull_cursor cursor = {0};
    struct pull_chunk c;

    sums_runs_add(&plan.runs, 0, count, SUMS_DATA);
    assert_int_equal(kind_map_init(&plan.kinds, count), 0);
    for (uint64_t i = 0; i < count; i++) {
        if (disk[i] == 'D') {
            kind_map_set(&plan.kinds, i, 1, PULL_DATA);
        }
    }
    check_group_chunk(&plan, &cursor, 4, 8, 0, "-D---D-D");
    check_group_chunk(&plan, &cursor, 20, PULL_CHUNK_CLUSTERS, 3, "DDDDDDDDDDDDDDDD");
    check_group_chunk(&plan, &cursor, 36, 4, 3 + PULL_CHUNK_CLUSTERS, "D---");
    check_group_chunk(&plan, &cursor, 56, 1, 4 + PULL_CHUNK_CLUSTERS, "D");
    assert_false(pull_plan_next(&plan, BACKUP_FULL_CLUSTER_PARTS, &cursor, &c));
    pull_plan_clear(&plan);
}

/* Random changes, compared with a byte for each cluster; leaves that became free are used again. */
static void kinds_are_what_was_set(void **state)
{
    enum { COUNT = 1000, STEPS = 20000 };
    uint8_t model[COUNT] = {0};
    struct kind_map m;

    srandom(1);
    assert_int_equal(kind_map_init(&m, COUNT), 0);
    for (int step = 0; step < STEPS; step++) {
        size_t first = (size_t)random() % COUNT, at = (size_t)random() % COUNT, end = at;
        size_t most = random() % 3 ? 9 : COUNT;
        size_t count = 1 + (size_t)random() % most;
        unsigned kind = (unsigned)random() % KIND_MAP_KINDS;

        count = count < COUNT - first ? count : COUNT - first;
        assert_int_equal(kind_map_set(&m, first, count, kind), 0);
        memset(model + first, (int)kind, count);
        for (size_t i = 0; i < COUNT; i++) {
            assert_int_equal(kind_map_get(&m, i), model[i]);
        }
        while (end < COUNT && model[end] == model[at]) {
            end++;
        }
        assert_int_equal(kind_map_run_end(&m, at, COUNT), end);
    }
    assert_true(m.leaf_count <= COUNT / 128 + 1);
    kind_map_clear(&m);
}

/* --- repositories --- */

static void commit(struct repository *r, const char *id, const char *parent, uint64_t sequence)
{
    struct manifest m = sample(id, parent, sequence);
    struct repository_draft draft;

    assert_int_equal(repository_begin(r, id, &draft, NULL), 0);
    assert_int_equal(repository_commit(r, &draft, &m, NULL), 0);
    repository_discard(r, &draft);
    manifest_clear(&m);
}

static char *fresh_dir(void)
{
    char *dir = strdup("repo-XXXXXX");

    assert_non_null(mkdtemp(dir));
    return dir;
}

static void repository_finds_chains_and_refuses_loops(void **state)
{
    const struct repository_entry **chain = NULL;
    char *dir AUTO_FREE = fresh_dir();
    size_t count;
    ERROR_AUTO(err);

    {
        REPOSITORY_AUTO(r);
        assert_int_equal(repository_open_to_write(dir, &r, &err), 0);
        commit(&r, "20260101T000000Z", "", 1);
        commit(&r, "20260102T000000Z", "20260101T000000Z", 2);
        commit(&r, "20260103T000000Z", "20260102T000000Z", 3);
        commit(&r, "20260104T000000Z", "20260105T000000Z", 4); /* each other's parent */
        commit(&r, "20260105T000000Z", "20260104T000000Z", 5);
        commit(&r, "20260106T000000Z", "20250101T000000Z", 6); /* the parent is gone */
    }
    REPOSITORY_AUTO(r);
    assert_int_equal(repository_open(dir, &r, &err), 0);
    assert_int_equal(r.count, 6);
    assert_int_equal(
        repository_chain(&r, repository_get(&r, "20260103T000000Z"), &chain, &count, &err), 0);
    assert_int_equal(count, 3);
    assert_string_equal(chain[0]->id, "20260101T000000Z");
    assert_string_equal(chain[2]->id, "20260103T000000Z");
    free(chain);
    assert_true(repository_chain(&r, repository_get(&r, "20260105T000000Z"), &chain, &count, NULL) <
                0);
    assert_true(repository_chain(&r, repository_get(&r, "20260106T000000Z"), &chain, &count, &err) <
                0);
    assert_non_null(strstr(error_message(&err), "which is gone"));
    assert_string_equal(repository_find(&r, "20260102", NULL)->id, "20260102T000000Z");
    assert_null(repository_find(&r, "202601", NULL));
}

/* Copies may still have the backups of this second that were removed here. */
static void no_id_comes_again_in_its_second(void **state)
{
    struct repository r = REPOSITORY_INIT;
    struct repository_entry entries[64];
    char id[BACKUP_ID_SIZE];
    time_t now = time(NULL);

    (void)state;
    memset(entries, 0, sizeof(entries));
    r.entries = entries;
    repository_new_id(&r, id);
    assert_int_equal(strlen(id), strlen("20260101T000000Z"));
    for (; r.count < 64; r.count++) {
        char *e = entries[r.count].id;
        struct tm tm;

        gmtime_r(&now, &tm);
        strftime(e, BACKUP_ID_SIZE, r.count % 2 ? "%Y%m%dT%H%M%SZ-9" : "%Y%m%dT%H%M%SZ-10", &tm);
        now += r.count % 2;
    }
    repository_new_id(&r, id);
    assert_string_equal(id + strlen("20260101T000000Z"), "-11");
}

static void only_one_run_writes_to_a_repository(void **state)
{
    char *dir AUTO_FREE = fresh_dir();
    REPOSITORY_AUTO(first);
    REPOSITORY_AUTO(second);

    assert_int_equal(repository_open_to_write(dir, &first, NULL), 0);
    assert_int_equal(repository_open_to_write(dir, &second, NULL), -EBUSY);
}

static void directory_with_other_things_is_refused(void **state)
{
    char *dir AUTO_FREE = fresh_dir();
    char *file AUTO_FREE = NULL;
    REPOSITORY_AUTO(r);
    int fd;

    assert_true(asprintf(&file, "%s/holiday.jpg", dir) > 0);
    fd = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(repository_open_to_write(dir, &r, NULL), -ENOTEMPTY);
}

static void unfinished_backups_are_removed(void **state)
{
    char *dir AUTO_FREE = fresh_dir();
    char *tmp AUTO_FREE = NULL;
    struct repository_draft draft;

    {
        REPOSITORY_AUTO(r);
        assert_int_equal(repository_open_to_write(dir, &r, NULL), 0);
        assert_int_equal(repository_begin(&r, "20260101T000000Z", &draft, NULL), 0);
        close(files_create_at(draft.fd, "disk.qcow2", "disk.qcow2", NULL));
        tmp = strdup(draft.path);
        close(draft.fd);
        free(draft.name);
        free(draft.path);
    }
    REPOSITORY_AUTO(r);
    assert_int_equal(access(tmp, F_OK), 0);
    assert_int_equal(repository_open_to_write(dir, &r, NULL), 0);
    assert_int_equal(access(tmp, F_OK), -1);
    assert_int_equal(r.count, 0);
}

/* All names of the next seconds are kept by other runs: an error, and no search without an end. */
static void a_set_gives_up_when_all_names_are_taken(void **state)
{
    enum { SECONDS = 5, NAMES = 100 };
    char *dir AUTO_FREE = fresh_dir();
    char *sets AUTO_FREE = files_join(dir, SET_DIRECTORY);
    int kept[SECONDS * NAMES], count = 0;
    time_t now = time(NULL);
    char id[BACKUP_ID_SIZE];
    ERROR_AUTO(err);

    assert_int_equal(mkdir(sets, 0700), 0);
    for (int n = 0; n < SECONDS * NAMES; n++) {
        char *name AUTO_FREE = NULL;
        char stamp[20], suffix[8] = "";
        time_t when = now + n / NAMES;
        struct tm tm;

        gmtime_r(&when, &tm);
        strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
        if (n % NAMES > 0) {
            snprintf(suffix, sizeof(suffix), "-%d", n % NAMES + 1);
        }
        assert_true(asprintf(&name, "%s/.tidemark-tmp-%s%s", sets, stamp, suffix) > 0);
        assert_int_equal(mkdir(name, 0700), 0);
        kept[count] = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        assert_int_equal(flock(kept[count++], LOCK_EX | LOCK_NB), 0);
    }
    assert_int_equal(set_reserve(dir, id, &err), -EAGAIN);
    assert_non_null(strstr(error_message(&err), "attempts"));
    while (count > 0) {
        close(kept[--count]);
    }
    kept[0] = set_reserve(dir, id, NULL); /* those of killed runs are removed */
    assert_true(kept[0] >= 0);
    set_release(dir, id, kept[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_those_of_the_standard),
        cmocka_unit_test(digests_of_two_are_those_of_each),
        cmocka_unit_test(digests_of_many_are_those_of_each),
        cmocka_unit_test(manifest_is_read_back),
        cmocka_unit_test(every_changed_byte_of_a_manifest_is_noticed),
        cmocka_unit_test(every_cut_manifest_is_refused),
        cmocka_unit_test(hostile_values_of_a_manifest_are_refused),
        cmocka_unit_test(what_is_no_json_object_is_refused),
        cmocka_unit_test(only_names_of_backups_are_ids),
        cmocka_unit_test(checksum_file_is_read_back),
        cmocka_unit_test(hostile_checksum_files_are_refused),
        cmocka_unit_test(cut_checksum_file_is_refused),
        cmocka_unit_test(newest_layer_that_has_a_cluster_decides),
        cmocka_unit_test(past_the_end_of_a_layer_are_zeroes),
        cmocka_unit_test(map_is_what_the_layers_say),
        cmocka_unit_test(plan_is_walked_in_chunks_of_one_kind),
        cmocka_unit_test(plan_of_a_full_backup_is_walked_in_whole_clusters),
        cmocka_unit_test(kinds_are_what_was_set),
        cmocka_unit_test(repository_finds_chains_and_refuses_loops),
        cmocka_unit_test(no_id_comes_again_in_its_second),
        cmocka_unit_test(only_one_run_writes_to_a_repository),
        cmocka_unit_test(directory_with_other_things_is_refused),
        cmocka_unit_test(unfinished_backups_are_removed),
        cmocka_unit_test(a_set_gives_up_when_all_names_are_taken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
