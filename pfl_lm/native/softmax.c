/* The exact softmax of N rows over a table of V words, a block of words at a time.

   While a block's powers 2^(score · log2 e) are in the second cache, they are summed and mixed with
   the table, which the vectors' gradient needs; a second pass over the powers, kept in memory or
   made again, adds the table's gradient. Powers of a block lie as panels of WIDTH rows: a panel is
   then the packed operand of one product and the plain one of the other two.

   Legend: N rows, V words, P width of vectors. */

#include "softmax_bfloat16.h"

EXPORT_SIZE(softmax)

/* Floats of scratch: a block of the table in panels, then powers of all words or of one block. */
long scratch_size(long rows, long words, long width, long kept, long low) {
  if (low) return low_size(rows, words, width, kept);
  return (panels(rows) * (kept ? words : BLOCK) + panels(width) * BLOCK) * WIDTH;
}

static float *powers_of(const softmax *s, long first) {
  long in_panels = panels(s->width) * BLOCK * WIDTH;
  return (float *)s->scratch + in_panels + (s->kept ? first * panels(s->rows) * WIDTH : 0);
}

/* Scores of some words with one panel of rows, then powers, stored and added to `total`; or, with
   `into` none, the largest scores in `total`. */
INLINE void score_tile(int words, const softmax *s, long word, long column, float *into,
                       vec *total) {
  vec sum[HEIGHT][2];
  score_words(words, s->width, s->table + word * s->width, s->bias ? s->bias + word : 0,
              (const float *)s->columns + column * s->width, !column, sum);
#pragma GCC unroll 8
  for (int i = 0; i < words; i++)
    for (int side = 0; side < 2; side++) {
      vec power = power_of(s, sum[i][side], column + side * LANES, into != 0, total + side);
      if (into) store(into + i * WIDTH + side * LANES, power);
    }
}

/* Score words [first, first + count) with every row; `total` (N rounded up) takes what comes. */
static void score_block(const softmax *s, long first, long count, float *powers, float *total) {
  for (long column = 0; column < s->rows; column += WIDTH) {
    float *into = powers ? powers + column * count : 0;
    vec sums[2];
    begin_totals(total + column, powers != 0, sums);
    for (long i = 0; i < count; i += HEIGHT) {
      float *place = into ? into + i * WIDTH : 0;
      OF_HEIGHT(smaller(HEIGHT, count - i), score_tile, s, first + i, column, place, sums)
    }
    end_totals(total + column, powers != 0, sums);
  }
}

/* powersᵀ · table of a block, added to `mixed`: `rows` rows of one panel, WIDTH coordinates. */
INLINE void mix_tile(int rows, long count, const float *powers, const float *table, float *mixed,
                     long width, long columns) {
  long at[HEIGHT], to[HEIGHT];
  vec sum[HEIGHT][2];
  const float *row[HEIGHT];
  offsets(rows, 1, at), offsets(rows, width, to);
  begin_sums(rows, powers, at, row, sum);
  add_products(rows, count, row, WIDTH, table, WIDTH, 0, sum);
  put_sums(rows, sum, mixed, to, columns, 1);
}

static void mix_block(const softmax *s, long first, long count, const float *powers, float *mixed) {
  long p = s->width;
  pack(count, p, s->table + first * p, p, 1, s->scratch);
  for (long column = 0; column < s->rows; column += WIDTH)
    for (long j = 0; j < p; j += WIDTH) {
      const float *part = (const float *)s->scratch + j * count, *own = powers + column * count;
      float *to = mixed + column * p + j;
      for (long i = 0, rows = smaller(WIDTH, s->rows - column), height; i < rows; i += height) {
        height = height_of(rows - i);
        OF_HEIGHT(height, mix_tile, count, own + i, part, to + i * p, p, p - j)
      }
    }
}

/* powers · scaled of some words, added to the table: every panel of rows in turn. `fresh`: the
   powers were not read yet, and those of the words after next are asked for. */
INLINE void table_tile(int words, long rows, const float *powers, long count, const float *scaled,
                       float *into, long width, long columns, int fresh) {
  long at[HEIGHT], to[HEIGHT];
  vec sum[HEIGHT][2];
  const float *row[HEIGHT];
  offsets(words, WIDTH, at), offsets(words, width, to);
  for (int i = 0; i < words; i++) expect(into + to[i]);
  begin_sums(words, powers, at, row, sum);
  for (long first = 0; first < rows; first += WIDTH) {
    add_products(words, smaller(WIDTH, rows - first), row, 1, scaled + first * WIDTH, WIDTH,
                 fresh ? row[0] + 2 * HEIGHT * WIDTH : 0, sum);
    for (int i = 0; i < words; i++) row[i] += WIDTH * count;
  }
  put_sums(words, sum, into, to, columns, 1);
}

static void table_block(const softmax *s, long count, const float *powers, const float *scaled,
                        float *into) {
  long n = s->rows, p = s->width;
  for (long j = 0; j < p; j += WIDTH)
    for (long i = 0; i < count; i += HEIGHT)
      OF_HEIGHT(smaller(HEIGHT, count - i), table_tile, n, powers + i * WIDTH, count,
                scaled + j * n, into + i * p + j, p, p - j, !j)
}

/* Powers of the rows that fill the last panel are left out: they may be infinite. */
static void bias_block(const softmax *s, long count, const float *powers, const float *share,
                       float *into) {
  for (long i = 0; i < count; i++) {
    const float *own = powers + i * WIDTH;
    vec sum = {0};
    long n = 0;
    for (; n + LANES <= s->rows; n += LANES)
      sum += load(own + (n & -WIDTH) * count + (n & (WIDTH - 1))) * load(share + n);
    own += (n & -WIDTH) * count + (n & (WIDTH - 1));
    sum += load_some(own, s->rows - n) * load_some(share + n, s->rows - n);
    into[i] += sum_of(sum);
  }
}

/* `total` (N rounded up): each row's sum of powers; `mixed` (N, P): powersᵀ · table. Both given as
   zeros; without `mixed`, `total` given as -infinity takes the largest scaled scores instead. */
void softmax_sums(const softmax *s, float *total, float *mixed) {
  for (long first = 0; first < s->words; first += BLOCK) {
    long count = smaller(BLOCK, s->words - first);
    if (s->low) {
      low_score_block(s, first, count, mixed != 0, total);
      if (mixed) low_mix_block(s, first, count, mixed);
    } else {
      float *powers = mixed ? powers_of(s, first) : 0;
      score_block(s, first, count, powers, total);
      if (mixed) mix_block(s, first, count, powers, mixed);
    }
  }
}

/* Add powers · scaled to `table` (V, P), powers · share to `bias` (V,), either none. `scaled` (N, P)
   is packed, in bfloat16 where the products are; `share` is (N,). They may be the table and the bias
   themselves: what a block is made from is read before it is written. `total` is scratch (N rounded
   up). */
void softmax_gradients(const softmax *s, const void *scaled, const float *share, float *table,
                       float *bias, float *total) {
  for (long first = 0; first < s->words; first += BLOCK) {
    long count = smaller(BLOCK, s->words - first);
    float *rows = table ? table + first * s->width : 0, *biases = bias ? bias + first : 0;
    if (s->low) {
      if (!s->kept) low_score_block(s, first, count, 1, total);
      if (table) low_table_block(s, first, count, scaled, rows);
      if (bias) low_bias_block(s, first, count, share, biases);
    } else {
      float *powers = powers_of(s, first);
      if (!s->kept) score_block(s, first, count, powers, total);
      if (table) table_block(s, count, powers, scaled, rows);
      if (bias) bias_block(s, count, powers, share, biases);
    }
  }
}
