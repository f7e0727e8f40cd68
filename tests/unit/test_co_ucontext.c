/* SPDX-License-Identifier: Apache-2.0 */
/* The tests of coroutines, on the switch by ucontext(3) that other processors use. */
#include "test_co.c" // NOLINT(bugprone-suspicious-include)
