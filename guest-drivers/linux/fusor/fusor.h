/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The Linux driver of Fusor. It tells the hypervisor which frames of this guest are likely to be the
 * same in other guests (below), gives it memory (balloon.h) and reports free memory (reporting.c).
 *
 * A hint is advice: a wrong one costs a little time and harms nothing, so nothing there needs to
 * stop the world or to be exact. One kernel thread (scanner.c) makes passes over memory:
 *
 *	walk_tables.c	finds the kernel's page tables, which are never hinted
 *	walk_kernel.c	kernel text and read-only data, module text
 *	walk_pages.c	page cache, then all other memory, by pfn
 *
 * Every walk hands the pages it chose to fusor_consider() (state.c), which remembers what they looked
 * like and passes on (sender.c) those that are new or have come to rest.
 */
#ifndef FUSOR_H
#define FUSOR_H

#include <linux/compiler.h>
#include <linux/types.h>

#include "fusor_abi.h"

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

/* A range that can be hinted as a whole: what one large page maps. */
#define FUSOR_RANGE_ORDER 9U
#define FUSOR_RANGE_PAGES (1UL << FUSOR_RANGE_ORDER)

/* --- main.c --- */

/* enum fusor_feature bits that both sides know and this driver uses. */
extern u32 fusor_features;
/* Most entries of one list, 1..FUSOR_LIST_MAX. */
extern u32 fusor_list_max;

/* --- scanner.c --- */

/*
 * Between two calls of fusor_breathe() at most so many pages are looked at, and hints made: then
 * the list (FUSOR_LIST_MAX) never overflows, for a call leaves it with fewer than this.
 */
#define FUSOR_SLICE 256U

int fusor_scanner_start(void);
void fusor_scanner_stop(void);
void fusor_scanner_kick(void);
const char *fusor_scanner_phase(void);
bool fusor_breathe(void);
bool fusor_wait(unsigned int ms);

/* --- lists.c --- */

unsigned int fusor_call_list(u64 number, u64 *list, unsigned int n, s64 *why);

/* --- reporting.c --- */

int fusor_reporting_start(void);
void fusor_reporting_stop(void);

/* --- state.c --- */

/* Ranges of RAM, first and last pfn. */
struct fusor_range {
	unsigned long first;
	unsigned long last;
};

#define FUSOR_RANGES_MAX 64

/* What the driver looks at in this pass; made anew by fusor_state_begin(). */
struct fusor_ranges {
	unsigned int count;
	struct fusor_range range[FUSOR_RANGES_MAX];
};

extern struct fusor_ranges fusor_ram;

int fusor_state_begin(void);
void fusor_state_exit(void);
bool fusor_is_table(unsigned long pfn);
bool fusor_mark_table(unsigned long pfn);
void fusor_consider(unsigned long pfn, enum fusor_class class, bool steady);
void fusor_consider_free(unsigned long pfn);
bool fusor_consider_whole(unsigned long pfn, enum fusor_class class);
void fusor_forget(unsigned long pfn);
void fusor_forget_all(void);

/* --- checksum.c --- */

void fusor_checksum_init(void);
bool fusor_checksum(unsigned long pfn, u32 *sum, bool *zero);

/* --- sender.c --- */

int fusor_sender_init(void);
void fusor_sender_exit(void);
void fusor_send(unsigned long pfn, enum fusor_class class, unsigned int order);
unsigned int fusor_pending(void);
bool fusor_flush(void);
extern bool fusor_whole_ranges;

/* --- walk_*.c: false when the pass is to end --- */

bool fusor_walk_tables(void);
bool fusor_walk_kernel(void);
bool fusor_walk_modules(void);
bool fusor_walk_files(void);
bool fusor_walk_rest(void);

/* --- stats.c --- */

/* Written by the scanner's thread alone. */
struct fusor_counters {
	u64 sent[FUSOR_CLASSES]; /* hints that Fusor took, by class */
	u64 sent_whole;		 /* of these, whole 2 MiB ranges */
	u64 refused;		 /* entries that it did not take */
	u64 again;		 /* times it asked to come back later */
	u64 dropped;		 /* hints given up for this pass */
	u64 calls;		 /* hypercalls with hints */
	u64 passes;		 /* over all memory */
	u64 summed;		 /* pages read */
	u64 tables;		 /* page tables found in the last pass */
	u64 reports;		 /* of memory in use */
};

extern struct fusor_counters fusor_count;

#define fusor_add(counter, n) \
	WRITE_ONCE(fusor_count.counter, fusor_count.counter + (n))

struct kobject;

/* /sys/kernel/fusor, from fusor_stats_init() on. */
extern struct kobject *fusor_kobject;

int fusor_stats_init(void);
void fusor_stats_exit(void);
int fusor_stats_read(struct fusor_statistics *out);
void fusor_report_memory(void);

#endif
