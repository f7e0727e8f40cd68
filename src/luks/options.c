/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/options.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define NAME_MAX_SIZE 64

struct option_name {
    char text[NAME_MAX_SIZE];
};

static struct option_name full_name(const char *prefix, const char *name)
{
    struct option_name n;

    snprintf(n.text, sizeof(n.text), "%s%s", prefix, name);
    return n;
}

static int take_luks_text(struct options *opts, const char *prefix, const char *name,
                          char **ret_text, struct error *err)
{
    return options_take_text(opts, full_name(prefix, name).text, ret_text, err);
}

static int wrong_luks_value(const char *name, const char *value, struct error *err)
{
    return error_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", name, value);
}

static int take_index(struct options *opts, const char *prefix, const char *name,
                      const char *const *names, int dflt, int *ret_index, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = take_luks_text(opts, prefix, name, &text, err);

    if (r < 0 || !text) {
        *ret_index = dflt;
        return r;
    }
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], text) == 0) {
            *ret_index = i;
            return 0;
        }
    }
    return wrong_luks_value(name, text, err);
}

static int take_hash(struct options *opts, const char *prefix, const char *name, const char *dflt,
                     const struct luks_hash **ret_hash, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = take_luks_text(opts, prefix, name, &text, err);

    if (r < 0) {
        return r;
    }
    *ret_hash = text || dflt ? luks_find_hash(text ? text : dflt) : NULL;
    return text && !*ret_hash ? wrong_luks_value(name, text, err) : 0;
}

static int take_cipher(struct options *opts, const char *prefix,
                       const struct luks_cipher_alg **ret_alg, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = take_luks_text(opts, prefix, "cipher-alg", &text, err);

    if (r < 0) {
        return r;
    }
    if (text && (strcmp(text, "des") == 0 || strcmp(text, "3des") == 0)) {
        return error_set(err, ENOTSUP, "Algorithm '%s' not supported", text);
    }
    *ret_alg = luks_find_cipher(text ? text : "aes-256");
    return *ret_alg ? 0 : wrong_luks_value("cipher-alg", text, err);
}

static int take_time(struct options *opts, const char *prefix, uint64_t *ret_ms, struct error *err)
{
    return options_take_uint(opts, full_name(prefix, "iter-time").text, LUKS_ITER_TIME_MS,
                             UINT64_MAX, ret_ms, err);
}

int luks_take_format(struct options *opts, const char *prefix, struct luks_format *ret_format,
                     struct error *err)
{
    struct luks_format f = {0};
    int mode, ivgen, r;

    if ((r = take_cipher(opts, prefix, &f.encryption.alg, err)) < 0 ||
        (r = take_index(opts, prefix, "cipher-mode", luks_mode_names, LUKS_XTS, &mode, err)) < 0 ||
        (r = take_index(opts, prefix, "ivgen-alg", luks_ivgen_names, LUKS_PLAIN64, &ivgen, err)) <
            0 ||
        (r = take_hash(opts, prefix, "ivgen-hash-alg", ivgen == LUKS_ESSIV ? "sha256" : NULL,
                       &f.encryption.iv_hash, err)) < 0 ||
        (r = take_hash(opts, prefix, "hash-alg", "sha256", &f.hash, err)) < 0 ||
        (r = take_time(opts, prefix, &f.iter_time_ms, err)) < 0) {
        return r;
    }
    f.encryption.mode = (enum luks_mode)mode;
    f.encryption.ivgen = (enum luks_ivgen)ivgen;
    r = luks_check_encryption(&f.encryption, err);
    UNLESS_FAILED(r, take_luks_text(opts, prefix, "key-secret", &f.secret_id, err));
    if (r == 0 && !f.secret_id) {
        r = error_set(err, EINVAL, "Parameter '%skey-secret' is required for cipher", prefix);
    }
    if (r == 0) {
        *ret_format = f;
    }
    return r;
}

static bool has_one(const struct options *opts, const char *prefix, const char *const *names)
{
    while (*names && !options_has(opts, full_name(prefix, *names).text)) {
        names++;
    }
    return *names != NULL;
}

bool luks_has_change(const struct options *opts, const char *prefix)
{
    static const char *const names[] = {"state",   "new-secret", "old-secret", "secret",
                                        "keyslot", "iter-time",  NULL};

    return has_one(opts, prefix, names);
}

bool luks_has_format(const struct options *opts, const char *prefix)
{
    static const char *const names[] = {"cipher-alg", "cipher-mode",    "hash-alg", "iter-time",
                                        "ivgen-alg",  "ivgen-hash-alg", NULL};

    return has_one(opts, prefix, names);
}

static int take_state(struct options *opts, const char *prefix, bool *ret_activate,
                      struct error *err)
{
    static const char *const names[] = {"inactive", "active", NULL};
    int state, r;

    if (!options_has(opts, full_name(prefix, "state").text)) {
        return error_set(err, EINVAL, "Parameter 'state' is missing");
    }
    r = take_index(opts, prefix, "state", names, 0, &state, err);
    *ret_activate = r == 0 && state == 1;
    return r;
}

int luks_take_change(struct options *opts, const char *prefix, struct luks_change *ret_change,
                     struct error *err)
{
    struct luks_change c = {
        .has_slot = options_has(opts, full_name(prefix, "keyslot").text),
        .has_iter_time = options_has(opts, full_name(prefix, "iter-time").text),
    };
    int r;

    if ((r = take_state(opts, prefix, &c.activate, err)) < 0 ||
        (r = options_take_uint(opts, full_name(prefix, "keyslot").text, 0, UINT64_MAX, &c.slot,
                               err)) < 0 ||
        (r = take_time(opts, prefix, &c.iter_time_ms, err)) < 0 ||
        (r = take_luks_text(opts, prefix, "new-secret", &c.new_secret, err)) < 0 ||
        (r = take_luks_text(opts, prefix, "old-secret", &c.old_secret, err)) < 0 ||
        (r = take_luks_text(opts, prefix, "secret", &c.secret, err)) < 0) {
        luks_change_release(&c);
        return r;
    }
    *ret_change = c;
    return 0;
}
