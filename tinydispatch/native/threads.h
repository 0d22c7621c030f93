/* Threads that compute one batch together, each running the same function, and wait for each other at barriers. */
#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "simd.h"

typedef void (*Work)(void *argument, int thread);

enum { MAX_THREADS = 256, SPINS = 4000 };

typedef struct Pool {
    int n_threads;
    Work work;
    void *argument;
    atomic_int n_waiting, phase, batch, is_ending;
    pthread_mutex_t mutex;
    pthread_cond_t has_work;
    pthread_t threads[MAX_THREADS];
} Pool;

typedef struct {
    Pool *pool;
    int thread;
} Start;

/* Waits a while at full speed, then lets others run. */
static void wait_until_changed(atomic_int *value, int from) {
    for (int i = 0; atomic_load_explicit(value, memory_order_acquire) == from; i++)
        if (i < SPINS) pause_thread();
        else sched_yield();
}

static void barrier(Pool *pool) {
    if (!pool) return;
    const int phase = atomic_load(&pool->phase);
    if (atomic_fetch_add(&pool->n_waiting, 1) == pool->n_threads - 1) {
        atomic_store(&pool->n_waiting, 0);
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
    } else {
        wait_until_changed(&pool->phase, phase);
    }
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
        pool->work(pool->argument, start.thread);
        barrier(pool);
    }
}

static void wake(Pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->batch, 1);
    pthread_cond_broadcast(&pool->has_work);
    pthread_mutex_unlock(&pool->mutex);
}

/* Run `work` on all threads, the calling one being the first; returns when all are done. */
static void run(Pool *pool, Work work, void *argument) {
    if (pool) {
        pool->work = work, pool->argument = argument;
        wake(pool);
    }
    work(argument, 0);
    barrier(pool);
}

static void stop_pool(Pool *pool) {
    atomic_store(&pool->is_ending, 1);
    wake(pool);
    for (int i = 1; i < pool->n_threads; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->has_work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

/* NULL when there is too little memory, or no more threads to be had. */
static Pool *start_pool(int n_threads) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->n_threads = 1;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->has_work, NULL);
    for (int i = 1; i < n_threads; i++) {
        Start *start = malloc(sizeof *start);
        if (start) *start = (Start){pool, i};
        if (!start || pthread_create(&pool->threads[i], NULL, run_thread, start)) {
            free(start);
            stop_pool(pool);
            return NULL;
        }
        pool->n_threads = i + 1;
    }
    return pool;
}
