/* Proposals for a discrete Gaussian: the same as numpy's in pfl_lm/dp/sampler/rejection.py. */
#include "vector.h"

#define GROUP 32 /* proposals looked at together */
#define COIN_SHIFT 47
#define COIN_BITS 16
#define UNIT_BITS 31

/* sample = what a step and a word propose; return other than 0 if it may have to be refused. */
INLINE uint64_t propose_one(int64_t step, uint64_t word, int low_bits, uint32_t per_odd,
                            int64_t *sample) {
  const uint64_t low_mask = ((uint64_t)1 << low_bits) - 1;
  int64_t high = step < 0 ? -step : step, sign = -(int64_t)(word >> 63);
  int64_t magnitude = (high << low_bits) + (int64_t)(word & low_mask);
  uint64_t coin = word >> COIN_SHIFT & ((1 << COIN_BITS) - 1);
  uint64_t bound = (uint64_t)(uint32_t)(2 * high + 1) * per_odd;
  uint64_t chance = ((coin + 1) << (UNIT_BITS - COIN_BITS)) + bound;
  *sample = (magnitude ^ sign) - sign;
  return (chance - 1) >> UNIT_BITS | (word >> 63 & (magnitude == 0));
}

/* samples[i] = what the i-th step and word propose, a step's size being below 2^31; return how many
   may have to be refused, and in `doubtful` which. */
int64_t propose(int64_t count, const int64_t *steps, const uint64_t *words, int low_bits,
                uint32_t per_odd, int64_t *samples, uint32_t *doubtful) {
  int64_t noted = 0;
  for (int64_t start = 0; start < count; start += GROUP) {
    int64_t size = count - start < GROUP ? count - start : GROUP;
    uint64_t doubt[GROUP], any = 0;
    for (int64_t i = 0; i < size; i++) {
      doubt[i] =
          propose_one(steps[start + i], words[start + i], low_bits, per_odd, samples + start + i);
      any |= doubt[i];
    }
    for (int64_t i = 0; any && i < size; i++)
      if (doubt[i]) doubtful[noted++] = (uint32_t)(start + i);
  }
  return noted;
}
