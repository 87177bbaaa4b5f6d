// SPDX-License-Identifier: GPL-2.0-only
/*
 * The thread that makes passes over memory, and how much of the guest's time it may take.
 *
 * After `delay` the first two passes run without pause (at the lowest priority): the first hints
 * what is known to be steady and learns the rest, the second, `interval` later, hints what has not
 * changed. From then on passes are paced to `cpu_percent`, and while they find little the interval
 * doubles up to `interval_max`. When nothing changes, nothing is sent.
 *
 * So that new memory does not wait for `interval_max`, a glance at two of the kernel's counters every
 * few seconds tells whether much was added since the last pass. Then two passes are made at once, one
 * to learn and one to compare. In a guest where that brings nothing, because its memory comes and
 * goes, glances become as rare as passes.
 */
#include "balloon.h"

#include <linux/err.h>
#include <linux/freezer.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/memory.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/vmstat.h>
#include <linux/wait.h>

static unsigned int delay = 10;
module_param(delay, uint, 0444);
MODULE_PARM_DESC(delay, "seconds after loading until the first hint, for the boot to settle (10)");

static unsigned int interval = 1000;
module_param(interval, uint, 0644);
MODULE_PARM_DESC(interval,
		 "ms between passes while they find something; a page that looks the same in two passes is hinted (1000)");

static unsigned int interval_max = 60000;
module_param(interval_max, uint, 0644);
MODULE_PARM_DESC(interval_max, "ms between passes that find nothing (60000)");

static unsigned int cpu_percent = 5;
module_param(cpu_percent, uint, 0644);
MODULE_PARM_DESC(cpu_percent,
		 "of one CPU that a pass may take, 1..100; the first two passes take what is idle (5)");

static unsigned int report = 10;
module_param(report, uint, 0644);
MODULE_PARM_DESC(report, "seconds between reports of memory in use to Fusor, 0: none (10)");

/* A pass that sends so many hints is followed soon by another. */
#define FUSOR_WORTHWHILE 256U
/* Passes at full speed: one to learn, one to compare. */
#define FUSOR_FAST_PASSES 2
/* Shortest time between passes or reports, whatever the parameters say. */
#define FUSOR_WAIT_LEAST_MS 100U
/* Between glances, and how many more pages are worth two passes. */
#define FUSOR_GLANCE_MS	    5000U
#define FUSOR_GLANCE_PAGES  1024UL

enum fusor_early {
	EARLY_NOT,
	EARLY_LEARNS,
	EARLY_COMPARES,
};

/* What is next; the thread's. Times are in jiffies. */
struct fusor_plan {
	unsigned long next_pass;
	unsigned long next_report;
	unsigned long next_glance;
	unsigned int pause_ms;	/* between passes */
	unsigned int glance_ms; /* between glances that made passes early, FUSOR_GLANCE_MS or more */
	enum fusor_early early; /* the next pass was not due yet */
	u64 sent_early;		/* by the first of two early passes */
	unsigned long in_use;	/* pages, at least, since the last pass */
};

static struct task_struct *fusor_task;
static DECLARE_WAIT_QUEUE_HEAD(fusor_wait_queue);
static bool fusor_kicked;
static const char *fusor_phase = "settling";

/* Held while struct pages are looked at; memory that goes offline waits for it. */
static DEFINE_MUTEX(fusor_walk_lock);
static ktime_t fusor_slice_began;

const char *fusor_scanner_phase(void)
{
	return READ_ONCE(fusor_phase);
}

/**
 * fusor_wait - sleep, at most until the driver is unloaded
 * @ms: for so long
 *
 * Return: false when it is being unloaded.
 */
bool fusor_wait(unsigned int ms)
{
	wait_event_freezable_timeout(fusor_wait_queue, kthread_should_stop(),
				     msecs_to_jiffies(ms));
	return !kthread_should_stop();
}

/* Gives the CPU back for as long as the slice just done asks for. */
static bool fusor_pace(void)
{
	unsigned int percent = clamp(READ_ONCE(cpu_percent), 1U, 100U);
	s64 busy_ms;

	if (fusor_count.passes < FUSOR_FAST_PASSES || percent == 100) {
		cond_resched();
		try_to_freeze();
		return !kthread_should_stop();
	}
	/* Slices are short: sleep when enough has come together for a timer tick. */
	busy_ms = ktime_ms_delta(ktime_get(), fusor_slice_began);
	if (busy_ms < 2) {
		cond_resched();
		return !kthread_should_stop();
	}
	if (!fusor_wait(min_t(s64, busy_ms * (100 - percent) / percent, 10000)))
		return false;
	fusor_slice_began = ktime_get();
	return true;
}

/**
 * fusor_breathe - between two slices of a walk
 *
 * Drops the walk's lock, sends what has come together and lets others run.
 *
 * Return: false when the pass is to end.
 */
bool fusor_breathe(void)
{
	bool go_on = true;

	mutex_unlock(&fusor_walk_lock);
	if (fusor_pending() >= FUSOR_SLICE)
		go_on = fusor_flush();
	go_on = go_on && fusor_pace();
	mutex_lock(&fusor_walk_lock);
	return go_on;
}

static u64 fusor_sent_all(void)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < FUSOR_CLASSES; i++)
		sum += fusor_count.sent[i];
	return sum;
}

/* One pass, the most useful memory first. Returns false when it ended early. */
static bool fusor_make_pass(void)
{
	bool done;

	if (fusor_state_begin())
		return false;
	fusor_slice_began = ktime_get();
	mutex_lock(&fusor_walk_lock);
	done = fusor_walk_tables() && fusor_walk_kernel() && fusor_walk_files() &&
	       fusor_walk_modules() && fusor_walk_rest();
	mutex_unlock(&fusor_walk_lock);
	/* Also after an early end: what is left in the list is sent or forgotten. */
	done = fusor_flush() && done;
	if (done)
		fusor_add(passes, 1);
	return done;
}

/*
 * When the operator had all pages split, or the other guests have gone, what is shared falls without
 * a change in this guest. Then all hints are made again.
 */
static void fusor_check_shared(void)
{
	static u64 peak;
	struct fusor_statistics s;

	if (!(fusor_features & FUSOR_FEATURE_STATS) || fusor_stats_read(&s))
		return;
	if (s.shared < peak / 2) {
		pr_debug("%llu pages shared of once %llu: hinting again\n", s.shared, peak);
		fusor_forget_all();
		peak = 0;
	}
	peak = max_t(u64, peak, s.shared);
}

static unsigned int fusor_next_interval(unsigned int now_ms, bool done, u64 sent)
{
	unsigned int least = max(READ_ONCE(interval), FUSOR_WAIT_LEAST_MS);
	unsigned int most = max(READ_ONCE(interval_max), least);

	if (!done) {
		WRITE_ONCE(fusor_phase, "waiting");
		return min(10 * least, most);
	}
	if (fusor_count.passes < FUSOR_FAST_PASSES) {
		WRITE_ONCE(fusor_phase, "learning");
		return least;
	}
	if (sent >= FUSOR_WORTHWHILE) {
		WRITE_ONCE(fusor_phase, "hinting");
		return least;
	}
	WRITE_ONCE(fusor_phase, "idle");
	return clamp(now_ms * 2, least, most);
}

/* Pages that come and go with what the guest does; neither the balloon's nor free ones. */
static unsigned long fusor_in_use(void)
{
	return global_node_page_state(NR_FILE_PAGES) + global_node_page_state(NR_ANON_MAPPED);
}

/* While passes are rarer than glances. */
static bool fusor_glances(const struct fusor_plan *plan)
{
	return plan->early == EARLY_NOT && plan->pause_ms > FUSOR_GLANCE_MS;
}

static void fusor_glance(struct fusor_plan *plan, unsigned long now)
{
	unsigned long in_use = fusor_in_use();

	plan->next_glance = now + msecs_to_jiffies(FUSOR_GLANCE_MS);
	plan->in_use = min(plan->in_use, in_use);
	if (in_use - plan->in_use < FUSOR_GLANCE_PAGES)
		return;
	plan->early = EARLY_LEARNS;
	plan->sent_early = 0;
	plan->next_pass = now;
}

/* An early pass has been made. Returns whether another one follows. */
static bool fusor_early_done(struct fusor_plan *plan, bool done, u64 sent)
{
	plan->sent_early += sent;
	if (plan->early == EARLY_LEARNS && done) {
		plan->early = EARLY_COMPARES;
		return true;
	}
	plan->early = EARLY_NOT;
	if (plan->sent_early >= FUSOR_WORTHWHILE)
		plan->glance_ms = FUSOR_GLANCE_MS;
	else
		plan->glance_ms = clamp(2 * plan->glance_ms, FUSOR_GLANCE_MS,
					max(READ_ONCE(interval_max), FUSOR_GLANCE_MS));
	plan->next_glance = jiffies + msecs_to_jiffies(plan->glance_ms);
	return false;
}

static void fusor_pass_due(struct fusor_plan *plan)
{
	u64 before = fusor_sent_all(), sent;
	unsigned int ms;
	bool done;

	plan->in_use = fusor_in_use();
	fusor_check_shared();
	done = fusor_make_pass();
	sent = fusor_sent_all() - before;
	if (plan->early != EARLY_NOT && fusor_early_done(plan, done, sent)) {
		WRITE_ONCE(fusor_phase, "learning");
		ms = max(READ_ONCE(interval), FUSOR_WAIT_LEAST_MS);
	} else {
		plan->pause_ms = fusor_next_interval(plan->pause_ms, done, sent);
		ms = plan->pause_ms;
	}
	plan->next_pass = jiffies + msecs_to_jiffies(ms);
}

static unsigned long fusor_until(unsigned long then, unsigned long now)
{
	return time_after(then, now) ? then - now : 1;
}

static int fusor_thread(void *unused)
{
	struct fusor_plan plan = {
		.next_pass = jiffies + msecs_to_jiffies(min(delay, 86400U) * 1000),
		.next_report = jiffies,
		.next_glance = jiffies,
		.pause_ms = FUSOR_WAIT_LEAST_MS,
		.glance_ms = FUSOR_GLANCE_MS,
	};
	bool hints = fusor_features & FUSOR_FEATURE_HINTS;
	bool stats = fusor_features & FUSOR_FEATURE_STATS;

	set_user_nice(current, MAX_NICE);
	set_freezable();
	while (!kthread_should_stop()) {
		unsigned int seconds = stats ? min(READ_ONCE(report), 86400U) : 0;
		unsigned long wait = MAX_SCHEDULE_TIMEOUT, now = jiffies;

		if (seconds && time_after_eq(now, plan.next_report)) {
			fusor_report_memory();
			plan.next_report = now + seconds * HZ;
		}
		if (READ_ONCE(fusor_kicked)) {
			WRITE_ONCE(fusor_kicked, false);
			plan.next_pass = now;
		}
		/* Also before a pass that is due: what it sees for the first time is compared soon. */
		if (hints && fusor_glances(&plan) &&
		    (time_after_eq(now, plan.next_glance) || time_after_eq(now, plan.next_pass)))
			fusor_glance(&plan, now);
		if (hints && time_after_eq(now, plan.next_pass))
			fusor_pass_due(&plan);
		now = jiffies;
		if (hints)
			wait = fusor_until(plan.next_pass, now);
		if (hints && fusor_glances(&plan))
			wait = min(wait, fusor_until(plan.next_glance, now));
		if (seconds)
			wait = min(wait, fusor_until(plan.next_report, now));
		wait_event_freezable_timeout(fusor_wait_queue,
					     kthread_should_stop() || READ_ONCE(fusor_kicked), wait);
	}
	return 0;
}

/* A pass is to be made now. */
void fusor_scanner_kick(void)
{
	WRITE_ONCE(fusor_kicked, true);
	wake_up(&fusor_wait_queue);
}

/*
 * The last word before struct pages of removed memory may go: they are offline by now, so whoever
 * takes the lock after us does not see them any more.
 */
static int fusor_memory_event(struct notifier_block *nb, unsigned long event, void *arg)
{
	if (event == MEM_OFFLINE) {
		mutex_lock(&fusor_walk_lock);
		mutex_unlock(&fusor_walk_lock);
		fusor_strays_memory_gone();
	}
	return NOTIFY_OK;
}

static struct notifier_block fusor_memory_block = {
	.notifier_call = fusor_memory_event,
};

int fusor_scanner_start(void)
{
	int err = register_memory_notifier(&fusor_memory_block);

	if (err)
		return err;
	fusor_task = kthread_run(fusor_thread, NULL, "fusor");
	if (IS_ERR(fusor_task)) {
		unregister_memory_notifier(&fusor_memory_block);
		return PTR_ERR(fusor_task);
	}
	return 0;
}

void fusor_scanner_stop(void)
{
	kthread_stop(fusor_task);
	unregister_memory_notifier(&fusor_memory_block);
}
