/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Runs in the Linux that hosts QEMU: what a change of the balloon's target costs, in ticks of the
 * TSC.
 *
 *   measure balloon QMP_SOCKET PID MIB LABEL    gives the guest MIB of memory by QMP and waits
 * until it has that much measure watch PID SECONDS LABEL             what QEMU runs on its own in
 * that time
 *
 * Prints one line "row LABEL key=value ...". CPU times are the kernel's (sum_exec_runtime of each
 * thread), turned to ticks by the TSC's rate over the same time; they hold the guest's instructions
 * and everything KVM and QEMU do for it.
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MIB                 (UINT64_C(1) << 20)
#define POLL_NS             5000000
#define CALIBRATION_QUERIES 20
/* QEMU counts as idle if it ran less than this part of the time between two polls. */
#define IDLE_PART 4
/* Emulated time; a target that is not reached by then never will be. */
#define PATIENCE_NS UINT64_C(60000000000)

struct sample {
    uint64_t tsc, ns;
    uint64_t vcpu_ns, rest_ns; /* CPU time of the vCPU's thread, of QEMU's other threads */
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "measure: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_RAW, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void pause_ns(long ns)
{
    nanosleep(&(struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000}, NULL);
}

static void read_file(char *text, size_t size, const char *format, ...)
{
    char path[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path, sizeof path, format, arguments);
    va_end(arguments);
    FILE *f = fopen(path, "r");
    if (!f)
        die("cannot read %s", path);
    size_t n = fread(text, 1, size - 1, f);
    text[n] = 0;
    fclose(f);
}

/* Opened once: a look at a file that is open costs a tenth of opening it, and looks are taken while
 * QEMU works. */
static struct {
    int schedstat;
    bool vcpu;
} threads[16];
static unsigned thread_count;

static void open_threads(int pid)
{
    char path[64], text[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        die("QEMU has ended");
    for (struct dirent *e; (e = readdir(tasks));) {
        if (e->d_name[0] == '.')
            continue;
        if (thread_count == sizeof threads / sizeof *threads)
            die("QEMU has too many threads");
        /* The names that -name debug-threads=on gives. */
        read_file(text, sizeof text, "%s/%s/comm", path, e->d_name);
        threads[thread_count].vcpu = strncmp(text, "CPU ", 4) == 0;
        char file[512];
        snprintf(file, sizeof file, "%s/%s/schedstat", path, e->d_name);
        threads[thread_count].schedstat = open(file, O_RDONLY);
        if (threads[thread_count++].schedstat < 0)
            die("cannot open %s", file);
    }
    closedir(tasks);
}

static struct sample take_sample(void)
{
    struct sample s = {.vcpu_ns = 0};
    for (unsigned i = 0; i < thread_count; i++) {
        char text[128];
        ssize_t n = pread(threads[i].schedstat, text, sizeof text - 1, 0);
        if (n <= 0)
            die("a thread of QEMU has ended");
        text[n] = 0;
        *(threads[i].vcpu ? &s.vcpu_ns : &s.rest_ns) += strtoull(text, NULL, 10);
    }
    s.ns = now_ns();
    s.tsc = rdtsc();
    return s;
}

static uint64_t rss_kb(int pid)
{
    char text[8192];
    read_file(text, sizeof text, "/proc/%d/status", pid);
    const char *line = strstr(text, "VmRSS:");
    if (!line)
        die("no VmRSS of %d", pid);
    return strtoull(line + 6, NULL, 10);
}

static uint64_t free_kb(void)
{
    char text[8192];
    read_file(text, sizeof text, "/proc/meminfo");
    const char *line = strstr(text, "MemFree:");
    if (!line)
        die("no MemFree");
    return strtoull(line + 8, NULL, 10);
}

/* Exits of all of KVM's guests since it was loaded. */
static uint64_t exits(void)
{
    char text[64];
    read_file(text, sizeof text, "/sys/kernel/debug/kvm/exits");
    return strtoull(text, NULL, 10);
}

/* Sends a QMP command and returns its answer; events are skipped. The answer is valid until the
 * next call. */
static const char *qmp(int s, const char *command)
{
    static char line[4096];
    static size_t have;
    if (command && write(s, command, strlen(command)) != (ssize_t)strlen(command))
        die("QMP write");
    static char answer[4096];
    while (true) {
        char *end = memchr(line, '\n', have);
        if (end) {
            size_t n = (size_t)(end - line) + 1;
            memcpy(answer, line, n - 1);
            answer[n - 1] = 0;
            memmove(line, line + n, have - n);
            have -= n;
            if (strstr(answer, "\"event\""))
                continue;
            if (strstr(answer, "\"error\""))
                die("QMP: %s", answer);
            return answer;
        }
        if (have == sizeof line)
            die("QMP line too long");
        ssize_t n = read(s, line + have, sizeof line - have);
        if (n <= 0)
            die("QMP read");
        have += (size_t)n;
    }
}

static int qmp_connect(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&a, sizeof a) < 0)
        die("cannot connect to %s", path);
    qmp(s, NULL); /* the greeting */
    qmp(s, "{\"execute\":\"qmp_capabilities\"}\n");
    return s;
}

static uint64_t query(int s)
{
    const char *at = strstr(qmp(s, "{\"execute\":\"query-balloon\"}\n"), "\"actual\":");
    if (!at)
        die("query-balloon has no actual");
    return strtoull(at + 9, NULL, 10);
}

static uint64_t all(const struct sample *s)
{
    return s->vcpu_ns + s->rest_ns;
}

static void print_row(const char *label, const struct sample *from, const struct sample *to,
                      uint64_t reached_tsc)
{
    double ticks_per_ns = (double)(to->tsc - from->tsc) / (double)(to->ns - from->ns);
    printf("row %s elapsed=%" PRIu64 " vcpu=%.0f rest=%.0f", label, reached_tsc - from->tsc,
           (double)(to->vcpu_ns - from->vcpu_ns) * ticks_per_ns,
           (double)(to->rest_ns - from->rest_ns) * ticks_per_ns);
}

static void balloon(const char *path, int pid, uint64_t mib, const char *label)
{
    int s = qmp_connect(path);
    uint64_t start_bytes = query(s);
    pause_ns(POLL_NS);
    struct sample a = take_sample();
    for (int i = 0; i < CALIBRATION_QUERIES; i++)
        query(s);
    struct sample b = take_sample();
    double query_ns = (double)(b.rest_ns - a.rest_ns) / CALIBRATION_QUERIES;

    char command[128];
    snprintf(command, sizeof command,
             "{\"execute\":\"balloon\",\"arguments\":{\"value\":%" PRIu64 "}}\n", mib * MIB);
    uint64_t rss = rss_kb(pid), memory = free_kb(), exited = exits();
    struct sample from = take_sample(), last = from, to;
    qmp(s, command);
    unsigned queries = 0;
    uint64_t reached;
    while (true) {
        pause_ns(POLL_NS);
        to = take_sample();
        if (all(&to) - all(&last) < (to.ns - last.ns) / IDLE_PART) {
            /* It was busy up to some moment between the last two looks. */
            reached = to.tsc;
            queries++;
            if (query(s) == mib * MIB)
                break;
        }
        last = to;
        if (to.ns - from.ns > PATIENCE_NS)
            die("%s: the guest has %" PRIu64 " bytes, not %" PRIu64 " MiB", label, query(s), mib);
    }
    /* The last query came after `to`. */
    double ticks_per_ns = (double)(to.tsc - from.tsc) / (double)(to.ns - from.ns);
    print_row(label, &from, &to, reached);
    int64_t moved = (int64_t)(start_bytes - mib * MIB);
    printf(" pages=%" PRId64 " exits=%" PRIu64 " queries=%u query=%.0f rss=%" PRIu64
           " rss_after=%" PRIu64 " free=%" PRIu64 " free_after=%" PRIu64 " mhz=%.3f\n",
           moved / 4096, exits() - exited, queries - 1, query_ns * ticks_per_ns, rss, rss_kb(pid),
           memory, free_kb(), ticks_per_ns * 1000);
}

static void watch(int pid, unsigned seconds, const char *label)
{
    uint64_t rss = rss_kb(pid), memory = free_kb(), exited = exits();
    struct sample from = take_sample();
    sleep(seconds);
    struct sample to = take_sample();
    print_row(label, &from, &to, to.tsc);
    printf(" exits=%" PRIu64 " rss=%" PRIu64 " rss_after=%" PRIu64 " free=%" PRIu64
           " free_after=%" PRIu64 "\n",
           exits() - exited, rss, rss_kb(pid), memory, free_kb());
}

int main(int argc, char **argv)
{
    bool changes = argc == 6 && strcmp(argv[1], "balloon") == 0;
    if (!changes && !(argc == 5 && strcmp(argv[1], "watch") == 0))
        die("wrong arguments");
    int pid = atoi(argv[changes ? 3 : 2]);
    open_threads(pid);
    if (changes)
        balloon(argv[2], pid, strtoull(argv[4], NULL, 10), argv[5]);
    else
        watch(pid, (unsigned)atoi(argv[3]), argv[4]);
    return 0;
}
