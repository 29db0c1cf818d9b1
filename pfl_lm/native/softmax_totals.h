/* What the exact softmax's kernels take, and where its scratch has what.

   Legend: N rows, V words, P width of vectors. */

#ifndef PFL_LM_SOFTMAX_TOTALS
#define PFL_LM_SOFTMAX_TOTALS

#include "scores.h"

typedef struct {
  long rows, words, width; /* N, V, P */
  long kept;               /* whether there is room for the powers of all blocks, or of one */
  long low;                /* whether its three products are made in bfloat16 */
  const void *columns;     /* vectors · log2 e, packed as (P, N); in bfloat16 where `low` */
  const float *table;      /* (V, P) */
  const float *bias;       /* (V,) or none */
  const float *shift;      /* (N rounded up,): taken off the scaled scores, or none */
  void *scratch;           /* see scratch_size */
} softmax;

/* Of a row's sums with words, less the shift: powers of two where `powers`, and their sum so far in
   `total`; else the scores themselves, and the largest so far. */
INLINE vec power_of(const softmax *s, vec score, long column, int powers, vec *total) {
  if (s->shift) score -= load(s->shift + column);
  if (powers) score = exp2_of(score);
  *total = powers ? *total + score : either(score > *total, score, *total);
  return score;
}

/* Before and after a block: the sums of one panel of rows; see softmax_sums. */
INLINE void begin_totals(const float *total, int powers, vec *sums) {
  for (int side = 0; side < 2; side++) sums[side] = powers ? (vec){0} : load(total + side * LANES);
}

INLINE void end_totals(float *total, int powers, const vec *sums) {
  for (int side = 0; side < 2; side++)
    store(total + side * LANES, powers ? load(total + side * LANES) + sums[side] : sums[side]);
}

#endif
