// SPDX-License-Identifier: BSD-2-Clause
// Address types and small helpers that every room uses.
//
// Addresses of different kinds are different C types, so that a guest-physical address cannot be
// passed where a host-physical one is meant (the idea is Hafnium's).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12u
#define PAGE_SIZE  (UINT64_C(1) << PAGE_SHIFT)
#define PAGE_MASK  (PAGE_SIZE - 1)

#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

#define ARRAY_SIZE(a)    (sizeof(a) / sizeof((a)[0]))
#define ALIGN_UP(x, a)   (((x) + (a)-1) & ~((a)-1))
#define ALIGN_DOWN(x, a) ((x) & ~((a)-1))
#define MIN(a, b)        ((a) < (b) ? (a) : (b))
#define MAX(a, b)        ((a) > (b) ? (a) : (b))

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

// Machine ("host") physical address.
typedef struct {
    uint64_t raw;
} hpa_t;

// Guest-physical address.
typedef struct {
    uint64_t raw;
} gpa_t;

// Host frame number: hpa >> 12.
typedef struct {
    uint64_t raw;
} hfn_t;

// Guest frame number: gpa >> 12.
typedef struct {
    uint64_t raw;
} gfn_t;

static inline hpa_t hpa(uint64_t raw)
{
    return (hpa_t){raw};
}

static inline gpa_t gpa(uint64_t raw)
{
    return (gpa_t){raw};
}

static inline hfn_t hfn(uint64_t raw)
{
    return (hfn_t){raw};
}

static inline gfn_t gfn(uint64_t raw)
{
    return (gfn_t){raw};
}

static inline hpa_t hfn_to_hpa(hfn_t n)
{
    return (hpa_t){n.raw << PAGE_SHIFT};
}

static inline hfn_t hpa_to_hfn(hpa_t a)
{
    return (hfn_t){a.raw >> PAGE_SHIFT};
}

static inline gpa_t gfn_to_gpa(gfn_t n)
{
    return (gpa_t){n.raw << PAGE_SHIFT};
}

static inline gfn_t gpa_to_gfn(gpa_t a)
{
    return (gfn_t){a.raw >> PAGE_SHIFT};
}
