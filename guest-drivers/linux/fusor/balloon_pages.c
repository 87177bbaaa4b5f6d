// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages go into the balloon and come back.
 *
 * Whole 2 MiB ranges are taken as far as the page allocator has them lying around, without reclaim
 * or compaction, then single pages. Ranges are kept as allocated. Single pages are the kernel's
 * balloon pages: compaction may exchange them for others (fusor_move).
 *
 * Nothing is allocated under the lock: it is taken in reclaim (balloon_pressure.c) and compaction.
 */
#include "balloon.h"

#include <linux/balloon_compaction.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/page-flags.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/vmstat.h>

static bool balloon_extents = true;
module_param(balloon_extents, bool, 0644);
MODULE_PARM_DESC(balloon_extents, "give whole 2 MiB ranges where there are any, not only pages (Y)");

/*
 * Taken from the page allocator before anything is given: a range, or 1 MiB in pages. With
 * init_on_alloc every page in hand may cost the machine a frame that it does not have, in the middle
 * of an allocation, and nothing comes from a vCPU that waits for one. Of Fusor's reserve a guest gets
 * 1 MiB for this, less what else it touches meanwhile, and what it gives is made up for. So while
 * the machine is short it is single pages in small steps, which always get on.
 */
#define STEP_EXTENTS 1U
#define STEP_PAGES 256U
#define STEP_PAGES_SHORT 32U

/* How long the machine counts as short after the last sign of it, which comes every second. */
#define SHORT_TIME (5 * HZ)

/*
 * Between two questions for memory that a machine without frames is asked in: reclaim would ask it
 * thousands of times in a second. The time doubles with every refusal; the OOM killer, which is the
 * last to ask, always waits for the shortest only.
 */
#define ASK_FIRST (HZ / 10)
#define ASK_LAST  (10 * HZ)

/*
 * What is in a page that goes to Fusor is of no use to anybody, and clearing it first (init_on_alloc,
 * Debian's default) is most of what giving would cost: for memory that was never touched Fusor would
 * even have to provide it before. There is no flag for "do not clear" that modules may use, but
 * __GFP_ZEROTAGS says that memory is cleared together with its tags, which is the architecture's
 * business, and x86, which has no tags, does nothing (6.1 to 6.12 at least). A kernel that clears
 * all the same is only slower. Pages that do not go to Fusor are freed unread.
 */
#define UNCLEARED __GFP_ZEROTAGS

/*
 * As for a balloon page, but no reclaim: a range that is not free is not worth the disturbance. Not
 * from movable zones, for a range cannot be moved.
 */
#define EXTENT_GFP (__GFP_HIGHMEM | __GFP_NOWARN | __GFP_NOMEMALLOC | UNCLEARED)

/* As balloon_page_alloc() does. */
#define PAGE_GFP                                                                                   \
	(balloon_mapping_gfp_mask() | __GFP_NOMEMALLOC | __GFP_NORETRY | __GFP_NOWARN | UNCLEARED)

DEFINE_MUTEX(fusor_balloon_lock);
u64 *fusor_entries;
static struct balloon_dev_info fusor_small;
static LIST_HEAD(fusor_extents);

/* Pages that Fusor does not take: kept until the end of the step, else they would come again. */
static LIST_HEAD(fusor_unwanted);

static unsigned long fusor_short_until;
static bool fusor_short_seen;

/**
 * fusor_machine_short - the machine is short of memory
 *
 * Fusor rings for it without a new target, or refuses to give pages back.
 */
void fusor_machine_short(void)
{
	WRITE_ONCE(fusor_short_until, jiffies + SHORT_TIME);
	WRITE_ONCE(fusor_short_seen, true);
}

static bool fusor_is_short(void)
{
	if (READ_ONCE(fusor_short_seen) && time_after(jiffies, READ_ONCE(fusor_short_until)))
		WRITE_ONCE(fusor_short_seen, false);
	return READ_ONCE(fusor_short_seen);
}

/* When the guest's need was refused last, and how long that holds; 0: it was not, or no more. */
static unsigned long fusor_refused_at;
static unsigned long fusor_refused_for;

static void fusor_back_off(void)
{
	unsigned long wait = 2 * READ_ONCE(fusor_refused_for);

	WRITE_ONCE(fusor_refused_at, jiffies);
	WRITE_ONCE(fusor_refused_for, clamp_t(unsigned long, wait, ASK_FIRST, ASK_LAST));
}

/**
 * fusor_frames_expected - there is reason to ask again
 *
 * The target has changed, or pages came back.
 */
void fusor_frames_expected(void)
{
	WRITE_ONCE(fusor_refused_for, 0);
}

/**
 * fusor_may_ask - is it worth to ask for pages?
 * @reason: who would ask
 */
bool fusor_may_ask(enum fusor_deflate_reason reason)
{
	unsigned long wait = READ_ONCE(fusor_refused_for);

	if (reason == DEFLATE_TARGET) /* has its own pace */
		return true;
	if (reason == DEFLATE_OOM)
		wait = min_t(unsigned long, wait, ASK_FIRST);
	return !wait || jiffies - READ_ONCE(fusor_refused_at) >= wait;
}

unsigned long fusor_pages_held(void)
{
	return READ_ONCE(fusor_balloon_count.pages);
}

static struct page *fusor_entry_page(u64 entry)
{
	return pfn_to_page(entry & FUSOR_ENTRY_GFN_MASK);
}

/* Others (the scanner, dumps, hibernation) see that there is nothing to read. */
static void fusor_mark_offline(struct page *page, bool offline)
{
	unsigned long i;

	for (i = 0; i < FUSOR_RANGE_PAGES; i++) {
		if (offline)
			__SetPageOffline(page + i);
		else
			__ClearPageOffline(page + i);
	}
}

/* --- Into the balloon --- */

static void fusor_keep_extent(struct page *page)
{
	fusor_mark_offline(page, true);
	list_add(&page->lru, &fusor_extents);
	fusor_balloon_add(extents, 1);
}

/* The first `n` entries are in the balloon. */
static void fusor_keep(unsigned int n, unsigned int order)
{
	unsigned int i;

	for (i = 0; i < n; i++) {
		struct page *page = fusor_entry_page(fusor_entries[i]);

		list_del(&page->lru);
		if (order)
			fusor_keep_extent(page);
		else
			balloon_page_enqueue(&fusor_small, page);
		adjust_managed_page_count(page, -(1L << order));
	}
	fusor_balloon_add(pages, (u64)n << order);
	fusor_balloon_add(inflated, (u64)n << order);
}

/*
 * An entry that Fusor does not take. What is in the balloon already, left there by the kernel that
 * ran before a kexec, is as good as given. A range may be so in parts: its pages are tried one by
 * one.
 *
 * Return: true when the rest of the list may be sent.
 */
static bool fusor_not_taken(struct page *page, unsigned int order, s64 why, struct list_head *parts)
{
	unsigned long i;

	switch (why) {
	case -FUSOR_EEXIST:
	case -FUSOR_ENOENT:
	case -FUSOR_ERANGE:
	case -FUSOR_EINVAL:
		break;
	default:
		return false;
	}
	if (order) {
		list_del(&page->lru);
		split_page(page, order);
		for (i = 0; i < FUSOR_RANGE_PAGES; i++)
			list_add(&page[i].lru, parts);
		return true;
	}
	if (why == -FUSOR_EEXIST) {
		fusor_entries[0] = FUSOR_ENTRY(page_to_pfn(page), 0, 0);
		fusor_keep(1, 0);
		return true;
	}
	pr_debug("page %#lx not taken: %lld\n", page_to_pfn(page), why);
	fusor_balloon_add(refused, 1);
	list_move(&page->lru, &fusor_unwanted);
	return true;
}

/*
 * Gives the pages of a list, at most FUSOR_LIST_MAX. What is left in it is to be freed. Pages of
 * ranges that Fusor wants one by one come into `parts`.
 *
 * Return: pages given.
 */
static unsigned long fusor_give(struct list_head *pages, unsigned int order,
				struct list_head *parts)
{
	u64 before = fusor_balloon_count.inflated;
	bool go_on = true;

	while (go_on && !list_empty(pages)) {
		unsigned int n = 0, done;
		struct page *page;
		s64 why;

		list_for_each_entry(page, pages, lru) {
			if (n == FUSOR_LIST_MAX)
				break;
			fusor_entries[n++] = FUSOR_ENTRY(page_to_pfn(page), 0, order);
		}
		done = fusor_call_list(FUSOR_BALLOON_INFLATE, fusor_entries, n, &why);
		page = done < n ? fusor_entry_page(fusor_entries[done]) : NULL;
		fusor_keep(done, order);
		if (page)
			go_on = fusor_not_taken(page, order, why, parts);
	}
	return fusor_balloon_count.inflated - before;
}

static void fusor_free_list(struct list_head *pages, unsigned int order)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, pages, lru) {
		list_del(&page->lru);
		__free_pages(page, order);
	}
}

static unsigned int fusor_allocate(struct list_head *pages, unsigned int n, unsigned int order)
{
	unsigned int i;

	for (i = 0; i < n; i++) {
		struct page *page = alloc_pages(order ? EXTENT_GFP : PAGE_GFP, order);

		if (!page)
			break;
		list_add_tail(&page->lru, pages);
		cond_resched();
	}
	return i;
}

/**
 * fusor_inflate - one step towards a larger balloon
 * @pages: wanted, more than 0
 *
 * Only one at a time. Never takes what fusor_room() says the guest should keep.
 *
 * Return: how many were given, or 0 when there is nothing to give now.
 */
unsigned long fusor_inflate(unsigned long pages)
{
	LIST_HEAD(got);
	LIST_HEAD(parts);
	LIST_HEAD(none);
	unsigned long given = 0;
	unsigned int order = FUSOR_RANGE_ORDER, n = 0;
	bool is_short = fusor_is_short();
	u64 began = ktime_get_ns(), allocated;

	pages = min(pages, fusor_room());
	if (READ_ONCE(balloon_extents) && !is_short)
		n = fusor_allocate(&got, min_t(unsigned long, pages >> order, STEP_EXTENTS), order);
	if (!n) {
		order = 0;
		n = fusor_allocate(&got,
				   min_t(unsigned long, pages, is_short ? STEP_PAGES_SHORT : STEP_PAGES),
				   order);
	}
	if (!n)
		return 0;
	allocated = ktime_get_ns();
	mutex_lock(&fusor_balloon_lock);
	given = fusor_give(&got, order, &parts);
	if (!list_empty(&parts))
		given += fusor_give(&parts, 0, &none);
	fusor_balloon_add(ns_allocating, allocated - began);
	fusor_balloon_add(ns_giving, ktime_get_ns() - allocated);
	mutex_unlock(&fusor_balloon_lock);
	fusor_free_list(&got, order);
	fusor_free_list(&parts, 0);
	fusor_free_list(&fusor_unwanted, 0);
	return given;
}

/* --- Out of the balloon --- */

/* Single pages for fewer than a range. */
static bool fusor_break_extent(void)
{
	struct page *page = list_first_entry_or_null(&fusor_extents, struct page, lru);
	unsigned long i;

	if (!page)
		return false;
	list_del(&page->lru);
	fusor_mark_offline(page, false);
	split_page(page, FUSOR_RANGE_ORDER);
	for (i = 0; i < FUSOR_RANGE_PAGES; i++)
		balloon_page_enqueue(&fusor_small, page + i);
	fusor_balloon_add(extents, -1);
	return true;
}

/* Lists up to `n` ranges; they stay where they are. */
static unsigned int fusor_list_extents(unsigned int n)
{
	struct page *page;
	unsigned int i = 0;

	list_for_each_entry(page, &fusor_extents, lru) {
		if (i == n)
			break;
		fusor_entries[i++] = FUSOR_ENTRY(page_to_pfn(page), 0, FUSOR_RANGE_ORDER);
	}
	return i;
}

/* Takes up to `n` single pages out of the list, out of compaction's sight. */
static unsigned int fusor_list_small(unsigned int n, struct list_head *pages)
{
	struct page *page;
	unsigned int i = 0;

	balloon_page_list_dequeue(&fusor_small, pages, n);
	list_for_each_entry(page, pages, lru)
		fusor_entries[i++] = FUSOR_ENTRY(page_to_pfn(page), 0, 0);
	return i;
}

/* Back to the page allocator. Its entry has been dealt with. */
static void fusor_release(struct page *page, unsigned int order)
{
	list_del(&page->lru);
	if (order) {
		fusor_mark_offline(page, false);
		fusor_balloon_add(extents, -1);
	}
	adjust_managed_page_count(page, 1L << order);
	__free_pages(page, order);
}

/*
 * Asks for the listed pages. What Fusor does not have in the balloon any more, because it was
 * written to, is the guest's already.
 */
static unsigned int fusor_ask(unsigned int n)
{
	unsigned int done = 0;
	s64 why = 0;

	while (done < n) {
		done += fusor_call_list(FUSOR_BALLOON_DEFLATE, fusor_entries + done, n - done,
					&why);
		if (done == n)
			break;
		if (why != -FUSOR_ENOENT) {
			fusor_balloon_add(no_frames, 1);
			fusor_machine_short();
			break;
		}
		done++;
	}
	return done;
}

static unsigned int fusor_take_extents(unsigned int n)
{
	unsigned int done = fusor_ask(fusor_list_extents(n)), i;

	for (i = 0; i < done; i++)
		fusor_release(fusor_entry_page(fusor_entries[i]), FUSOR_RANGE_ORDER);
	return done;
}

static unsigned int fusor_take_small(unsigned int n)
{
	LIST_HEAD(pages);
	unsigned int listed = fusor_list_small(n, &pages), done = fusor_ask(listed), i;

	for (i = 0; i < listed; i++) {
		struct page *page = fusor_entry_page(fusor_entries[i]);

		if (i < done) {
			fusor_release(page, 0);
		} else {
			list_del(&page->lru);
			balloon_page_enqueue(&fusor_small, page);
		}
	}
	return done;
}

/* Whole ranges as far as they are wanted whole, then pages, and only then parts of ranges. */
static unsigned long fusor_take(unsigned long pages)
{
	unsigned int n = min_t(unsigned long, pages >> FUSOR_RANGE_ORDER, FUSOR_LIST_MAX);
	unsigned long taken = 0;

	if (n)
		taken = (unsigned long)fusor_take_extents(n) << FUSOR_RANGE_ORDER;
	if (!taken)
		taken = fusor_take_small(min_t(unsigned long, pages, STEP_PAGES));
	if (!taken && list_empty(&fusor_small.pages) && fusor_break_extent())
		taken = fusor_take_small(min_t(unsigned long, pages, STEP_PAGES));
	return taken;
}

/**
 * fusor_deflate - one step towards a smaller balloon
 * @pages: wanted, more than 0
 * @reason: for the statistics
 *
 * Allocates nothing. For the shrinker it does not wait either.
 *
 * Return: how many came back; 0 when Fusor has none to give, or had none a moment ago, or compaction
 * is working on the last.
 */
unsigned long fusor_deflate(unsigned long pages, enum fusor_deflate_reason reason)
{
	unsigned long taken;
	u64 began, refused;

	if (!fusor_may_ask(reason))
		return 0;
	if (reason == DEFLATE_SHRINKER) {
		if (!mutex_trylock(&fusor_balloon_lock))
			return 0;
	} else {
		mutex_lock(&fusor_balloon_lock);
	}
	began = ktime_get_ns();
	refused = fusor_balloon_count.no_frames;
	taken = fusor_take(pages);
	if (taken)
		fusor_frames_expected();
	else if (reason != DEFLATE_TARGET && fusor_balloon_count.no_frames != refused)
		fusor_back_off();
	fusor_balloon_add(pages, -(u64)taken);
	fusor_balloon_add(deflated[reason], taken);
	fusor_balloon_add(ns_taking, ktime_get_ns() - began);
	mutex_unlock(&fusor_balloon_lock);
	return taken;
}

/*
 * Fusor has no frames and we must go. Pages that come back into use without its consent are what
 * they were before: it provides a frame when they are written to.
 */
void fusor_abandon(void)
{
	LIST_HEAD(pages);
	struct page *page, *next;
	u64 n = 0;

	mutex_lock(&fusor_balloon_lock);
	while (fusor_break_extent())
		cond_resched();
	balloon_page_list_dequeue(&fusor_small, &pages, fusor_balloon_count.pages);
	list_for_each_entry_safe(page, next, &pages, lru) {
		fusor_release(page, 0);
		n++;
	}
	fusor_balloon_add(pages, -n);
	mutex_unlock(&fusor_balloon_lock);
}

/* --- Compaction --- */

#ifdef CONFIG_BALLOON_COMPACTION
static bool fusor_one(u64 number, struct page *page)
{
	s64 why;

	fusor_entries[0] = FUSOR_ENTRY(page_to_pfn(page), 0, 0);
	return fusor_call_list(number, fusor_entries, 1, &why) || why == -FUSOR_EEXIST ||
	       (number == FUSOR_BALLOON_DEFLATE && why == -FUSOR_ENOENT);
}

static void fusor_finalize(struct page *page)
{
#ifdef FUSOR_BALLOON_PAGE_FINALIZE
	balloon_page_finalize(page);
#else
	balloon_page_delete(page); /* which leaves the list alone: the page is isolated */
#endif
}

/*
 * `page`, which compaction has taken out of the list, is to be free and `to` in the balloon instead.
 * `to` goes first, so that Fusor has the frame that it gives back for `page`.
 */
static int fusor_move(struct balloon_dev_info *info, struct page *to, struct page *page,
		      enum migrate_mode mode)
{
	unsigned long flags;

	if (!mutex_trylock(&fusor_balloon_lock))
		return -EAGAIN;
	if (!fusor_one(FUSOR_BALLOON_INFLATE, to))
		goto not_now;
	if (!fusor_one(FUSOR_BALLOON_DEFLATE, page)) {
		if (!fusor_one(FUSOR_BALLOON_DEFLATE, to))
			fusor_stray_left();
		goto not_now;
	}
	get_page(to); /* the balloon's */
	if (page_zone(page) != page_zone(to)) {
		adjust_managed_page_count(page, 1);
		adjust_managed_page_count(to, -1);
	}
	spin_lock_irqsave(&info->pages_lock, flags);
	balloon_page_insert(info, to);
	fusor_finalize(page);
	info->isolated_pages--;
	__count_vm_event(BALLOON_MIGRATE);
	spin_unlock_irqrestore(&info->pages_lock, flags);
	fusor_balloon_add(moved, 1);
	mutex_unlock(&fusor_balloon_lock);
	put_page(page); /* the balloon's */
	return MIGRATEPAGE_SUCCESS;

not_now:
	mutex_unlock(&fusor_balloon_lock);
	return -EAGAIN;
}
#endif

int fusor_pages_init(void)
{
	balloon_devinfo_init(&fusor_small);
#ifdef CONFIG_BALLOON_COMPACTION
	fusor_small.migratepage = fusor_move;
#endif
	fusor_entries = (u64 *)get_zeroed_page(GFP_KERNEL);
	return fusor_entries ? 0 : -ENOMEM;
}

void fusor_pages_exit(void)
{
	free_page((unsigned long)fusor_entries);
}
