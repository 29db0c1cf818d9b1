/* Scores of words, for powers of two: (table · vectors + bias) log2 e, a tile at a time in registers.

   Legend: V words, P width of vectors. */

#ifndef PFL_LM_SCORES
#define PFL_LM_SCORES

#include "panels.h"

#define LOG2_E 1.4426950408889634f
/* Words of a block, whose part of the table stays in the second cache while all rows pass; always as
   many, for a row's bits to be the same beside any others. Of 144 words, the panels of a block's
   powers would meet in the same places of the first cache. */
#define BLOCK 150

/* Scores of `words` rows of the table (·, P) with one panel of vectors · log2 e, packed as (P, ·).
   `fresh`: the table was not read yet, and the rows after next are asked for. */
INLINE void score_words(int words, long width, const float *table, const float *bias,
                        const float *panel, int fresh, vec (*sum)[2]) {
  long at[HEIGHT];
  const float *row[HEIGHT];
  offsets(words, width, at);
  begin_sums(words, table, at, row, sum);
  for (int i = 0; i < words && bias; i++) sum[i][0] = sum[i][1] = all(bias[i] * LOG2_E);
  add_products(words, width, row, 1, panel, WIDTH, fresh ? table + 2 * words * width : 0, sum);
}

#endif
