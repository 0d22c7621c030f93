/* Threads that compute one batch together. All run the same function, which is a row of phases. The pieces of a phase are
 * taken by whoever is there, and a phase is over when its pieces are done: a thread that the system has put aside is not
 * waited for, unless it holds a piece. When it comes back it finds the phases behind it done, and goes on where work is.
 */
#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"

enum { MAX_OPEN = 4, SPINS = 4000 };

typedef struct {
    _Alignas(64) atomic_llong next, done;
} Phase;

/* One thread's place in a batch; `open` phases were left and are not waited for yet. */
typedef struct {
    struct Pool *pool; /* NULL: there is no other thread */
    int thread, phase, n_open;
    int64_t next, totals[MAX_OPEN];
} Worker;

typedef void (*Work)(void *argument, Worker *worker);

typedef struct Pool {
    int n_threads, n_phases;
    Work work;
    void *argument;
    Phase *phases;
    atomic_int batch, n_left, is_ending;
    pthread_mutex_t mutex;
    pthread_cond_t has_work;
    pthread_t threads[]; /* the first is not used: it is the caller */
} Pool;

typedef struct {
    Pool *pool;
    int thread;
} Start;

INLINE int64_t take_piece(Worker *w) {
    if (!w->pool) return w->next++;
    return atomic_fetch_add_explicit(&w->pool->phases[w->phase].next, 1, memory_order_relaxed);
}

INLINE void finish_piece(Worker *w) {
    if (w->pool) atomic_fetch_add_explicit(&w->pool->phases[w->phase].done, 1, memory_order_release);
}

/* The pieces of the present phase, of n, that fall to this thread. `leave` has to follow. */
#define FOR_PIECES(w, i, n) for (int64_t i = take_piece(w); i < (n); finish_piece(w), i = take_piece(w))

/* Go on to the next phase, which may not use what this one writes before `meet`. */
INLINE void leave(Worker *w, int64_t n) {
    w->next = 0;
    w->totals[w->n_open++] = n;
    w->phase++;
}

/* Wait until all pieces of the phases that were left are done: a while at full speed, then letting others run. */
static void meet(Worker *w) {
    for (int open = 0; w->pool && open < w->n_open; open++) {
        Phase *phase = &w->pool->phases[w->phase - w->n_open + open];
        for (int i = 0; atomic_load_explicit(&phase->done, memory_order_acquire) < w->totals[open]; i++)
            if (i < SPINS) pause_thread();
            else sched_yield();
    }
    w->n_open = 0;
}

static void *run_thread(void *argument) {
    Start start = *(Start *)argument;
    free(argument);
    Pool *pool = start.pool;
    for (int batch = 0;; batch++) {
        for (int i = 0; i < SPINS && atomic_load(&pool->batch) == batch; i++) pause_thread();
        if (atomic_load(&pool->batch) == batch) {
            pthread_mutex_lock(&pool->mutex);
            while (atomic_load(&pool->batch) == batch) pthread_cond_wait(&pool->has_work, &pool->mutex);
            pthread_mutex_unlock(&pool->mutex);
        }
        if (atomic_load(&pool->is_ending)) return NULL;
        Worker worker = {.pool = pool, .thread = start.thread};
        pool->work(pool->argument, &worker);
        atomic_fetch_add(&pool->n_left, 1);
    }
}

static void wake(Pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->batch, 1);
    pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->mutex);
}

/* Run `work` on all threads, the calling one being the first; returns when all have left it. */
static void run(Pool *pool, Work work, void *argument) {
    Worker worker = {.pool = pool};
    if (pool) {
        pool->work = work, pool->argument = argument;
        for (int i = 0; i < pool->n_phases; i++) pool->phases[i].next = pool->phases[i].done = 0;
        atomic_store(&pool->n_left, 0);
        wake(pool);
    }
    work(argument, &worker);
    for (int i = 0; pool && atomic_load(&pool->n_left) < pool->n_threads - 1; i++)
        if (i < SPINS) pause_thread();
        else sched_yield();
}

static void stop_pool(Pool *pool) {
    atomic_store(&pool->is_ending, 1);
    wake(pool);
    for (int i = 1; i < pool->n_threads; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->has_work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->phases);
    free(pool);
}

/* NULL when there is too little memory, or no more threads to be had. */
static Pool *start_pool(int n_threads, int n_phases) {
    Pool *pool = calloc(1, sizeof *pool + (size_t)n_threads * sizeof(pthread_t));
    if (!pool) return NULL;
    pool->n_threads = 1, pool->n_phases = n_phases;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->has_work, NULL);
    pool->phases = aligned_alloc(_Alignof(Phase), (size_t)n_phases * sizeof(Phase));
    for (int i = 1; i < n_threads; i++) {
        Start *start = malloc(sizeof *start);
        if (start) *start = (Start){pool, i};
        if (!pool->phases || !start || pthread_create(&pool->threads[i], NULL, run_thread, start)) {
            free(start);
            stop_pool(pool);
            return NULL;
        }
        pool->n_threads = i + 1;
    }
    return pool;
}
