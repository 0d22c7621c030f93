/* Runs one function of the decoder for another kind of processor, in memory that it shares with Python.
 *
 * native_probe MEMORY BASE pack TYPE ROWS N_IN N_OUT QUANTS SCALES
 * native_probe MEMORY BASE compute DECODER N_IDS FIRST N_OUTPUTS LOGITS
 *
 * MEMORY is a file, which Python has at the address BASE; so have all the pointers. What is mapped here lies elsewhere.
 */
#include "decoder.c"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

static uint64_t theirs, ours, size;

static int map(const char *path, const char *base) {
    struct stat status;
    const int file = open(path, O_RDWR);
    if (file < 0 || fstat(file, &status)) return 0;
    void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    theirs = strtoull(base, NULL, 10), ours = (uint64_t)memory, size = (uint64_t)status.st_size;
    return memory != MAP_FAILED;
}

/* Whatever is an address of Python's within the memory becomes one of ours; no other number is as large. */
static void move_pointers(void *words, size_t n_bytes) {
    for (uint64_t *word = words; n_bytes >= 8; word++, n_bytes -= 8)
        if (*word - theirs < size) *word += ours - theirs;
}

static void compute(const uint64_t *arguments) {
    Decoder decoder = *(const Decoder *)arguments[0];
    move_pointers(&decoder, sizeof decoder);
    move_pointers(decoder.layers, (size_t)decoder.n_layers * sizeof(Layer));
    decoder.pool = decoder.n_threads > 1 ? tinydispatch_start_threads(decoder.n_threads, decoder.n_layers) : NULL;
    tinydispatch_compute(&decoder, (int64_t)arguments[1], (int64_t)arguments[2], (int64_t)arguments[3],
                         (float *)arguments[4]);
    if (decoder.pool) tinydispatch_stop_threads(decoder.pool);
}

int main(int count, char **words) {
    uint64_t arguments[6] = {0};
    if (count < 9 || !map(words[1], words[2])) return 2;
    for (int i = 4; i < count; i++) arguments[i - 4] = strtoull(words[i], NULL, 10);
    move_pointers(arguments, sizeof arguments);
    if (strcmp(words[3], "pack")) compute(arguments);
    else
        tinydispatch_pack((int64_t)arguments[0], (const uint8_t *)arguments[1], (int64_t)arguments[2],
                          (int64_t)arguments[3], (uint8_t *)arguments[4], (uint8_t *)arguments[5]);
    return 0;
}
