/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * What a guest may ask of Fusor: the public hypercall interface, version 1.
 *
 * Discovery: CPUID leaf 0x40000000 answers "FusorFusor\0\0" in EBX, ECX, EDX and the highest leaf
 * in EAX; leaf 0x40000001 answers the version in EAX, enum fusor_feature bits in EBX and the most
 * entries of one list in ECX. Then VMCALL from ring 0: RAX = number, arguments in RDI, RSI, RDX,
 * R10; RAX returns a value >= 0 or a negative error. All other registers are kept. Numbers 9 to 15
 * will not be used: 10 is KVM's, for guests that found KVM's leaf.
 *
 * Fixed layouts, little-endian. Reserved bits and fields must be zero, so that they can mean
 * something later. Compiles as C in a hypervisor, in Linux and in a bare guest.
 */
#ifndef FUSOR_ABI_H
#define FUSOR_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#ifndef _ASM_GENERIC_INT_LL64_H /* <linux/types.h> came first and has these */
typedef uint32_t __u32;
typedef uint64_t __u64;
typedef int64_t __s64;
#endif
#endif

#define FUSOR_CPUID_SIGNATURE 0x40000000u
#define FUSOR_CPUID_FEATURES  0x40000001u
#define FUSOR_SIGNATURE_EBX   0x6f737546u /* "Fuso" */
#define FUSOR_SIGNATURE_ECX   0x73754672u /* "rFus" */
#define FUSOR_SIGNATURE_EDX   0x0000726fu /* "or\0\0" */
#define FUSOR_ABI_VERSION     1u

enum fusor_feature {
    FUSOR_FEATURE_HINTS = 1u << 0,   /* FUSOR_HINT, FUSOR_UNHINT */
    FUSOR_FEATURE_STATS = 1u << 1,   /* FUSOR_STATISTICS, FUSOR_REPORT */
    FUSOR_FEATURE_BALLOON = 1u << 2, /* FUSOR_BALLOON_*, the doorbell interrupt */
    FUSOR_FEATURE_FREE = 1u << 3,    /* FUSOR_FREE_PAGES */
};

enum fusor_call {
    /* RDI = gpa of a list of __u64 hints (multiple of 8), RSI = entries (1..FUSOR_LIST_MAX),
     * RDX = R10 = 0. Returns how many entries were done, which may be fewer: the guest calls again
     * with the rest. Ends before the first entry that is not acceptable; when that is the first of
     * all, its error is returned and nothing was done. */
    FUSOR_HINT = 1,
    /* The same list: the frames are about to change and are forgotten as candidates. What is fused
     * already stays fused until it is written. */
    FUSOR_UNHINT = 2,
    /* RDI = gpa, RSI = size in bytes; the first `size` bytes of struct fusor_statistics are
     * written (at most its size). RDX = R10 = 0. Returns the bytes written. */
    FUSOR_STATISTICS = 3,
    /* RDI = gpa, RSI = size in bytes of a struct fusor_report. RDX = R10 = 0. Returns 0. */
    FUSOR_REPORT = 4,
    /* RDI = RSI = RDX = R10 = 0. Returns how many gfns the operator wants in the balloon, and
     * lowers the doorbell. */
    FUSOR_BALLOON_TARGET = 5,
    /* A list as for hints, class 0. The gfns, which the guest has taken out of use, go into the
     * balloon; their contents are lost. */
    FUSOR_BALLOON_INFLATE = 6,
    /* The same list: gfns of the balloon become ordinary memory again, zero. */
    FUSOR_BALLOON_DEFLATE = 7,
    /* The same list: the contents of these gfns, which nobody uses now, may go; they are zero when
     * they are used next. Done when the call returns, and not remembered. */
    FUSOR_FREE_PAGES = 8,
};

/* Errors, as negative values in RAX. The numbers are those of Linux. */
enum fusor_error_code {
    FUSOR_EPERM = 1,   /* not from ring 0 */
    FUSOR_ENOENT = 2,  /* the frame is not what the call needs it to be */
    FUSOR_EAGAIN = 11, /* the VM's hint budget is used up: later */
    FUSOR_ENOMEM = 12, /* no frame: later */
    FUSOR_EFAULT = 14, /* the list or structure is not in the guest's RAM */
    FUSOR_EBUSY = 16,  /* switched off by the operator */
    FUSOR_EEXIST = 17, /* the gfn is in the balloon already, or twice among hints */
    FUSOR_EINVAL = 22, /* reserved bits set, bad count, size, alignment, class or order */
    FUSOR_ERANGE = 34, /* the gfn is not RAM of this guest */
    FUSOR_ENOSYS = 38, /* no such call */
};

#define FUSOR_LIST_MAX 512u

/*
 * An entry of a list: bits 39:0 gfn, 43:40 class (enum fusor_class), 47:44 order (0: one 4 KiB
 * page, 9: a whole aligned 2 MiB range), 63:48 zero. Class is 0 in lists that are not hints.
 */
#define FUSOR_ENTRY_GFN_MASK    0x000000ffffffffffull
#define FUSOR_ENTRY_CLASS_SHIFT 40
#define FUSOR_ENTRY_ORDER_SHIFT 44
#define FUSOR_ENTRY_RESERVED    0xffff000000000000ull
#define FUSOR_ENTRY(gfn, class_, order)                                                            \
    ((__u64)(gfn) | (__u64)(class_) << FUSOR_ENTRY_CLASS_SHIFT |                                   \
     (__u64)(order) << FUSOR_ENTRY_ORDER_SHIFT)

/* Where the guest knows the frame from. */
enum fusor_class {
    FUSOR_CLASS_OTHER = 0,
    FUSOR_CLASS_KERNEL = 1,  /* kernel text and rodata */
    FUSOR_CLASS_CACHE = 2,   /* clean page cache, files in memory */
    FUSOR_CLASS_PROCESS = 3, /* read-only or executable mappings */
    FUSOR_CLASS_MODULE = 4,  /* kernel module text */
    FUSOR_CLASS_ZERO = 5,    /* believed to be all zero */
    FUSOR_CLASSES = 6,
};

struct fusor_statistics {
    __u64 hints_received;
    __u64 hints_fused;
    __u64 hints_unmatched;
    __u64 hints_rejected;
    __u64 splits;
    __u64 cancelled;
    __u64 shared; /* gfns of this guest that are fused now */
    __u64 fused_by_class[FUSOR_CLASSES];
    __u64 balloon;        /* gfns in the balloon */
    __u64 balloon_target; /* gfns that the operator wants there */
};

/* What the guest says about itself, in 4 KiB pages. Shown, never trusted. */
struct fusor_report {
    __u64 total;
    __u64 free;
    __u64 available;
    __u64 cache;
};

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
/* Version 1 as it is in the field: nobody moves or renumbers anything of it by accident. */
#define FUSOR_AT(type, field, at)                                                                  \
    _Static_assert(__builtin_offsetof(struct type, field) == (at), #type "." #field)
_Static_assert(sizeof(__u32) == 4 && sizeof(__u64) == 8 && sizeof(__s64) == 8, "sizes of types");
_Static_assert(FUSOR_ABI_VERSION == 1, "version");
_Static_assert(FUSOR_CPUID_SIGNATURE == 0x40000000u && FUSOR_CPUID_FEATURES == 0x40000001u &&
                   FUSOR_SIGNATURE_EBX == ('F' | 'u' << 8 | 's' << 16 | 'o' << 24) &&
                   FUSOR_SIGNATURE_ECX == ('r' | 'F' << 8 | 'u' << 16 | 's' << 24) &&
                   FUSOR_SIGNATURE_EDX == ('o' | 'r' << 8),
               "signature \"FusorFusor\"");
_Static_assert(FUSOR_FEATURE_HINTS == 1 && FUSOR_FEATURE_STATS == 2 && FUSOR_FEATURE_BALLOON == 4 &&
                   FUSOR_FEATURE_FREE == 8,
               "features");
_Static_assert(FUSOR_HINT == 1 && FUSOR_UNHINT == 2 && FUSOR_STATISTICS == 3 && FUSOR_REPORT == 4 &&
                   FUSOR_BALLOON_TARGET == 5 && FUSOR_BALLOON_INFLATE == 6 &&
                   FUSOR_BALLOON_DEFLATE == 7 && FUSOR_FREE_PAGES == 8,
               "numbers of calls");
_Static_assert(FUSOR_EPERM == 1 && FUSOR_ENOENT == 2 && FUSOR_EAGAIN == 11 && FUSOR_ENOMEM == 12 &&
                   FUSOR_EFAULT == 14 && FUSOR_EBUSY == 16 && FUSOR_EEXIST == 17 &&
                   FUSOR_EINVAL == 22 && FUSOR_ERANGE == 34 && FUSOR_ENOSYS == 38,
               "errors are numbered as in Linux");
_Static_assert(FUSOR_LIST_MAX * sizeof(__u64) == 4096, "the longest list fills a page");
_Static_assert(FUSOR_ENTRY_GFN_MASK == (1ull << FUSOR_ENTRY_CLASS_SHIFT) - 1 &&
                   FUSOR_ENTRY_CLASS_SHIFT == 40 && FUSOR_ENTRY_ORDER_SHIFT == 44 &&
                   FUSOR_ENTRY_RESERVED == ~0ull << 48,
               "bits of an entry");
_Static_assert(FUSOR_ENTRY(0x123456789aull, FUSOR_CLASS_ZERO, 9) == 0x95123456789aull, "an entry");
_Static_assert(FUSOR_CLASS_OTHER == 0 && FUSOR_CLASS_KERNEL == 1 && FUSOR_CLASS_CACHE == 2 &&
                   FUSOR_CLASS_PROCESS == 3 && FUSOR_CLASS_MODULE == 4 && FUSOR_CLASS_ZERO == 5 &&
                   FUSOR_CLASSES == 6,
               "classes");
_Static_assert(sizeof(struct fusor_statistics) == 120, "layout of struct fusor_statistics");
FUSOR_AT(fusor_statistics, hints_received, 0);
FUSOR_AT(fusor_statistics, hints_fused, 8);
FUSOR_AT(fusor_statistics, hints_unmatched, 16);
FUSOR_AT(fusor_statistics, hints_rejected, 24);
FUSOR_AT(fusor_statistics, splits, 32);
FUSOR_AT(fusor_statistics, cancelled, 40);
FUSOR_AT(fusor_statistics, shared, 48);
FUSOR_AT(fusor_statistics, fused_by_class, 56);
FUSOR_AT(fusor_statistics, balloon, 104);
FUSOR_AT(fusor_statistics, balloon_target, 112);
_Static_assert(sizeof(struct fusor_report) == 32, "layout of struct fusor_report");
FUSOR_AT(fusor_report, total, 0);
FUSOR_AT(fusor_report, free, 8);
FUSOR_AT(fusor_report, available, 16);
FUSOR_AT(fusor_report, cache, 24);
#undef FUSOR_AT
#endif

#endif
