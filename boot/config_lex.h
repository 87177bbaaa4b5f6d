// SPDX-License-Identifier: BSD-2-Clause
// The line lexer of fusor.conf. Used twice: the boot stage looks for the files to load, the
// kernel's configuration parser for everything. It knows the form of a line, not the meaning of a
// key.
//
//   ; or # begins a comment at the start of a line or after white space outside quotes
//   [host]  [vm NAME]  [group NAME]
//   key = value        a backslash is literal; the value may be empty
//
// White space around a value does not belong to it. A value that begins with a quote ends at the
// next one, and both are removed: between them white space, ; and # are kept. Quotes further inside
// a value (dyndbg="file x +p") protect ; and # too, but stay, because they are part of what is
// meant.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define CONFIG_NAME_SIZE  64u
#define CONFIG_KEY_SIZE   64u
#define CONFIG_VALUE_SIZE 2048u

enum config_token {
    CONFIG_END,     // no more text
    CONFIG_SECTION, // a section begins: section, name
    CONFIG_PAIR,    // section and name are those of the section it stands in; key, value
    CONFIG_BAD,     // a malformed line: line, expected; the lexer stands behind it, go on
};

enum config_section {
    CONFIG_NONE,  // before the first section header; a pair there is a CONFIG_BAD
    CONFIG_HOST,  // [host]
    CONFIG_VM,    // [vm NAME]
    CONFIG_GROUP, // [group NAME]
    CONFIG_LOST,  // after a malformed section header: its pairs belong to nobody
};

// The state of one pass. Set it up with config_lex_init; the text need not be terminated and must
// outlive the pass.
struct config_lexer {
    const char *text;
    size_t size;
    size_t position;
    unsigned int line; // number of the line that was read last, from 1
    enum config_section section;
    char name[CONFIG_NAME_SIZE];
};

struct config_item {
    enum config_section section;
    unsigned int line;             // from 1
    char name[CONFIG_NAME_SIZE];   // NAME of the section, "" for [host] and before the first one
    char key[CONFIG_KEY_SIZE];     // CONFIG_PAIR
    char value[CONFIG_VALUE_SIZE]; // CONFIG_PAIR, up to 2047 characters, without the quotes
    const char *expected;          // CONFIG_BAD: what was expected, a static text; else NULL
};

// Begins a pass over `size` bytes at `text`.
void config_lex_init(struct config_lexer *lexer, const char *text, size_t size);

// Reads up to the next section header, pair or malformed line into `out`, and returns its kind.
enum config_token config_lex_next(struct config_lexer *lexer, struct config_item *out);

// Whether the value of `key` in such a section names a file (or, for `files`, also a directory) of
// the boot volume: kernel, initrd and module of a VM, files of the host.
bool config_key_names_file(enum config_section section, const char *key);
