/*
 * DPDK's rte_hash under the load of the bench `flow`, which compiles and runs this where DPDK's headers are.
 *
 * Reads commands from stdin, a line each, and answers each by a line:
 *   make ENTRIES KEYLEN LF    a table with ENTRIES keys of KEYLEN (16 or 40) bytes, lock-free readers if LF
 *                             -> "ok INSERTED HUGE": keys that found room, whether on huge pages
 *   run ZIPF MODE MILLIS      bulks of 64 keys for so long, uniform or Zipf 1.0
 *                             -> "cycles MEDIAN LOW HIGH MISSED": time stamp cycles a key, and quartiles, over batches of 256
 * MODE: 0 hashes the keys itself, 1 is given their hashes, 2 as 1 and reads a line of 64 bytes for each key found.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_prefetch.h>

#define BATCH 256
#define BULK 64
#define SAMPLES (1 << 20)
#define VALUE 64
#define DRAWN (1 << 18)

static uint64_t seed = 0x5bd1e9950f0e1d2cull;

static uint64_t next(void)
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * 0x2545f4914f6cdd1dull;
}

/* As the bench has them: even numbers are original directions, odd ones their answers. */
static void make_key(uint8_t *key, uint32_t len, uint32_t n)
{
    uint32_t flow = n / 2, host = flow >> 3, service = flow & 0xfff;
    uint16_t ports[2] = { 32768 + (flow & 7), 443 };
    uint32_t each = len == 16 ? 4 : 16, at = n & 1;
    memset(key, 0, len);
    uint8_t *ends[2] = { key + at * each, key + (1 - at) * each };
    for (int i = 0; i < 2; i++) {
        uint32_t low = __builtin_bswap32(i ? service : host);
        ends[i][0] = 10 + 162 * i;
        memcpy(ends[i] + each - 4, &low, 4);
        if (len == 16)
            ends[i][0] ^= 10 + 162 * i;
    }
    memcpy(key + 2 * each, &ports[at], 2);
    memcpy(key + 2 * each + 2, &ports[1 - at], 2);
    key[2 * each + 4] = 6;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (rte_eal_init(argc, argv) < 0)
        return 1;
    struct rte_hash *table = NULL;
    uint8_t *values = NULL;
    uint32_t entries = 0, len = 16, made = 0;
    size_t values_len = 0;
    uint32_t *samples = malloc(SAMPLES * sizeof *samples);
    static uint32_t drawn[DRAWN];
    static uint8_t keys[BATCH][40] __attribute__((aligned(64)));
    static const void *pointers[BATCH];
    static hash_sig_t hashes[BATCH];
    static void *found[BATCH];
    char line[256];
    volatile uint64_t sink = 0;

    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        uint32_t lf, zipf, mode, millis;
        if (sscanf(line, "make %u %u %u", &entries, &len, &lf) == 3) {
            rte_hash_free(table);
            if (values)
                munmap(values, values_len);
            char name[32];
            snprintf(name, sizeof name, "flows%u", made++);
            struct rte_hash_parameters parameters = {
                .name = name,
                /* The slack that ours has. */
                .entries = entries + entries / 2,
                .key_len = len,
                .hash_func = rte_hash_crc,
                .hash_func_init_val = 0,
                .socket_id = (int)rte_socket_id(),
                .extra_flag = lf ? RTE_HASH_EXTRA_FLAGS_RW_CONCURRENCY_LF : 0,
            };
            table = rte_hash_create(&parameters);
            values_len = (size_t)entries * VALUE + (2 << 20);
            values = mmap(NULL, values_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (!table || values == MAP_FAILED) {
                puts("failed");
                fflush(stdout);
                values = NULL;
                continue;
            }
            madvise(values, values_len, MADV_HUGEPAGE);
            memset(values, 1, values_len);
            uint32_t inserted = 0;
            for (uint32_t n = 0; n < entries; n++) {
                make_key(keys[0], len, n);
                inserted += rte_hash_add_key_data(table, keys[0], values + (size_t)n * VALUE) == 0;
            }
            printf("ok %u %d\n", inserted, rte_eal_has_hugepages());
        } else if (table && sscanf(line, "run %u %u %u", &zipf, &mode, &millis) == 3) {
            uint64_t now = rte_get_tsc_cycles(), until = now + rte_get_tsc_hz() / 1000 * millis;
            uint32_t count = 0, missed = 0;
            /* Rank r with a probability of nearly 1/r, ranks spread over the table. */
            double span = log((double)entries);
            for (uint32_t i = 0; zipf && i < DRAWN; i++) {
                uint64_t rank = (uint64_t)exp((double)(next() >> 32) / 4294967296.0 * span) - 1;
                drawn[i] = (uint32_t)(rank * 2654435761u % entries);
            }
            uint32_t at = 0;
            until += rte_get_tsc_cycles() - now;
            do {
                for (uint32_t i = 0; i < BATCH; i++) {
                    uint32_t n = zipf ? drawn[at = (at + 1) % DRAWN] : (uint32_t)(((next() >> 32) * entries) >> 32);
                    make_key(keys[i], len, n);
                    pointers[i] = keys[i];
                    hashes[i] = rte_hash_hash(table, keys[i]);
                }
                uint64_t start = rte_rdtsc_precise();
                for (uint32_t b = 0; b < BATCH; b += BULK) {
                    uint64_t mask = 0;
                    if (mode == 0)
                        rte_hash_lookup_bulk_data(table, pointers + b, BULK, &mask, found + b);
                    else
                        rte_hash_lookup_with_hash_bulk_data(table, pointers + b, hashes + b, BULK, &mask,
                                                            found + b);
                    missed += BULK - (uint32_t)__builtin_popcountll(mask);
                    if (mode == 2) {
                        for (uint32_t i = b; i < b + BULK; i++)
                            if (mask >> (i - b) & 1)
                                rte_prefetch0(found[i]);
                    }
                }
                if (mode == 2 && !missed) {
                    uint64_t sum = 0;
                    for (uint32_t i = 0; i < BATCH; i++)
                        for (uint32_t w = 0; w < 7; w++)
                                sum ^= ((volatile uint64_t *)found[i])[w];
                    sink += sum;
                }
                uint64_t took = rte_rdtsc_precise() - start;
                if (count < SAMPLES)
                    samples[count++] = (uint32_t)took;
            } while (rte_get_tsc_cycles() < until);
            qsort(samples, count, sizeof *samples, compare);
            printf("cycles %.2f %.2f %.2f %u\n", samples[count / 2] / (double)BATCH,
                   samples[count / 4] / (double)BATCH, samples[count / 4 * 3] / (double)BATCH, missed);
        } else {
            puts("failed");
        }
        fflush(stdout);
    }
    return 0;
}
