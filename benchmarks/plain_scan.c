/* The baseline of bench_chunker.py: the rolling digest of restic-format.md section 10 as one
 * would first write it in C, one lane, one byte after the other. Never part of the product. */

#include <stddef.h>
#include <stdint.h>

/* Store the candidates of data[0..length) and return how many there are; `room` bounds what
 * is stored. Positions count from 1, as in chunker/reference.py. */
size_t
plain_scan(const uint8_t *data, size_t length, const uint64_t *out, const uint64_t *mod,
           uint64_t mask, uint64_t *positions, size_t room)
{
    uint64_t digest = 0;
    size_t found = 0;
    for (size_t i = 0; i < length; i++) {
        if (i >= 64) {
            digest ^= out[data[i - 64]];
        }
        digest = ((digest << 8) | data[i]) ^ mod[digest >> 45];
        if (i >= 63 && (digest & mask) == 0) {
            if (found < room) {
                positions[found] = i + 1;
            }
            found++;
        }
    }
    return found;
}
