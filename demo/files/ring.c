#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

/* A ring buffer of fixed capacity for one producer and one consumer. */
struct ring {
    void **slots;
    size_t capacity;
    size_t head;
    size_t tail;
};

bool ring_init(struct ring *ring, size_t capacity)
{
    ring->slots = calloc(capacity + 1, sizeof(*ring->slots));
    ring->capacity = capacity + 1;
    ring->head = 0;
    ring->tail = 0;
    return ring->slots != NULL;
}

bool ring_push(struct ring *ring, void *item)
{
    size_t next = (ring->head + 1) % ring->capacity;
    if (next == ring->tail)
        return false;
    ring->slots[ring->head] = item;
    ring->head = next;
    return true;
}

void *ring_pop(struct ring *ring)
{
    if (ring->tail == ring->head)
        return NULL;
    void *item = ring->slots[ring->tail];
    ring->tail = (ring->tail + 1) % ring->capacity;
    return item;
}

void ring_free(struct ring *ring)
{
    free(ring->slots);
    ring->slots = NULL;
}
