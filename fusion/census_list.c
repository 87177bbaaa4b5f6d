// SPDX-License-Identifier: BSD-2-Clause
// A directory from the heap, frames of pointers, frames of values: 8.02 bytes per value, and the
// only contiguous piece is 8 bytes per GiB of guest memory.
#include "fusion/census_list.h"

#include "kernel/error.h"
#include "kernel/frames.h"
#include "kernel/heap.h"
#include "kernel/memory.h"
#include "kernel/sched.h"

#define TOP_SPAN      ((uint64_t)CENSUS_LEAF * CENSUS_LEAF) // values below one entry of the top
#define FRAMES_A_TURN 8u                                    // between two looks at the time
#define SIFTS_A_TURN  8u

static uint64_t top_count(uint64_t length)
{
    return (length + TOP_SPAN - 1) / TOP_SPAN;
}

// Not from the reserve: a figure is not worth what the reserve is for.
static void *new_frame(void)
{
    hfn_t frame;
    return frame_alloc(FRAME_FUSOR, 0, FRAME_ZEROED, NULL, &frame) == 0 ? hfn_to_pointer(frame)
                                                                        : NULL;
}

static void free_frame(void *p)
{
    frame_free(hpa_to_hfn(pointer_to_hpa(p)), 0, NULL);
}

// Whether the list would leave the reserve alone. Asked beforehand, because an attempt that fails
// would have taken the last frame from everybody for a moment.
static bool there_is_room(uint64_t length)
{
    struct frames_snapshot now;
    frames_snapshot(&now, NULL, 0, NULL, NULL);
    uint64_t leaves = (length + CENSUS_LEAF - 1) / CENSUS_LEAF;
    uint64_t directory = top_count(length) * sizeof(uint64_t **) / PAGE_SIZE + 1;
    uint64_t needed = leaves + top_count(length) + directory;
    return now.count[FRAME_FREE] >= needed + frames_reserve();
}

int census_list_create(struct census_list *list, uint64_t length)
{
    *list = (struct census_list){0};
    if (!there_is_room(length))
        return E_NOMEM;
    list->length = length;
    list->top = heap_alloc(top_count(length) * sizeof(*list->top));
    bool good = list->top != NULL;
    for (uint64_t i = 0; i < length && good; i += CENSUS_LEAF) {
        uint64_t ***middle = &list->top[i / TOP_SPAN];
        if (*middle == NULL)
            *middle = new_frame();
        if (*middle != NULL)
            (*middle)[i / CENSUS_LEAF % CENSUS_LEAF] = new_frame();
        good = *middle != NULL && (*middle)[i / CENSUS_LEAF % CENSUS_LEAF] != NULL;
        if (i / CENSUS_LEAF % FRAMES_A_TURN == FRAMES_A_TURN - 1)
            fiber_give_way_if_due();
    }
    if (!good)
        census_list_destroy(list);
    return good ? 0 : E_NOMEM;
}

void census_list_destroy(struct census_list *list)
{
    uint64_t tops = list->top == NULL ? 0 : top_count(list->length);
    for (uint64_t t = 0; t < tops; t++) {
        uint64_t **middle = list->top[t];
        for (unsigned i = 0; middle != NULL && i < CENSUS_LEAF; i++)
            if (middle[i] != NULL) {
                free_frame(middle[i]);
                fiber_give_way_if_due();
            }
        if (middle != NULL)
            free_frame(middle);
    }
    heap_free(list->top);
    *list = (struct census_list){0};
}

// The value at `i` goes down the heap of the first `count` values to its place.
static void sift(struct census_list *list, uint64_t i, uint64_t count)
{
    uint64_t value = *census_list_at(list, i);
    for (uint64_t child = 2 * i + 1; child < count; child = 2 * i + 1) {
        uint64_t *p = census_list_at(list, child);
        if (child + 1 < count) {
            uint64_t *right = census_list_at(list, child + 1);
            if (*right > *p) {
                p = right;
                child++;
            }
        }
        if (*p <= value)
            break;
        *census_list_at(list, i) = *p;
        i = child;
    }
    *census_list_at(list, i) = value;
}

// Heap sort: in place and n log n for every content, whoever chose it.
void census_list_sort(struct census_list *list, uint64_t count)
{
    for (uint64_t i = count / 2; i-- > 0;) {
        sift(list, i, count);
        if (i % SIFTS_A_TURN == 0)
            fiber_give_way_if_due();
    }
    for (uint64_t end = count; end-- > 1;) {
        uint64_t *first = census_list_at(list, 0), *last = census_list_at(list, end);
        uint64_t biggest = *first;
        *first = *last;
        *last = biggest;
        sift(list, 0, end);
        if (end % SIFTS_A_TURN == 0)
            fiber_give_way_if_due();
    }
}
