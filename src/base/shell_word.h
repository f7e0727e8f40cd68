/* SPDX-License-Identifier: Apache-2.0 */
/* Text in commands that messages suggest: the user copies them to a shell. */
#ifndef TIDEMARK_BASE_SHELL_WORD_H
#define TIDEMARK_BASE_SHELL_WORD_H

/*
 * A path as a POSIX shell reads it as one word: a backslash before what the shell would take for
 * its own, so that it can stand between quotation marks of a sentence. A newline, which has no such
 * form, is in quotation marks, and "./" keeps a name from being an option. The caller frees it;
 * NULL: out of memory. Does not yield.
 */
char *shell_word(const char *text);

#endif
