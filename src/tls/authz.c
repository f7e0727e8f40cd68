/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Authorization: the objects authz-simple (one identity), authz-list (rules, of which the first
 * that matches decides) and authz-list-file (the same, from a file).
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "base/wildcard.h"
#include "loop/loop.h"
#include "schema/define.h"
#include "tls/internal.h"

/* Rules of one list. */
#define RULES_MAX 65536u
/* Bytes of a file of rules: with the most rules, 256 each. */
#define RULES_TEXT_MAX (16u << 20)

struct rule {
    /* Owned. */
    char *match;
    /* `match` is a pattern with * and ?. */
    bool glob;
    bool allow;
};

struct rules {
    /* Owned. */
    struct rule *list;
    size_t count;
    /* Allow identities that no rule matches. */
    bool allow;
};

struct tls_authz {
    /* The object whose data this is; set by tls_authz_ref(). */
    struct user_object *object;
    /* Of authz-simple; else NULL. */
    char *identity;
    /* The file to read again for each peer; NULL: none. */
    char *filename;
    struct rules rules;
};

/*
 * Guards the identities and rules of all: handshakes read them on other threads while a command may
 * change them.
 */
static pthread_mutex_t authz_lock = PTHREAD_MUTEX_INITIALIZER;

static void rules_clear(struct rules *r)
{
    for (size_t i = 0; i < r->count; i++) {
        free(r->list[i].match);
    }
    free(r->list);
    *r = (struct rules){0};
}

static bool rules_allow(const struct rules *r, const char *identity)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct rule *rule = &r->list[i];

        if (rule->glob ? wildcard_matches(rule->match, identity)
                       : strcmp(rule->match, identity) == 0) {
            return rule->allow;
        }
    }
    return r->allow;
}

/* --- from options --------------------------------------------------------------------------- */

static const char *const policies[] = {"deny", "allow", NULL};
static const char *const formats[] = {"exact", "glob", NULL};

static const struct schema_type policy_type = {
    .kind = SCHEMA_ENUM, .name = "QAuthZListPolicy", .values = policies};
static const struct schema_type format_type = {
    .kind = SCHEMA_ENUM, .name = "QAuthZListFormat", .values = formats};
OBJECT(rule_type, "QAuthZListRule", REQ("match", schema_str, .help = "an identity, or a pattern"),
       REQ("policy", policy_type),
       OPT("format", format_type, .dflt = "exact", .help = "glob: match is a pattern"));
static const struct schema_type rules_type = ARRAY_INIT("QAuthZListRuleList", rule_type);
OBJECT(simple_properties, "AuthZSimpleProperties",
       REQ("identity", schema_str, .help = "who is allowed: a subject of a certificate"));
OBJECT(list_properties, "AuthZListProperties",
       OPT("policy", policy_type, .dflt = "deny", .help = "for those whom no rule matches"),
       OPT("rules", rules_type, .help = "the first that matches decides"));
OBJECT(list_file_properties, "AuthZListFileProperties",
       REQ("filename", schema_str, .help = "a file with the JSON of authz-list's options"),
       OPT("refresh", schema_bool, .dflt = "true", .help = "read the file again when it changes"));

static int take_rule(struct options *opts, struct rule *ret_rule, struct error *err)
{
    int policy = 0, format = 0;
    int r = options_take_str(opts, "match", &ret_rule->match, err);

    if (r == 0 && !ret_rule->match) {
        r = error_set(err, EINVAL, "Parameter 'match' is missing");
    }
    if (r == 0 && !options_has(opts, "policy")) {
        r = error_set(err, EINVAL, "Parameter 'policy' is missing");
    }
    UNLESS_FAILED(r, options_take_enum(opts, "policy", policies, 0, &policy, err));
    UNLESS_FAILED(r, options_take_enum(opts, "format", formats, 0, &format, err));
    UNLESS_FAILED(r, options_check_empty(opts, "a rule", err));
    ret_rule->allow = policy == 1;
    ret_rule->glob = format == 1;
    return r;
}

static int take_rules(struct options *opts, struct rules *ret_rules, struct error *err)
{
    struct json_object *list = NULL;
    int policy = 0;
    int r = options_take_enum(opts, "policy", policies, 0, &policy, err);

    UNLESS_FAILED(r, options_take_list(opts, "rules", &list, err));
    ret_rules->allow = policy == 1;
    if (r < 0 || !list) {
        return r;
    }
    if (json_object_array_length(list) > RULES_MAX) {
        r = error_set(err, EINVAL, "There are %zu rules; at most %u are possible",
                      json_object_array_length(list), RULES_MAX);
    }
    ret_rules->list =
        r < 0 ? NULL : calloc(json_object_array_length(list) + 1, sizeof(*ret_rules->list));
    if (r == 0 && !ret_rules->list) {
        r = error_out_of_memory(err);
    }
    for (size_t i = 0; r == 0 && ret_rules->list && i < json_object_array_length(list); i++) {
        AUTO_OPTIONS struct options *rule = NULL;

        r = options_from_json(json_object_array_get_idx(list, i), &rule, err);
        UNLESS_FAILED(r, take_rule(rule, &ret_rules->list[ret_rules->count++], err));
    }
    json_object_put(list);
    if (r < 0) {
        rules_clear(ret_rules);
    }
    return r;
}

/* The text of a file, which can be any file: what is named by mistake is not read to its end. */
static int read_rules_text(const char *filename, struct strbuf *text, struct error *err)
{
    AUTO_CLOSE int fd = open(filename, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    char buffer[4096];
    ssize_t n;

    if (fd < 0) {
        return error_set(err, errno, "Unable to read rules from '%s': %s", filename,
                         strerror(errno));
    }
    while ((n = read(fd, buffer, sizeof(buffer))) > 0 && text->len <= RULES_TEXT_MAX) {
        strbuf_append(text, buffer, (size_t)n);
    }
    if (n < 0) {
        return error_set(err, errno, "Unable to read rules from '%s': %s", filename,
                         strerror(errno));
    }
    if (text->len > RULES_TEXT_MAX) {
        return error_set(err, EFBIG, "Unable to read rules from '%s': longer than %u bytes",
                         filename, RULES_TEXT_MAX);
    }
    return text->failed ? error_out_of_memory(err) : 0;
}

static int read_rules_json(const char *filename, struct json_object **ret_json, struct error *err)
{
    struct strbuf text CLEANUP(strbuf_clear) = STRBUF_INIT;
    enum json_tokener_error problem = json_tokener_success;
    int r = read_rules_text(filename, &text, err);

    if (r < 0) {
        return r;
    }
    *ret_json = json_tokener_parse_verbose(strbuf_str(&text), &problem);
    return *ret_json ? 0
                     : error_set(err, EINVAL, "Unable to read rules from '%s': %s", filename,
                                 json_tokener_error_desc(problem));
}

static int read_rules(const char *filename, struct rules *ret_rules, struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *json = NULL;
    int r = read_rules_json(filename, &json, err);

    if (r < 0) {
        return r;
    }
    r = options_from_json(json, &opts, err);
    json_object_put(json);
    UNLESS_FAILED(r, take_rules(opts, ret_rules, err));
    if (r == 0) {
        r = options_check_empty(opts, "a list of rules", err);
        if (r < 0) {
            rules_clear(ret_rules);
        }
    }
    error_prepend(err, "'%s': ", filename);
    return r;
}

/* --- objects -------------------------------------------------------------------------------- */

static void authz_destroy(void *data)
{
    struct tls_authz *a = data;

    rules_clear(&a->rules);
    free(a->identity);
    free(a->filename);
    free(a);
}

/* The end of a creation: the object, or its release. */
static int finish_authz(struct tls_authz *a, int result, void **ret_data)
{
    if (result < 0) {
        authz_destroy(a);
        return result;
    }
    *ret_data = a;
    return 0;
}

static int simple_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    struct tls_authz *a = calloc(1, sizeof(*a));
    int r;

    if (!a) {
        return error_out_of_memory(err);
    }
    r = options_take_str(opts, "identity", &a->identity, err);
    if (r == 0 && !a->identity) {
        r = error_set(err, EINVAL, "Parameter 'identity' is missing");
    }
    return finish_authz(a, r, ret_data);
}

static int list_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    struct tls_authz *a = calloc(1, sizeof(*a));

    if (!a) {
        return error_out_of_memory(err);
    }
    return finish_authz(a, take_rules(opts, &a->rules, err), ret_data);
}

static int list_file_create(const char *id, struct options *opts, void **ret_data,
                            struct error *err)
{
    struct tls_authz *a = calloc(1, sizeof(*a));
    AUTO_FREE char *filename = NULL;
    bool refresh = true;
    int r;

    if (!a) {
        return error_out_of_memory(err);
    }
    r = options_take_str(opts, "filename", &filename, err);
    if (r == 0 && !filename) {
        r = error_set(err, EINVAL, "Parameter 'filename' is missing");
    }
    UNLESS_FAILED(r, options_take_bool(opts, "refresh", true, &refresh, err));
    UNLESS_FAILED(r, read_rules(filename, &a->rules, err));
    if (r == 0 && refresh) {
        a->filename = TAKE_PTR(filename);
    }
    return finish_authz(a, r, ret_data);
}

/* --- changes: for peers that come from now on --- */

static int simple_set(void *data, const char *name, struct json_object *value, struct error *err)
{
    struct tls_authz *a = data;
    char *identity = strdup(json_object_get_string(value));

    if (!identity) {
        return error_out_of_memory(err);
    }
    pthread_mutex_lock(&authz_lock);
    free(a->identity);
    a->identity = identity;
    pthread_mutex_unlock(&authz_lock);
    return 0;
}

static int list_set(void *data, const char *name, struct json_object *value, struct error *err)
{
    struct tls_authz *a = data;
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *all = json_object_new_object();
    struct rules rules = {0};
    int r;

    json_object_object_add(all, name, json_object_get(value));
    r = options_from_json(all, &opts, err);
    json_object_put(all);
    UNLESS_FAILED(r, take_rules(opts, &rules, err));
    if (r < 0) {
        return r;
    }
    pthread_mutex_lock(&authz_lock);
    if (strcmp(name, "policy") == 0) {
        a->rules.allow = rules.allow;
        rules_clear(&rules);
    } else {
        rules.allow = a->rules.allow;
        rules_clear(&a->rules);
        a->rules = rules;
    }
    pthread_mutex_unlock(&authz_lock);
    return 0;
}

static const struct user_object_type authz_types[] = {
    {.name = "authz-simple",
     .parent = "authz",
     .create = simple_create,
     .destroy = authz_destroy,
     .properties = &simple_properties,
     .set = simple_set,
     .help = "clients with one identity"},
    {.name = "authz-list",
     .parent = "authz",
     .create = list_create,
     .destroy = authz_destroy,
     .properties = &list_properties,
     .set = list_set,
     .help = "clients by a list of rules"},
    {.name = "authz-list-file",
     .parent = "authz",
     .create = list_file_create,
     .reads_files = true,
     .destroy = authz_destroy,
     .properties = &list_file_properties,
     .help = "clients by a list of rules in a file"},
};

void tls_authz_register_types(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(authz_types); i++) {
        user_object_register_type(&authz_types[i]);
    }
}

int tls_authz_ref(const char *id, struct tls_authz **ret_authz, struct error *err)
{
    struct user_object *o = user_object_ref(id);
    struct tls_authz *a;

    if (!o) {
        return error_set(err, ENOENT, "Cannot find QAuthZ object ID %s", id);
    }
    if (user_object_type_of(o)->destroy != authz_destroy) {
        user_object_unref(o);
        return error_set(err, EINVAL, "Object '%s' is not a QAuthZ subclass", id);
    }
    a = user_object_data(o);
    a->object = o;
    *ret_authz = a;
    return 0;
}

void tls_authz_hold(struct tls_authz *authz)
{
    user_object_hold(authz->object);
}

void tls_authz_unref(struct tls_authz *authz)
{
    if (authz) {
        user_object_unref(authz->object);
    }
}

bool tls_authz_allows_as_read(const struct tls_authz *a, const char *identity)
{
    bool allowed;

    pthread_mutex_lock(&authz_lock);
    allowed = a->identity ? strcmp(a->identity, identity) == 0 : rules_allow(&a->rules, identity);
    pthread_mutex_unlock(&authz_lock);
    return allowed;
}

bool tls_authz_is_in_file(const struct tls_authz *a)
{
    return a->filename;
}

/* The rules in the file as it is now; after an error, which is logged, those that allow nobody. */
static bool read_fresh_rules(const struct tls_authz *a, struct rules *ret_rules)
{
    ERROR_AUTO(err);

    if (read_rules(a->filename, ret_rules, &err) < 0) {
        log_error("Authorization: all clients are refused: %s", error_message(&err));
        return false;
    }
    return true;
}

static int refresh_rules(void *arg)
{
    struct tls_authz *a = arg;
    struct rules fresh = {0}, old;

    (void)read_fresh_rules(a, &fresh);
    pthread_mutex_lock(&authz_lock);
    old = a->rules;
    a->rules = fresh;
    pthread_mutex_unlock(&authz_lock);
    rules_clear(&old);
    return 0;
}

void tls_authz_co_refresh(struct tls_authz *a)
{
    if (a->filename) {
        (void)loop_co_offload(refresh_rules, a);
    }
}

bool tls_authz_allows(const struct tls_authz *a, const char *identity)
{
    struct rules fresh CLEANUP(rules_clear) = {0};

    /* With a file no property can be changed. */
    if (!a->filename) {
        return tls_authz_allows_as_read(a, identity);
    }
    return read_fresh_rules(a, &fresh) && rules_allow(&fresh, identity);
}
