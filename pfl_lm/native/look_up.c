/* Look-ups in a guide and among sorted boundaries: the same as numpy's in pfl_lm/dp/look_up.py. */
#include <stdint.h>

#define UNDECIDED INT16_MIN

#define DEFINE_LOOK_UP(NAME, INTEGER)                                                           \
    /* Add to out[i] what the guide says of words[i]; where it does not decide, add nothing and  \
     * note the place. Return how many places were noted. */                                    \
    int64_t NAME(INTEGER *out, const uint16_t *words, int64_t count, const int16_t *guide,      \
                 uint16_t *places)                                                              \
    {                                                                                           \
        int64_t noted = 0;                                                                      \
        for (int64_t i = 0; i < count; i++) {                                                   \
            int16_t sample = guide[words[i]];                                                   \
            int undecided = sample == UNDECIDED;                                                \
            places[noted] = (uint16_t)i; /* overwritten by the next unless it is counted */     \
            noted += undecided;                                                                 \
            out[i] += undecided ? 0 : sample;                                                   \
        }                                                                                       \
        return noted;                                                                           \
    }
DEFINE_LOOK_UP(look_up_32, int32_t)
DEFINE_LOOK_UP(look_up_64, int64_t)

/* passed[i] = how many of the `total` sorted boundaries, of which the last is 2^64 - 1, lie below
 * uniform[i]; `start` says how many lie below each cell of width 2^shift. */
void pass_boundaries(
    const uint64_t *uniform, int64_t count, const uint64_t *boundaries, int64_t total,
    const int32_t *start, int shift, int64_t *passed)
{
    for (int64_t i = 0; i < count; i++) {
        const uint64_t number = uniform[i];
        int64_t low = start[number >> shift], step = 1;
        while (low + step < total && boundaries[low + step - 1] < number) {
            low += step;
            step *= 2;
        }
        int64_t high = low + step < total ? low + step : total - 1;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (boundaries[middle] < number)
                low = middle + 1;
            else
                high = middle;
        }
        passed[i] = low;
    }
}
