// SPDX-License-Identifier: GPL-2.0-only
/*
 * Collects hints in a page and passes them to Fusor.
 *
 * Fusor works through a list in order and says how far it came. The rest is sent again: at once
 * after a partial result, later when it asks for time, without the first entry when that is one
 * it cannot use.
 */
#include "fusor.h"

#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/minmax.h>
#include <linux/printk.h>
#include <linux/sched.h>

#include "hypercall.h"

#define WAIT_FIRST_MS	10U
#define WAIT_MOST_MS	1000U
/* Hints that could not be sent within so many waits are left for the next pass. */
#define WAITS_MOST	40U

static u64 *fusor_list;
static unsigned int fusor_listed;

/* Fusor takes hints for whole 2 MiB ranges. */
bool fusor_whole_ranges = true;

int fusor_sender_init(void)
{
	BUILD_BUG_ON(FUSOR_LIST_MAX * sizeof(u64) > PAGE_SIZE);
	BUILD_BUG_ON(FUSOR_SLICE * 2 > FUSOR_LIST_MAX);
	fusor_list = (u64 *)get_zeroed_page(GFP_KERNEL);
	return fusor_list ? 0 : -ENOMEM;
}

void fusor_sender_exit(void)
{
	free_page((unsigned long)fusor_list);
}

unsigned int fusor_pending(void)
{
	return fusor_listed;
}

/**
 * fusor_send - put a hint into the list
 * @pfn: the first page
 * @class: where it is known from
 * @order: 0, or FUSOR_RANGE_ORDER
 *
 * There is always room: fusor_breathe() empties the list before a slice could overfill it.
 */
void fusor_send(unsigned long pfn, enum fusor_class class, unsigned int order)
{
	if (WARN_ON_ONCE(fusor_listed == FUSOR_LIST_MAX))
		return;
	fusor_list[fusor_listed++] = FUSOR_ENTRY(pfn, class, order);
}

static unsigned int fusor_entry_class(u64 entry)
{
	return (entry >> FUSOR_ENTRY_CLASS_SHIFT) & 0xf;
}

static unsigned int fusor_entry_order(u64 entry)
{
	return (entry >> FUSOR_ENTRY_ORDER_SHIFT) & 0xf;
}

/* Fusor took the entries from `first` on. */
static void fusor_took(unsigned int first, unsigned int n)
{
	unsigned int i;

	for (i = first; i < first + n; i++) {
		fusor_add(sent[fusor_entry_class(fusor_list[i])], 1);
		if (fusor_entry_order(fusor_list[i]))
			fusor_add(sent_whole, 1);
	}
}

static void fusor_forget_entry(u64 entry)
{
	unsigned long i, pfn = entry & FUSOR_ENTRY_GFN_MASK;

	for (i = 0; i < 1UL << fusor_entry_order(entry); i++)
		fusor_forget(pfn + i);
}

/*
 * An entry that Fusor refuses will not get better by being sent again: it counts as hinted until
 * the page changes. Whole ranges are the exception: their pages can be hinted one by one.
 */
static void fusor_refused(u64 entry, s64 why)
{
	fusor_add(refused, 1);
	pr_debug("hint %#llx refused: %lld\n", entry, why);
	if (fusor_entry_order(entry)) {
		fusor_whole_ranges = false;
		fusor_forget_entry(entry);
	}
}

/**
 * fusor_flush - send what is in the list
 *
 * May sleep for long. Hints that do not get through are forgotten, so that the next pass makes
 * them again.
 *
 * Return: false when the pass is to end: Fusor takes no hints now, or the driver is being unloaded.
 */
bool fusor_flush(void)
{
	unsigned int done = 0, waits = 0, ms = WAIT_FIRST_MS, i;
	bool go_on = true;

	while (done < fusor_listed && go_on) {
		unsigned int n = min(fusor_listed - done, fusor_list_max);
		s64 result = fusor_call(FUSOR_HINT, virt_to_phys(fusor_list + done), n);

		fusor_add(calls, 1);
		if (result > 0 && result <= n) {
			fusor_took(done, result);
			done += result;
			waits = 0;
			ms = WAIT_FIRST_MS;
			cond_resched();
			continue;
		}
		switch (result) {
		case -FUSOR_EAGAIN:
		case -FUSOR_ENOMEM:
		case 0:
			fusor_add(again, 1);
			go_on = ++waits <= WAITS_MOST && fusor_wait(ms);
			ms = min(ms * 2, WAIT_MOST_MS);
			break;
		case -FUSOR_ENOENT:
		case -FUSOR_EEXIST:
		case -FUSOR_EINVAL:
		case -FUSOR_ERANGE:
			fusor_refused(fusor_list[done], result);
			done++;
			break;
		case -FUSOR_EBUSY: /* switched off by the operator */
			go_on = false;
			break;
		default:
			pr_warn_once("Fusor answered %lld to a list of %u hints\n", result, n);
			go_on = false;
		}
	}
	for (i = done; i < fusor_listed; i++)
		fusor_forget_entry(fusor_list[i]);
	fusor_add(dropped, fusor_listed - done);
	fusor_listed = 0;
	return go_on;
}
