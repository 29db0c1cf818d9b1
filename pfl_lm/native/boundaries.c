/* Counting the boundaries below a number: the same as numpy's in pfl_lm/dp/boundaries.py. */
#include <stdint.h>

/* passed[i] = how many of the `total` sorted boundaries, of which the last is 2^64 - 1, lie below
 * numbers[i]; `start` says how many lie below each cell of width 2^shift. */
void count_below(
    const uint64_t *numbers, int64_t count, const uint64_t *boundaries, int64_t total,
    const int32_t *start, int shift, int64_t *passed)
{
    for (int64_t i = 0; i < count; i++) {
        const uint64_t number = numbers[i];
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
