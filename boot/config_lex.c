// SPDX-License-Identifier: BSD-2-Clause
#include "boot/config_lex.h"

#include "kernel/string.h"

// A piece of the text: [at, end).
struct span {
    const char *at;
    const char *end;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static bool is_comment(char c)
{
    return c == ';' || c == '#';
}

static bool is_key_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
}

static void skip_blanks(struct span *s)
{
    while (s->at < s->end && is_blank(*s->at)) {
        s->at++;
    }
}

// Whether nothing but white space and perhaps a comment is left. A comment needs white space before
// it unless it stands at the start of the line, which is the caller's to know.
static bool only_comment_left(struct span s)
{
    const char *start = s.at;

    skip_blanks(&s);
    return s.at == s.end || (is_comment(*s.at) && s.at > start);
}

// Copies a span that must fit, with its terminator, into `size` bytes. False: too long, nothing
// copied.
static bool copy_span(char *to, size_t size, const char *at, const char *end)
{
    size_t length = (size_t)(end - at);

    if (length >= size) {
        return false;
    }
    memcpy(to, at, length);
    to[length] = '\0';
    return true;
}

static bool span_is(const char *at, const char *end, const char *word)
{
    size_t length = strlen(word);

    return (size_t)(end - at) == length && memcmp(at, word, length) == 0;
}

// Cuts the next line, without its LF or CRLF, off the text.
static struct span next_line(struct config_lexer *lexer)
{
    const char *start = lexer->text + lexer->position;
    const char *stop = lexer->text + lexer->size;
    const char *newline = memchr(start, '\n', (size_t)(stop - start));
    const char *end = newline != NULL ? newline : stop;

    lexer->position = (size_t)((newline != NULL ? newline + 1 : stop) - lexer->text);
    lexer->line++;
    if (end > start && end[-1] == '\r') {
        end--;
    }
    return (struct span){start, end};
}

// Editors on Windows put a byte order mark in front of UTF-8 text.
static void skip_byte_order_mark(struct config_lexer *lexer)
{
    if (lexer->size >= 3 && memcmp(lexer->text, "\xef\xbb\xbf", 3) == 0) {
        lexer->position = 3;
    }
}

// Text only: no NUL and no other control character but the tab. Bytes above 7Fh are UTF-8 or
// whatever the guest's command line means by them.
static bool has_control_character(struct span s)
{
    for (; s.at < s.end; s.at++) {
        unsigned char c = (unsigned char)*s.at;

        if ((c < 0x20 && c != '\t') || c == 0x7f) {
            return true;
        }
    }
    return false;
}

// Reads a section header; `s` stands behind the '['. Returns what was expected, NULL if all is
// well.
static const char *read_section(struct span s, struct config_lexer *lexer)
{
    const char *kind, *kind_end, *name, *name_end;

    skip_blanks(&s);
    kind = s.at;
    while (s.at < s.end && !is_blank(*s.at) && *s.at != ']') {
        s.at++;
    }
    kind_end = s.at;
    skip_blanks(&s);
    name = s.at;
    while (s.at < s.end && !is_blank(*s.at) && *s.at != ']') {
        s.at++;
    }
    name_end = s.at;
    skip_blanks(&s);
    if (s.at == s.end || *s.at != ']') {
        return "expected ] at the end of a section header";
    }
    s.at++;
    if (!only_comment_left(s)) {
        return "expected nothing but a comment after the ] of a section header";
    }

    if (span_is(kind, kind_end, "host")) {
        if (name != name_end) {
            return "expected [host] without a name";
        }
        lexer->section = CONFIG_HOST;
    } else if (span_is(kind, kind_end, "vm") || span_is(kind, kind_end, "group")) {
        if (name == name_end) {
            return "expected a name in the section header: [vm NAME] or [group NAME]";
        }
        lexer->section = *kind == 'v' ? CONFIG_VM : CONFIG_GROUP;
    } else {
        return "expected [host], [vm NAME] or [group NAME]";
    }
    if (!copy_span(lexer->name, sizeof(lexer->name), name, name_end)) {
        return "expected a name of at most 63 characters in the section header";
    }
    return NULL;
}

// Finds where a value ends that begins with a quote; `s` stands on the quote.
static const char *read_quoted(struct span s, struct span *value)
{
    const char *close;

    s.at++;
    close = memchr(s.at, '"', (size_t)(s.end - s.at));
    if (close == NULL) {
        return "expected a closing quote \" on the same line";
    }
    *value = (struct span){s.at, close};
    s.at = close + 1;
    if (!only_comment_left(s)) {
        return "expected nothing but a comment after the closing quote";
    }
    return NULL;
}

// Finds where a value ends that does not begin with a quote: at a comment or the end of the line.
static const char *read_plain(struct span s, struct span *value)
{
    bool quoted = false;
    const char *end = s.at; // behind the last character that is not white space

    value->at = s.at;
    for (; s.at < s.end; s.at++) {
        // s.at[-1] exists: at least the '=' stands before.
        if (!quoted && is_comment(*s.at) && is_blank(s.at[-1])) {
            break;
        }
        if (*s.at == '"') {
            quoted = !quoted;
        }
        if (!is_blank(*s.at)) {
            end = s.at + 1;
        }
    }
    if (quoted) {
        return "expected a closing quote \" on the same line";
    }
    value->end = end;
    return NULL;
}

static const char *read_pair(struct span s, struct config_item *out)
{
    struct span value = {s.at, s.at};
    const char *key = s.at, *key_end;
    const char *expected;

    while (s.at < s.end && is_key_character(*s.at)) {
        s.at++;
    }
    key_end = s.at;
    skip_blanks(&s);
    if (key == key_end || s.at == s.end || *s.at != '=') {
        return "expected KEY = VALUE or a section header";
    }
    s.at++;
    if (!copy_span(out->key, sizeof(out->key), key, key_end)) {
        return "expected a key of at most 63 characters";
    }
    skip_blanks(&s);
    expected = s.at < s.end && *s.at == '"' ? read_quoted(s, &value) : read_plain(s, &value);
    if (expected != NULL) {
        return expected;
    }
    if (!copy_span(out->value, sizeof(out->value), value.at, value.end)) {
        return "expected a value of at most 2047 characters";
    }
    return NULL;
}

void config_lex_init(struct config_lexer *lexer, const char *text, size_t size)
{
    memset(lexer, 0, sizeof(*lexer));
    lexer->text = text;
    lexer->size = size;
    lexer->section = CONFIG_NONE;
    skip_byte_order_mark(lexer);
}

// Judges a line that is neither empty nor a comment; `s` stands on its first character.
static enum config_token read_line(struct config_lexer *lexer, struct span s,
                                   struct config_item *out)
{
    bool is_header = *s.at == '[';

    if (has_control_character(s)) {
        out->expected = "expected text, found a NUL byte or another control character";
    } else if (is_header) {
        s.at++;
        out->expected = read_section(s, lexer);
    } else if (lexer->section == CONFIG_NONE) {
        out->expected = "expected a section header before the first key";
    } else {
        out->expected = read_pair(s, out);
    }

    if (out->expected == NULL) {
        return is_header ? CONFIG_SECTION : CONFIG_PAIR;
    }
    if (is_header) {
        // What follows must not be taken for a part of the section before.
        lexer->section = CONFIG_LOST;
        lexer->name[0] = '\0';
    }
    return CONFIG_BAD;
}

enum config_token config_lex_next(struct config_lexer *lexer, struct config_item *out)
{
    enum config_token token = CONFIG_END;

    out->key[0] = '\0';
    out->value[0] = '\0';
    out->expected = NULL;
    while (lexer->position < lexer->size) {
        struct span s = next_line(lexer);

        skip_blanks(&s);
        if (s.at < s.end && !is_comment(*s.at)) {
            token = read_line(lexer, s, out);
            break;
        }
    }
    out->section = lexer->section;
    out->line = lexer->line;
    memcpy(out->name, lexer->name, sizeof(out->name));
    return token;
}

bool config_key_names_file(enum config_section section, const char *key)
{
    switch (section) {
    case CONFIG_HOST:
        return strcmp(key, "files") == 0;
    case CONFIG_VM:
        return strcmp(key, "kernel") == 0 || strcmp(key, "initrd") == 0 ||
               strcmp(key, "module") == 0;
    default:
        return false;
    }
}
