/* Inverting a cumulative distribution: the same as numpy's in pfl_lm/dp/sampler/inversion.py. */
#include <stdint.h>

#define AHEAD 16         /* how far ahead the place of a number is fetched */
#define PLACE 0x7fffffff /* the bits of a noted place; the highest is its sign */

/* How many of the `total` sorted boundaries, of which the last is 2^64 - 1, lie below a number, if
   `low` of them surely do. */
static int64_t below(uint64_t number, const uint64_t *boundaries, int64_t total, int64_t low) {
  int64_t step = 1;
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
  return low;
}

/* Add to out, at each number's place, `magnitude` less the boundaries below it, negated where the
   place's highest bit is set; `start` says how many lie below each cell of width 2^shift. For numbers
   that equal a boundary nothing is added; return how many, and which in `ties`. `out` has integers of
   `width` bytes, 4 or 8, and wraps at that width. */
int64_t add_magnitudes(const uint64_t *numbers, const uint32_t *places, int64_t count,
                       const uint64_t *boundaries, int64_t total, const int32_t *start, int shift,
                       int64_t magnitude, int width, void *out, uint32_t *ties) {
  int64_t tied = 0;
  for (int64_t i = 0; i < count; i++) {
    if (i + AHEAD < count)
      __builtin_prefetch((char *)out + (int64_t)(places[i + AHEAD] & PLACE) * width, 1);
    int64_t passed = below(numbers[i], boundaries, total, start[numbers[i] >> shift]);
    const int64_t size = magnitude - passed, sample = places[i] > PLACE ? -size : size;
    if (boundaries[passed] == numbers[i])
      ties[tied++] = (uint32_t)i;
    else if (width == 4)
      ((uint32_t *)out)[places[i] & PLACE] += (uint32_t)sample;
    else
      ((uint64_t *)out)[places[i] & PLACE] += (uint64_t)sample;
  }
  return tied;
}
