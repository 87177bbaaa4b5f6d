/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The balloon: memory that the operator wants back.
 *
 *	balloon.c	  follows the target, and stands still when the machine sleeps or ends
 *	balloon_pages.c	  takes pages out of use and gives them to Fusor, and the reverse; compaction
 *	balloon_strays.c  gets back what is in the balloon and not ours
 *	balloon_pressure.c when this guest needs its memory itself
 *	doorbell.c	  the interrupt that says the target has changed
 *	balloon_stats.c	  /sys/kernel/fusor/balloon
 */
#ifndef FUSOR_BALLOON_H
#define FUSOR_BALLOON_H

#include "fusor.h" /* first: pr_fmt */

#include <linux/mutex.h>
#include <linux/types.h>

/* --- balloon.c --- */

int fusor_balloon_start(void);
void fusor_balloon_stop(void);
void fusor_balloon_ring(void);
u64 fusor_balloon_wanted(void);

/* --- balloon_pages.c --- */

int fusor_pages_init(void);
void fusor_pages_exit(void);
unsigned long fusor_pages_held(void);
unsigned long fusor_inflate(unsigned long pages);

/* Why pages leave the balloon. */
enum fusor_deflate_reason {
	DEFLATE_TARGET,
	DEFLATE_OOM,
	DEFLATE_SHRINKER,
	DEFLATE_REASONS,
};

unsigned long fusor_deflate(unsigned long pages, enum fusor_deflate_reason reason);
bool fusor_may_ask(enum fusor_deflate_reason reason);
void fusor_abandon(void);
void fusor_machine_short(void);
void fusor_frames_expected(void);

/* For the files of the balloon that make lists. */
extern struct mutex fusor_balloon_lock;
extern u64 *fusor_entries; /* the list for the hypercall, FUSOR_LIST_MAX entries; under the lock */

/* --- balloon_strays.c --- */

bool fusor_recover_strays(void);
void fusor_stray_left(void);
void fusor_strays_memory_gone(void);

/* --- balloon_pressure.c --- */

unsigned long fusor_room(void);
int fusor_pressure_start(void);
void fusor_pressure_stop(void);

/* --- doorbell.c --- */

int fusor_doorbell_start(void);
void fusor_doorbell_stop(void);
bool fusor_doorbell_present(void);

/* --- balloon_stats.c --- */

/*
 * In pages of 4 KiB where nothing else is said. Under the lock of balloon_pages.c, but `rings`, which
 * is the interrupt's, and `reported`, which is reporting.c's.
 */
struct fusor_balloon_counters {
	u64 pages;			/* in the balloon */
	u64 extents;			/* whole 2 MiB ranges among them */
	u64 inflated;			/* given since loading */
	u64 deflated[DEFLATE_REASONS];	/* got back since loading */
	u64 refused;			/* that Fusor did not take */
	u64 no_frames;			/* calls to which it had no memory to give back */
	u64 strays;			/* got back from the balloon that were not ours */
	u64 moved;			/* exchanged by compaction */
	u64 ns_allocating;		/* time: until pages were out of use */
	u64 ns_giving;			/* until they were Fusor's */
	u64 ns_taking;			/* until pages that came back were free */
	u64 rings;			/* of the doorbell */
	u64 reported;			/* free pages reported */
};

extern struct fusor_balloon_counters fusor_balloon_count;

#define fusor_balloon_add(counter, n) \
	WRITE_ONCE(fusor_balloon_count.counter, fusor_balloon_count.counter + (n))

int fusor_balloon_stats_init(void);
void fusor_balloon_stats_exit(void);

#endif
