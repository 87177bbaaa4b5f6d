// SPDX-License-Identifier: BSD-2-Clause
// fusor.conf as a whole: sections, lines, and what to do with their errors. A section takes effect
// at its end, when it is known to be free of errors.
#include "shell/config.h"

#include <stdarg.h>

#include "boot/config_lex.h"
#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/heap.h"
#include "kernel/string.h"
#include "vm/vm.h"

#define COMPLAINT_MAX  (CONFIG_MESSAGE_MAX + 32u)
#define COMPLAINTS_MAX 64u // a file that is not text must not flood the log

// Too large for a stack; lives on the heap while the file is parsed.
struct parser {
    struct config_lexer lexer;
    struct config_item item;
    const struct config_sink *sink;
    struct host_config *host;

    // The section at hand.
    enum config_section section;
    unsigned section_line;
    bool faulty;
    unsigned key_line[CONFIG_KEYS_MAX]; // line of each key, 0: not given
    struct vm_config vm;
    struct host_config new_host;

    unsigned host_line; // of the first [host], 0: none yet
    struct {
        char name[VM_NAME_MAX + 1];
        unsigned line;
    } vms[VM_MAX];
    unsigned vm_count;

    unsigned complaints;
    char message[CONFIG_MESSAGE_MAX];
    char complaint[COMPLAINT_MAX];
};

__attribute__((format(printf, 4, 5))) static void complain(struct parser *p, bool is_error,
                                                           unsigned line, const char *format, ...)
{
    va_list args;
    if (is_error)
        p->faulty = true;
    p->complaints++;
    if (p->complaints > COMPLAINTS_MAX)
        return;
    if (p->complaints == COMPLAINTS_MAX) {
        format_text(p->complaint, sizeof(p->complaint),
                    "fusor.conf:%u: more errors from here on are not shown", line);
        p->sink->complain(p->sink->context, true, p->complaint);
        return;
    }
    int used = format_text(p->complaint, sizeof(p->complaint), "fusor.conf:%u: %s", line,
                           is_error ? "" : "warning: ");
    va_start(args, format);
    format_text_v(p->complaint + used, sizeof(p->complaint) - (size_t)used, format, args);
    va_end(args);
    p->sink->complain(p->sink->context, is_error, p->complaint);
}

static void finish_vm(struct parser *p)
{
    const char *key = "memory";
    // Half of memory unless the section says otherwise.
    if (p->key_line[config_vm_key_index("memory-min")] == 0)
        p->vm.memory_min = ALIGN_DOWN(p->vm.memory / 2, PAGE_SIZE);
    if (config_check_vm(&p->vm, &key, p->message) < 0) {
        unsigned line = p->key_line[config_vm_key_index(key)];
        complain(p, true, line != 0 ? line : p->section_line, "%s", p->message);
        return;
    }
    p->sink->vm(p->sink->context, &p->vm, p->section_line);
}

static void finish_section(struct parser *p)
{
    if (!p->faulty && p->section == CONFIG_VM)
        finish_vm(p);
    else if (!p->faulty && p->section == CONFIG_HOST)
        *p->host = p->new_host;
    p->section = CONFIG_NONE;
    p->faulty = false;
}

static void begin_vm(struct parser *p)
{
    const char *name = p->item.name;
    char shown[CONFIG_NAME_SIZE];
    config_clean(shown, sizeof(shown), name);
    config_vm_defaults(&p->vm);
    if (!config_valid_name(name)) {
        complain(p, true, p->item.line,
                 "VM name: expected a-z, 0-9, _ and -, at most 31 characters, not host or all, got "
                 "\"%s\"",
                 shown);
        return;
    }
    memcpy(p->vm.name, name, strlen(name) + 1);
    for (unsigned i = 0; i < p->vm_count; i++)
        if (strcmp(p->vms[i].name, name) == 0) {
            complain(p, true, p->item.line,
                     "duplicate VM: expected a name not used before, %s stands in line %u", name,
                     p->vms[i].line);
            return;
        }
    if (p->vm_count >= VM_MAX) {
        complain(p, true, p->item.line, "VM %s: expected at most %u VMs", name, VM_MAX);
        return;
    }
    memcpy(p->vms[p->vm_count].name, name, strlen(name) + 1);
    p->vms[p->vm_count].line = p->item.line;
    p->vm_count++;
}

static void begin_section(struct parser *p)
{
    finish_section(p);
    p->section = p->item.section;
    p->section_line = p->item.line;
    memset(p->key_line, 0, sizeof(p->key_line));
    if (p->section == CONFIG_VM) {
        begin_vm(p);
    } else if (p->section == CONFIG_HOST) {
        config_host_defaults(&p->new_host);
        if (p->host_line != 0)
            complain(p, true, p->item.line,
                     "duplicate section: expected one [host], the first "
                     "stands in line %u",
                     p->host_line);
        else
            p->host_line = p->item.line;
    } else if (p->section == CONFIG_GROUP && !config_valid_name(p->item.name)) {
        complain(p, true, p->item.line,
                 "group name: expected a-z, 0-9, _ and -, at most 31 characters, not host or all");
    }
}

// A key that may stand only once must not stand twice: one of the two values is a mistake.
static bool repeated(struct parser *p, int index, bool may_repeat)
{
    if (index < 0)
        return false;
    unsigned first = p->key_line[index];
    p->key_line[index] = p->item.line;
    if (first == 0 || may_repeat)
        return false;
    complain(p, true, p->item.line, "%s: expected once in a section, it stands in line %u too",
             p->item.key, first);
    return true;
}

static void take_pair(struct parser *p)
{
    const struct config_item *item = &p->item;
    int result;
    switch (item->section) {
    case CONFIG_VM:
        if (repeated(p, config_vm_key_index(item->key), config_vm_key_repeats(item->key)))
            return;
        result = config_set_vm_key(&p->vm, item->key, item->value, p->message);
        break;
    case CONFIG_HOST:
        if (repeated(p, config_host_key_index(item->key), config_host_key_repeats(item->key)))
            return;
        result = config_set_host_key(&p->new_host, item->key, item->value, p->message);
        break;
    case CONFIG_GROUP:
        result = config_set_group_key(item->key, item->value, p->message);
        break;
    case CONFIG_NONE:
        complain(p, true, item->line,
                 "expected a section first: [host], [vm NAME] or [group NAME]");
        return;
    default: // the section's header was malformed and has been complained about
        return;
    }
    if (result != 0)
        complain(p, result < 0, item->line, "%s", p->message);
}

void config_parse(const char *text, size_t size, struct host_config *host,
                  const struct config_sink *sink)
{
    config_host_defaults(host);
    struct parser *p = heap_alloc(sizeof(*p));
    if (p == NULL) {
        sink->complain(sink->context, true, "fusor.conf: no memory to read it");
        return;
    }
    p->sink = sink;
    p->host = host;
    p->section = CONFIG_NONE;
    config_lex_init(&p->lexer, text, size);
    for (;;) {
        enum config_token token = config_lex_next(&p->lexer, &p->item);
        if (token == CONFIG_END)
            break;
        if (token == CONFIG_SECTION) {
            begin_section(p);
        } else if (token == CONFIG_PAIR) {
            take_pair(p);
        } else {
            // A malformed header ends the section before it; any other malformed line spoils the
            // section it stands in.
            if (p->item.section == CONFIG_LOST && p->section != CONFIG_LOST) {
                finish_section(p);
                p->section = CONFIG_LOST;
            }
            complain(p, true, p->item.line, "%s", p->item.expected);
        }
    }
    finish_section(p);
    heap_free(p);
}
