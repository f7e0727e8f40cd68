/* SPDX-License-Identifier: Apache-2.0 */
/* What the user may have meant by a word that is none of those that are known. Does not yield. */
#ifndef TIDEMARK_CLI_SUGGEST_H
#define TIDEMARK_CLI_SUGGEST_H

/* Words of more bytes are not compared. */
#define CLI_SUGGEST_MAX 32

struct cli_suggestion {
    const char *typed;
    const char *best;  /* the nearest word so far; NULL: none is near enough */
    unsigned distance; /* of it */
};

/* Begin for the word that the user typed; it is borrowed. */
struct cli_suggestion cli_suggest(const char *typed);
/*
 * Offer a word; it is borrowed. Near enough is what has at most one letter in three inserted, left
 * out, replaced, or swapped with its neighbour, and at least one. Of two that are equally near the
 * first stays.
 */
void cli_suggest_word(struct cli_suggestion *s, const char *word);

#endif
