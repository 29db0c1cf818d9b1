/* The exact softmax's three products of a block of words in bfloat16, with sums of float32.

   The table stays float32: a block's words are rounded when its turn comes, in pairs along P for the
   scores and in pairs of words for the mixture. Powers are rounded once, each as half of two pairs:
   with the next word's, for the mixture, and with the next row's, for the table's gradient. Only
   the latter are kept for all words. Sums of powers are taken before the rounding.

   Legend: N rows, V words, P width of vectors. */

#ifndef PFL_LM_SOFTMAX_BFLOAT16
#define PFL_LM_SOFTMAX_BFLOAT16

#include "bfloat16.h"
#include "softmax_totals.h"

/* Scratch, in words of 32 bits. */
typedef struct {
  uint32_t *lines;    /* (BLOCK, pairs of P): the table's words */
  uint32_t *panels;   /* the same as panels of pairs of words */
  uint32_t *of_words; /* powers as panels of N columns, pairs of words */
  uint32_t *of_rows;  /* powers as panels of words, pairs of rows */
} low_places;

INLINE long low_size(long rows, long words, long width, long kept) {
  return BLOCK * pairs(width) + (panels(width) + panels(rows)) * WIDTH * pairs(BLOCK) +
         panels(rows) * LANES * (kept ? words : BLOCK);
}

static low_places low_places_of(const softmax *s, long first) {
  low_places p = {.lines = s->scratch};
  p.panels = p.lines + BLOCK * pairs(s->width);
  p.of_words = p.panels + panels(s->width) * WIDTH * pairs(BLOCK);
  p.of_rows = p.of_words + panels(s->rows) * WIDTH * pairs(BLOCK);
  if (s->kept) p.of_rows += first * panels(s->rows) * LANES;
  return p;
}

/* Powers of some words with one panel of rows, stored as both kinds of pairs. */
INLINE void low_powers(int words, vec (*sum)[2], uint32_t *of_words, uint32_t *of_rows) {
#pragma GCC unroll 8
  for (int i = 0; i < words; i++)
    for (int side = 0; side < 2; side++) {
      *(loose_halves *)(of_rows + i * LANES + side * LANES / 2) = paired(sum[i][side]);
      if (i % 2 == 0)
        store_words(of_words + i / 2 * WIDTH + side * LANES,
                    paired_with(sum[i][side], i + 1 < words ? sum[i + 1][side] : (vec){0}));
    }
}

INLINE void low_score_tile(int words, const softmax *s, const uint32_t *lines, const float *bias,
                           long column, int powers, uint32_t *of_words, uint32_t *of_rows,
                           vec *total) {
  vec sum[MOST_ROWS][2];
  const uint32_t *row[MOST_ROWS], *columns = s->columns;
  long n = pairs(s->width);
#pragma GCC unroll 8
  for (int i = 0; i < words; i++) {
    row[i] = lines + i * n;
    sum[i][0] = sum[i][1] = bias ? all(bias[i] * LOG2_E) : (vec){0};
  }
  add_pair_lines(words, n, row, 1, columns + column * n, 0, 0, sum);
#pragma GCC unroll 8
  for (int i = 0; i < words; i++)
    for (int side = 0; side < 2; side++)
      sum[i][side] = power_of(s, sum[i][side], column + side * LANES, powers, total + side);
  if (powers) low_powers(words, sum, of_words, of_rows);
}

static void low_score_block(const softmax *s, long first, long count, int powers, float *total) {
  long n = pairs(s->width);
  low_places p = low_places_of(s, first);
  for (long i = 0; i < count; i++)
    pair_row(s->width, s->table + (first + i) * s->width, p.lines + i * n);
  for (long column = 0; column < s->rows; column += WIDTH) {
    uint32_t *of_words = p.of_words + column * pairs(count),
             *of_rows = p.of_rows + column / 2 * count;
    vec sums[2];
    begin_totals(total + column, powers, sums);
    for (long i = 0; i < count; i += MOST_ROWS) {
      const float *bias = s->bias ? s->bias + first + i : 0;
      OF_PAIR_HEIGHT(smaller(MOST_ROWS, count - i), low_score_tile, s, p.lines + i * n, bias,
                     column, powers, of_words + i / 2 * WIDTH, of_rows + i * LANES, sums)
    }
    end_totals(total + column, powers, sums);
  }
  end_tiles();
  long last = s->rows / WIDTH * LANES * count + s->rows % WIDTH / 2;
  for (long i = 0; powers && s->rows % 2 && i < count; i++) /* no row: it may be infinite */
    p.of_rows[last + i * LANES] &= 0xffff;
}

/* Some rows' powers of a block times its table, added to `mixed`: WIDTH coordinates. */
INLINE void low_mix_tile(int rows, long n, const uint32_t *powers, const uint32_t *table,
                         float *mixed, long width, long columns) {
  long to[MOST_ROWS];
  vec sum[MOST_ROWS][2];
  const uint32_t *row[MOST_ROWS];
  offsets(rows, width, to);
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) row[i] = powers + i, sum[i][0] = sum[i][1] = (vec){0};
  add_pair_lines(rows, n, row, WIDTH, table, 0, 0, sum);
  put_sums(rows, sum, mixed, to, columns, 1);
}

static void low_mix_block(const softmax *s, long first, long count, float *mixed) {
  long width = s->width, n = pairs(count);
  low_places p = low_places_of(s, first);
  pack_pairs(count, width, s->table + first * width, width, p.panels);
  for (long column = 0; column < s->rows; column += WIDTH)
    for (long j = 0; j < width; j += WIDTH) {
      float *to = mixed + column * width + j;
      for (long i = 0, rows = smaller(WIDTH, s->rows - column), height; i < rows; i += height) {
        height = pair_height_of(rows - i);
        OF_PAIR_HEIGHT(height, low_mix_tile, n, p.of_words + column * n + i, p.panels + j * n,
                       to + i * width, width, width - j)
      }
    }
  end_tiles();
}

/* table_tile of softmax.c. */
INLINE void low_table_tile(int words, long rows, const uint32_t *powers, long count,
                           const uint32_t *scaled, float *into, long width, long columns,
                           int fresh) {
  long to[MOST_ROWS];
  vec sum[MOST_ROWS][2];
  const uint32_t *row[MOST_ROWS];
  offsets(words, width, to);
#pragma GCC unroll 8
  for (int i = 0; i < words; i++) {
    expect(into + to[i]);
    row[i] = powers + i * LANES, sum[i][0] = sum[i][1] = (vec){0};
  }
  for (long first = 0; first < rows; first += WIDTH) {
    long n = pairs(smaller(WIDTH, rows - first));
    const uint32_t *panel = scaled + first / 2 * WIDTH;
    if (fresh)
      add_pair_lines(words, n, row, 1, panel, row[0] + 2 * HEIGHT * LANES, 1, sum);
    else
      add_pair_lines(words, n, row, 1, panel, 0, 0, sum);
    for (int i = 0; i < words; i++) row[i] += LANES * count;
  }
  put_sums(words, sum, into, to, columns, 1);
}

static void low_table_block(const softmax *s, long first, long count, const uint32_t *scaled,
                            float *into) {
  long n = s->rows, width = s->width;
  const uint32_t *powers = low_places_of(s, first).of_rows;
  for (long j = 0; j < width; j += WIDTH)
    for (long i = 0; i < count; i += MOST_ROWS)
      OF_PAIR_HEIGHT(smaller(MOST_ROWS, count - i), low_table_tile, n, powers + i * LANES, count,
                     scaled + j * pairs(n), into + i * width + j, width, width - j, !j)
  end_tiles();
}

/* A row of shares' numbers at even and at odd places, 0 where there is no row. */
INLINE void part_shares(const float *share, long rows, vec *even, vec *odd) {
  float near[WIDTH] = {0};
  memcpy(near, share, 4 * smaller(rows, WIDTH));
  for (int i = 0; i < LANES; i++) (*even)[i] = near[2 * i], (*odd)[i] = near[2 * i + 1];
}

/* Powers, as they were rounded, times each row's share: float32's products. Powers of the rows that
   fill the last panel are left out: they may be infinite. */
static void low_bias_block(const softmax *s, long first, long count, const float *share,
                           float *into) {
  const uint32_t *powers = low_places_of(s, first).of_rows;
  const ints high = (int32_t)0xffff0000 - (ints){0};
  vec sum[BLOCK] = {{0}}, even, odd;
  for (long n = 0; n < s->rows; n += WIDTH, powers += LANES * count) {
    part_shares(share + n, s->rows - n, &even, &odd);
    ints there = first_lanes((s->rows - n + 1) / 2);
    for (long i = 0; i < count; i++) {
      ints two = *(const loose_ints *)(powers + i * LANES) & there;
      sum[i] += (vec)(two << 16) * even + (vec)(two & high) * odd;
    }
  }
  for (long i = 0; i < count; i++) into[i] += sum_of(sum[i]);
}

#endif
