// SPDX-License-Identifier: GPL-2.0-only
/*
 * Free-page reports: the kernel isolates large free blocks (of 2 MiB or more, unless
 * page_reporting.page_reporting_order says otherwise) and hands them over here; when the call
 * returns, Fusor has their frames and the blocks are the kernel's again, zero when touched.
 */
#include "balloon.h"

#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page_reporting.h>
#include <linux/scatterlist.h>

static bool report_free = true;
module_param(report_free, bool, 0444);
MODULE_PARM_DESC(report_free, "tell Fusor which memory is free (Y)");

/* The core makes one report at a time. */
static u64 *fusor_free_list_page;
static unsigned int fusor_free_listed;
static bool fusor_reporting;

/*
 * An entry that Fusor cannot use is left out: it keeps its frame. Returns false when the rest is to
 * be reported another time.
 */
static bool fusor_free_flush(void)
{
	unsigned int done = 0;
	s64 why = 0;

	while (done < fusor_free_listed) {
		unsigned int n = fusor_call_list(FUSOR_FREE_PAGES, fusor_free_list_page + done,
						 fusor_free_listed - done, &why), i;

		for (i = done; i < done + n; i++)
			fusor_balloon_add(reported,
					  1UL << (fusor_free_list_page[i] >>
						  FUSOR_ENTRY_ORDER_SHIFT & 0xf));
		done += n;
		if (done == fusor_free_listed)
			break;
		if (why != -FUSOR_ENOENT && why != -FUSOR_ERANGE && why != -FUSOR_EINVAL)
			break;
		done++;
	}
	done = fusor_free_listed - done;
	fusor_free_listed = 0;
	return !done;
}

static bool fusor_free_add(unsigned long pfn, unsigned int order)
{
	fusor_free_list_page[fusor_free_listed++] = FUSOR_ENTRY(pfn, 0, order);
	return fusor_free_listed < FUSOR_LIST_MAX || fusor_free_flush();
}

static int fusor_report(struct page_reporting_dev_info *info, struct scatterlist *sg,
			unsigned int n)
{
	struct scatterlist *entry;
	unsigned int i;

	for_each_sg(sg, entry, n, i) {
		unsigned long pfn = page_to_pfn(sg_page(entry));
		unsigned long end = pfn + (entry->length >> PAGE_SHIFT);

		while (pfn < end) {
			bool whole = IS_ALIGNED(pfn, FUSOR_RANGE_PAGES) &&
				     end - pfn >= FUSOR_RANGE_PAGES;

			if (!fusor_free_add(pfn, whole ? FUSOR_RANGE_ORDER : 0))
				return -EAGAIN;
			pfn += whole ? FUSOR_RANGE_PAGES : 1;
		}
	}
	return fusor_free_flush() ? 0 : -EAGAIN;
}

static struct page_reporting_dev_info fusor_report_info = {
	.report = fusor_report,
};

/**
 * fusor_reporting_start - begin to report, if Fusor and this kernel can
 *
 * Not where the kernel checks a pattern in free pages: reported ones come back zero.
 *
 * Return: 0, or why there will be no reports, which is no reason not to go on.
 */
int fusor_reporting_start(void)
{
	int err;

	if (!(fusor_features & FUSOR_FEATURE_FREE) || !report_free || page_poisoning_enabled_static())
		return -EOPNOTSUPP;
	fusor_free_list_page = (u64 *)get_zeroed_page(GFP_KERNEL);
	if (!fusor_free_list_page)
		return -ENOMEM;
	err = page_reporting_register(&fusor_report_info);
	if (err) {
		free_page((unsigned long)fusor_free_list_page);
		return err;
	}
	fusor_reporting = true;
	return 0;
}

void fusor_reporting_stop(void)
{
	if (!fusor_reporting)
		return;
	page_reporting_unregister(&fusor_report_info);
	free_page((unsigned long)fusor_free_list_page);
	fusor_reporting = false;
}
