// SPDX-License-Identifier: BSD-2-Clause
// The C library's memory and string functions, as far as Fusor needs them.
//
// Short blocks are moved word by word; from REP_BYTES on, the string instructions move eight bytes
// per iteration, which every CPU with EPT does in its wide data paths.
#include "kernel/string.h"

#include <stdint.h>

#if defined(__GNUC__) && !defined(__clang__)
// Otherwise the compiler recognises the loops below as what they implement and calls them.
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#endif

#define REP_BYTES 128u
#define WORD      sizeof(uint64_t)

// Any object, at any alignment.
typedef uint64_t __attribute__((may_alias, aligned(1))) word;

static inline uint8_t *copy_up(uint8_t *d, const uint8_t *s, size_t size)
{
    if (size >= REP_BYTES) {
        size_t words = size / WORD;
        __asm__ volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(words)::"memory");
        size %= WORD;
    }
    for (; size >= WORD; size -= WORD, d += WORD, s += WORD)
        *(word *)d = *(const word *)s;
    while (size-- != 0)
        *d++ = *s++;
    return d;
}

void *memcpy(void *restrict destination, const void *restrict source, size_t size)
{
    copy_up(destination, source, size);
    return destination;
}

void *memmove(void *destination, const void *source, size_t size)
{
    uint8_t *d = destination;
    const uint8_t *s = source;
    // Upwards is right when the destination does not start inside the source; also when it starts
    // before, as each word is read before a later one can overwrite it.
    if ((uintptr_t)d - (uintptr_t)s >= size) {
        copy_up(d, s, size);
        return destination;
    }
    for (; size >= WORD; size -= WORD)
        *(word *)(d + size - WORD) = *(const word *)(s + size - WORD);
    while (size-- != 0)
        d[size] = s[size];
    return destination;
}

void *memset(void *destination, int byte, size_t size)
{
    uint8_t *d = destination;
    uint64_t pattern = (uint8_t)byte * UINT64_C(0x0101010101010101);
    if (size >= REP_BYTES) {
        size_t words = size / WORD;
        __asm__ volatile("rep stosq" : "+D"(d), "+c"(words) : "a"(pattern) : "memory");
        size %= WORD;
    }
    for (; size >= WORD; size -= WORD, d += WORD)
        *(word *)d = pattern;
    while (size-- != 0)
        *d++ = (uint8_t)byte;
    return destination;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *x = a;
    const uint8_t *y = b;
    for (; size >= WORD; size -= WORD, x += WORD, y += WORD) {
        if (*(const word *)x != *(const word *)y)
            break; // the loop below finds the byte
    }
    for (; size != 0; size--, x++, y++) {
        if (*x != *y)
            return *x < *y ? -1 : 1;
    }
    return 0;
}

void *memchr(const void *s, int byte, size_t size)
{
    const uint8_t *p = s;
    for (; size != 0; size--, p++) {
        if (*p == (uint8_t)byte)
            return (void *)(uintptr_t)p;
    }
    return NULL;
}

size_t strlen(const char *s)
{
    const char *p = s;
    while (*p != '\0')
        p++;
    return (size_t)(p - s);
}

size_t strnlen(const char *s, size_t max)
{
    size_t n = 0;
    while (n < max && s[n] != '\0')
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        a++;
        b++;
    }
    return (int)(uint8_t)*a - (int)(uint8_t)*b;
}

int strncmp(const char *a, const char *b, size_t max)
{
    for (; max != 0; max--, a++, b++) {
        if (*a != *b)
            return (int)(uint8_t)*a - (int)(uint8_t)*b;
        if (*a == '\0')
            break;
    }
    return 0;
}

char *strchr(const char *s, int c)
{
    for (;; s++) {
        if (*s == (char)c)
            return (char *)(uintptr_t)s;
        if (*s == '\0')
            return NULL;
    }
}
