// SPDX-License-Identifier: BSD-2-Clause
// From a line to a command and its answer.
#include "shell/command.h"

#include <stdarg.h>

#include "kernel/error.h"
#include "kernel/format.h"
#include "kernel/sched.h"
#include "kernel/string.h"
#include "shell/arguments.h"
#include "shell/terminal.h"

// Longest line a command prints: "cmdline: " and a command line of 2047 characters.
#define PRINT_MAX   2304u
#define SHOWN_MAX   64u
#define SUBNAME_MAX 160u

// Only the console fiber runs commands; its stack is small.
static char print_buffer[PRINT_MAX];

static const struct command *const tables[] = {host_commands, vm_commands, fusion_commands,
                                               trace_commands};

static int help(struct command_context *c, int argc, char **argv);
static const struct command help_command = {
    "help", "help [COMMAND]", "lists the commands, or explains one", 0, 2, help};

__attribute__((format(printf, 2, 0))) static void print_line(const char *prefix, const char *format,
                                                             va_list args, const char *suffix)
{
    terminal_puts(prefix);
    int length = format_text_v(print_buffer, sizeof(print_buffer), format, args);
    terminal_write_text(print_buffer, MIN((size_t)length, sizeof(print_buffer) - 1));
    terminal_puts(suffix);
    fiber_give_way_if_due(); // formatting and queueing a line takes some 2,000 ticks
}

void command_print(struct command_context *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line("", format, args, "");
    va_end(args);
    c->answered = true;
}

int command_error(struct command_context *c, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line("error: ", format, args, "\n");
    va_end(args);
    c->answered = true;
    return code;
}

void command_warn(struct command_context *c, const char *format, ...)
{
    (void)c;
    va_list args;
    va_start(args, format);
    print_line("warning: ", format, args, "\n");
    va_end(args);
}

// Calls visit for every command in the order of `help`, until it returns false.
static void for_each_command(bool (*visit)(void *context, const struct command *command),
                             void *context)
{
    if (!visit(context, &help_command))
        return;
    for (size_t t = 0; t < ARRAY_SIZE(tables); t++)
        for (const struct command *command = tables[t]; command->name != NULL; command++)
            if (!visit(context, command))
                return;
}

struct lookup {
    int argc;
    char **argv;
    const struct command *found;
    int words;                  // of the name found
    char siblings[SUBNAME_MAX]; // second words that go with argv[0]
};

static bool look_at(void *context, const struct command *command)
{
    struct lookup *l = context;
    const char *second = strchr(command->name, ' ');
    if (second == NULL) {
        if (strcmp(command->name, l->argv[0]) != 0)
            return true;
        l->found = command;
        l->words = 1;
        return false;
    }
    size_t first_length = (size_t)(second - command->name);
    if (strlen(l->argv[0]) != first_length || memcmp(command->name, l->argv[0], first_length) != 0)
        return true;
    if (l->argc >= 2 && strcmp(second + 1, l->argv[1]) == 0) {
        l->found = command;
        l->words = 2;
        return false;
    }
    size_t used = strlen(l->siblings);
    format_text(l->siblings + used, sizeof(l->siblings) - used, "%s%s", used > 0 ? ", " : "",
                second + 1);
    return true;
}

// Finds the command that argv begins with; prints the error when there is none.
static const struct command *find(struct command_context *c, struct lookup *l)
{
    l->found = NULL;
    l->siblings[0] = '\0';
    for_each_command(look_at, l);
    if (l->found == NULL && l->siblings[0] != '\0')
        command_error(c, E_NOENT, "\"%.*s\" needs one of: %s", (int)SHOWN_MAX, l->argv[0],
                      l->siblings);
    else if (l->found == NULL)
        command_error(c, E_NOENT, "unknown command \"%.*s\", `help` lists the commands",
                      (int)SHOWN_MAX, l->argv[0]);
    return l->found;
}

static bool print_usage(void *context, const struct command *command)
{
    command_print(context, "%-40s %s\n", command->usage, command->help);
    return true;
}

struct group_usage {
    struct command_context *c;
    const char *first;
    bool printed;
};

static bool print_group_usage(void *context, const struct command *command)
{
    struct group_usage *g = context;
    size_t length = strlen(g->first);
    if (strncmp(command->name, g->first, length) == 0 && command->name[length] == ' ') {
        print_usage(g->c, command);
        g->printed = true;
    }
    return true;
}

static int help(struct command_context *c, int argc, char **argv)
{
    if (argc == 0) {
        for_each_command(print_usage, c);
        return 0;
    }
    // `help vm` explains all commands that begin with vm.
    struct group_usage group = {c, argv[0], false};
    if (argc == 1)
        for_each_command(print_group_usage, &group);
    if (group.printed)
        return 0;
    struct lookup l = {.argc = argc, .argv = argv};
    const struct command *command = find(c, &l);
    if (command == NULL)
        return E_NOENT;
    if (argc > l.words)
        return command_error(c, E_INVAL, "usage: %s", help_command.usage);
    print_usage(c, command);
    return 0;
}

void command_run(char *line)
{
    struct command_context c = {.answered = false};
    char *argv[ARGUMENTS_MAX];
    int argc = arguments_split(line, argv);
    if (argc == 0)
        return;
    if (argc == E_FORMAT) {
        command_error(&c, argc, "a quote is not closed, add the missing \"");
        return;
    }
    if (argc < 0) {
        command_error(&c, argc, "more than %d words, quote values that have blanks", ARGUMENTS_MAX);
        return;
    }
    struct lookup l = {.argc = argc, .argv = argv};
    const struct command *command = find(&c, &l);
    if (command == NULL)
        return;
    argc -= l.words;
    if (argc < command->min_args || argc > command->max_args) {
        command_error(&c, E_INVAL, "usage: %s", command->usage);
        return;
    }
    int result = command->run(&c, argc, argv + l.words);
    if (c.answered)
        return;
    if (result < 0)
        command_error(&c, result, "%s failed: %s", command->name, error_text(result));
    else
        terminal_puts("ok\n");
}
