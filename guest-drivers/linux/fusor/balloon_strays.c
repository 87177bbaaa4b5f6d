// SPDX-License-Identifier: GPL-2.0-only
/*
 * Gets back what is in the balloon and belongs to nobody: a kernel before this one gave it (kexec), or
 * this driver before it was unloaded, and Fusor had no frames when they let go of it; or an exchange
 * for compaction was refused halfway. Such a stray is ordinary memory to this kernel, as good as
 * never touched: it comes back when it is written, which costs a frame like any first touch. Until
 * then the balloon is larger than the target, and the frames are counted as given.
 *
 * Fusor says how many there are (its count less ours), but not where. So all memory is asked for by
 * whole ranges, except what is in our balloon: a call each, once, and only when there are any. A
 * range that Fusor has no frames for ends the search for now; it goes on there when the balloon's
 * worker comes by again.
 */
#include "balloon.h"

#include <linux/memory_hotplug.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/nodemask.h>
#include <linux/page-flags.h>
#include <linux/printk.h>
#include <linux/sched.h>

/* Ranges passed between two looks at Fusor's count. */
#define LOOK_EVERY 64U

/* The worker's, but for the flag: perhaps there are strays. */
static bool fusor_perhaps = true;
static bool fusor_again; /* some may lie before fusor_next_pfn */
static unsigned long fusor_next_pfn;

/*
 * Memory has gone offline, and its struct pages are about to go: nobody looks at them any more when
 * this returns.
 */
void fusor_strays_memory_gone(void)
{
	mutex_lock(&fusor_balloon_lock);
	mutex_unlock(&fusor_balloon_lock);
}

/* Any context: a page was left in. */
void fusor_stray_left(void)
{
	WRITE_ONCE(fusor_perhaps, true);
	WRITE_ONCE(fusor_again, true);
}

/* Under the lock, so that our count stands still. */
static u64 fusor_count_strays(void)
{
	u64 held = fusor_pages_held();
	struct fusor_statistics s;

	/* Without figures nothing is known, and nothing is done. */
	if (fusor_stats_read(&s))
		return 0;
	return s.balloon > held ? s.balloon - held : 0;
}

/*
 * Lists what of a range is not in our balloon. `whole`: in one entry, if it is all. Pages that are out
 * of use for another reason are left out, too: they do not come back into use here.
 */
static unsigned int fusor_list_others(unsigned long first, bool whole)
{
	unsigned long pfn;
	unsigned int n = 0;

	for (pfn = first; pfn < first + FUSOR_RANGE_PAGES; pfn++) {
		struct page *page = pfn_to_online_page(pfn);

		if (!page || !PageOffline(page))
			fusor_entries[n++] = FUSOR_ENTRY(pfn, 0, 0);
	}
	if (n == FUSOR_RANGE_PAGES && whole) {
		fusor_entries[0] = FUSOR_ENTRY(first, 0, FUSOR_RANGE_ORDER);
		n = 1;
	}
	return n;
}

/* Returns false when Fusor has no frames for what is there. */
static bool fusor_recover_listed(unsigned int n, bool *holes)
{
	unsigned int done = 0;
	s64 why;

	for (;;) {
		done += fusor_call_list(FUSOR_BALLOON_DEFLATE, fusor_entries + done, n - done,
					&why);
		if (done >= n)
			return true;
		switch (why) {
		case -FUSOR_ERANGE: /* not memory, or only in parts */
			*holes = true;
			break;
		case -FUSOR_ENOENT: /* not in the balloon */
			break;
		default:
			fusor_balloon_add(no_frames, 1);
			fusor_machine_short();
			return false;
		}
		done++;
	}
}

static bool fusor_recover_range(unsigned long pfn)
{
	bool holes = false;

	/* Memory comes and goes in multiples of a range. */
	if (!pfn_to_online_page(pfn))
		return true;
	if (!fusor_recover_listed(fusor_list_others(pfn, true), &holes))
		return false;
	return !holes || fusor_recover_listed(fusor_list_others(pfn, false), &holes);
}

static unsigned long fusor_end_pfn(void)
{
	unsigned long end = 0;
	int node;

	for_each_online_node(node)
		end = max(end, node_end_pfn(node));
	return end;
}

/* LOOK_EVERY ranges at most, while there is a stray. Returns false when Fusor has no frames. */
static bool fusor_recover_some(unsigned long end, bool *none)
{
	bool go_on = true;
	u64 before, after;
	unsigned int i;

	mutex_lock(&fusor_balloon_lock);
	before = fusor_count_strays();
	for (i = 0; before && go_on && i < LOOK_EVERY && fusor_next_pfn < end; i++) {
		go_on = fusor_recover_range(fusor_next_pfn);
		if (go_on)
			fusor_next_pfn += FUSOR_RANGE_PAGES;
	}
	after = fusor_count_strays();
	*none = !after;
	if (before > after)
		fusor_balloon_add(strays, before - after);
	mutex_unlock(&fusor_balloon_lock);
	return go_on;
}

/**
 * fusor_recover_strays - ask for all pages in the balloon that are not ours
 *
 * Only the balloon's worker calls this. Costs nothing when there are none.
 *
 * Return: false when Fusor has no frames for them now.
 */
bool fusor_recover_strays(void)
{
	unsigned long end;
	bool none = false;

	if (!READ_ONCE(fusor_perhaps))
		return true;
	if (READ_ONCE(fusor_again)) {
		WRITE_ONCE(fusor_again, false);
		fusor_next_pfn = 0;
	}
	end = fusor_end_pfn();
	while (!none && fusor_next_pfn < end) {
		if (!fusor_recover_some(end, &none))
			return false;
		cond_resched();
	}
	if (!none)
		pr_debug("pages stay in the balloon where this kernel has no memory\n");
	fusor_next_pfn = 0;
	WRITE_ONCE(fusor_perhaps, READ_ONCE(fusor_again));
	return true;
}
