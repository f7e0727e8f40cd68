/* SPDX-License-Identifier: Apache-2.0 */
/* Rules that change while a handshake, which is on another thread, asks them. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "block/options.h"
#include "block/user_object.h"
#include "tls/tls.h"

#define CHANGES 20000

static struct tls_authz *authz;
static atomic_bool done;

static void *ask(void *arg)
{
    uintptr_t refused = 0;

    while (!atomic_load(&done)) {
        refused += !tls_authz_allows(authz, "somebody with a name of some length");
    }
    return (void *)refused;
}

static void test_who_is_in_all_rules_is_always_allowed(void **state)
{
    static const char *const rules[] = {
        "[{\"match\":\"somebody with a name of some length\",\"policy\":\"allow\"}]",
        "[{\"match\":\"another\",\"policy\":\"deny\"},"
        "{\"match\":\"some*length\",\"policy\":\"allow\",\"format\":\"glob\"}]",
    };
    struct options *opts = NULL;
    struct user_object *o;
    pthread_t thread;
    void *refused;

    tls_register_types();
    assert_int_equal(options_parse("{\"qom-type\":\"authz-list\",\"id\":\"a\",\"rules\":"
                                   "[{\"match\":\"some*\",\"policy\":\"allow\","
                                   "\"format\":\"glob\"}]}",
                                   NULL, &opts, NULL),
                     0);
    assert_int_equal(user_object_add(opts, NULL), 0);
    assert_int_equal(tls_authz_ref("a", &authz, NULL), 0);
    o = user_object_next(NULL);
    assert_int_equal(pthread_create(&thread, NULL, ask, NULL), 0);
    for (int i = 0; i < CHANGES; i++) {
        struct json_object *value = json_tokener_parse(rules[i % 2]);

        assert_int_equal(user_object_set(o, "rules", value, NULL), 0);
        json_object_put(value);
    }
    atomic_store(&done, true);
    pthread_join(thread, &refused);
    assert_null(refused);
    tls_authz_unref(authz);
    user_objects_release();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_who_is_in_all_rules_is_always_allowed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
