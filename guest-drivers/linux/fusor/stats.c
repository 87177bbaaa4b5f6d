// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/kernel/fusor/: what the scanner did (scanner/), what Fusor says of this guest (fusor/), and
 * the file `scan`: a write begins a pass now. Also the report of memory in use to Fusor.
 */
#include "fusor.h"

#include <linux/jiffies.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/vmstat.h>
#include <asm/io.h>

#include "attribute.h"
#include "hypercall.h"

struct fusor_counters fusor_count;

struct kobject *fusor_kobject;

/* Hypercall buffers: in the direct map, and none may cross into memory that is not ours. */
static struct fusor_report *fusor_report_buffer;
static struct fusor_statistics *fusor_statistics_buffer;
static DEFINE_MUTEX(fusor_statistics_lock); /* the buffer */

/**
 * fusor_stats_read - ask Fusor for its figures of this guest
 * @out: gets them
 *
 * Return: 0, or -EIO when it does not answer; -EOPNOTSUPP when it has none.
 */
int fusor_stats_read(struct fusor_statistics *out)
{
	s64 result;

	if (!(fusor_features & FUSOR_FEATURE_STATS))
		return -EOPNOTSUPP;
	mutex_lock(&fusor_statistics_lock);
	/* An older Fusor may fill in less. */
	memset(fusor_statistics_buffer, 0, sizeof(*fusor_statistics_buffer));
	result = fusor_call(FUSOR_STATISTICS, virt_to_phys(fusor_statistics_buffer),
			    sizeof(*fusor_statistics_buffer));
	*out = *fusor_statistics_buffer;
	mutex_unlock(&fusor_statistics_lock);
	return result < 0 ? -EIO : 0;
}

/* Tells Fusor what `free` would say here. Only the scanner's thread calls this. */
void fusor_report_memory(void)
{
	struct fusor_report *r = fusor_report_buffer;
	struct sysinfo info;

	si_meminfo(&info);
	r->total = info.totalram;
	r->free = info.freeram;
	r->available = max(si_mem_available(), 0L);
	r->cache = global_node_page_state(NR_FILE_PAGES);
	if (fusor_call(FUSOR_REPORT, virt_to_phys(r), sizeof(*r)) == 0)
		fusor_add(reports, 1);
}

static ssize_t own_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return fusor_show_number(&fusor_count, attr, buf);
}

static ssize_t host_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	struct fusor_statistics s;
	int err = fusor_stats_read(&s);

	return err ? err : fusor_show_number(&s, attr, buf);
}

#define OWN(name_, member_)  FUSOR_NUMBER(own, name_, fusor_counters, member_)
#define HOST(name_, member_) FUSOR_NUMBER(host, name_, fusor_statistics, member_)

OWN(sent_other, sent[FUSOR_CLASS_OTHER]);
OWN(sent_kernel, sent[FUSOR_CLASS_KERNEL]);
OWN(sent_cache, sent[FUSOR_CLASS_CACHE]);
OWN(sent_process, sent[FUSOR_CLASS_PROCESS]);
OWN(sent_module, sent[FUSOR_CLASS_MODULE]);
OWN(sent_zero, sent[FUSOR_CLASS_ZERO]);
OWN(sent_whole, sent_whole);
OWN(refused, refused);
OWN(again, again);
OWN(dropped, dropped);
OWN(calls, calls);
OWN(passes, passes);
OWN(pages_read, summed);
OWN(page_tables, tables);
OWN(reports, reports);

static ssize_t phase_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", fusor_scanner_phase());
}
static struct kobj_attribute own_phase = __ATTR_RO(phase);

static struct attribute *fusor_own_attributes[] = {
	&own_phase.attr,
	&own_sent_other.attr.attr,
	&own_sent_kernel.attr.attr,
	&own_sent_cache.attr.attr,
	&own_sent_process.attr.attr,
	&own_sent_module.attr.attr,
	&own_sent_zero.attr.attr,
	&own_sent_whole.attr.attr,
	&own_refused.attr.attr,
	&own_again.attr.attr,
	&own_dropped.attr.attr,
	&own_calls.attr.attr,
	&own_passes.attr.attr,
	&own_pages_read.attr.attr,
	&own_page_tables.attr.attr,
	&own_reports.attr.attr,
	NULL,
};

static const struct attribute_group fusor_own_group = {
	.name = "scanner",
	.attrs = fusor_own_attributes,
};

HOST(hints_received, hints_received);
HOST(hints_fused, hints_fused);
HOST(hints_unmatched, hints_unmatched);
HOST(hints_rejected, hints_rejected);
HOST(splits, splits);
HOST(cancelled, cancelled);
HOST(shared, shared);
HOST(fused_other, fused_by_class[FUSOR_CLASS_OTHER]);
HOST(fused_kernel, fused_by_class[FUSOR_CLASS_KERNEL]);
HOST(fused_cache, fused_by_class[FUSOR_CLASS_CACHE]);
HOST(fused_process, fused_by_class[FUSOR_CLASS_PROCESS]);
HOST(fused_module, fused_by_class[FUSOR_CLASS_MODULE]);
HOST(fused_zero, fused_by_class[FUSOR_CLASS_ZERO]);
HOST(balloon, balloon);
HOST(balloon_target, balloon_target);

static struct attribute *fusor_host_attributes[] = {
	&host_hints_received.attr.attr,
	&host_hints_fused.attr.attr,
	&host_hints_unmatched.attr.attr,
	&host_hints_rejected.attr.attr,
	&host_splits.attr.attr,
	&host_cancelled.attr.attr,
	&host_shared.attr.attr,
	&host_fused_other.attr.attr,
	&host_fused_kernel.attr.attr,
	&host_fused_cache.attr.attr,
	&host_fused_process.attr.attr,
	&host_fused_module.attr.attr,
	&host_fused_zero.attr.attr,
	&host_balloon.attr.attr,
	&host_balloon_target.attr.attr,
	NULL,
};

static umode_t fusor_host_visible(struct kobject *kobj, struct attribute *attr, int n)
{
	return fusor_features & FUSOR_FEATURE_STATS ? attr->mode : 0;
}

static const struct attribute_group fusor_host_group = {
	.name = "fusor",
	.attrs = fusor_host_attributes,
	.is_visible = fusor_host_visible,
};

static ssize_t scan_store(struct kobject *kobj, struct kobj_attribute *attr, const char *buf,
			  size_t size)
{
	fusor_scanner_kick();
	return size;
}
static struct kobj_attribute fusor_scan = __ATTR_WO(scan);

static struct attribute *fusor_top_attributes[] = {
	&fusor_scan.attr,
	NULL,
};

static const struct attribute_group fusor_top_group = {
	.attrs = fusor_top_attributes,
};

static const struct attribute_group *fusor_groups[] = {
	&fusor_top_group,
	&fusor_own_group,
	&fusor_host_group,
	NULL,
};

int fusor_stats_init(void)
{
	int err = -ENOMEM;

	fusor_report_buffer = kzalloc(sizeof(*fusor_report_buffer), GFP_KERNEL);
	fusor_statistics_buffer = kzalloc(sizeof(*fusor_statistics_buffer), GFP_KERNEL);
	fusor_kobject = kobject_create_and_add("fusor", kernel_kobj);
	if (fusor_report_buffer && fusor_statistics_buffer && fusor_kobject)
		err = sysfs_create_groups(fusor_kobject, fusor_groups);
	if (err)
		fusor_stats_exit();
	return err;
}

void fusor_stats_exit(void)
{
	kobject_put(fusor_kobject); /* waits for readers */
	kfree(fusor_statistics_buffer);
	kfree(fusor_report_buffer);
}
