/* The exact softmax of N rows over a table of V words, a block of words at a time.

   While a block's powers 2^(score · log2 e) are in the second cache, they are summed and mixed with
   the table, which the vectors' gradient needs; a second pass over the powers, kept in memory or
   made again, adds the table's gradient. Powers of a block lie as panels of WIDTH rows: a panel is
   then the packed operand of one product and the plain one of the other two.

   Legend: N rows, V words, P width of vectors, w words of a block. */

#include "products.h"

#define LOG2_E 1.4426950408889634f
/* Words of a block, whatever N: a row's bits are the same beside any others. Of 144 words, the
   panels of a block's powers would meet in the same places of the first cache. */
#define BLOCK 150

typedef struct {
  long rows, words, width; /* N, V, P */
  long kept;               /* whether there is room for the powers of all blocks, or of one */
  const float *columns;    /* vectors · log2 e, packed as (P, N) */
  const float *table;      /* (V, P) */
  const float *bias;       /* (V,) or none */
  const float *shift;      /* (N rounded up,): taken off the scaled scores */
  float *scratch;          /* see scratch_size */
} softmax;

/* Floats of scratch: a block of the table in panels, then powers of all words or of one block. */
long scratch_size(long rows, long words, long width, long kept) {
  return (panels(rows) * (kept ? words : BLOCK) + panels(width) * BLOCK) * WIDTH;
}

static float *powers_of(const softmax *s, long first) {
  long in_panels = panels(s->width) * BLOCK * WIDTH;
  return s->scratch + in_panels + (s->kept ? first * panels(s->rows) * WIDTH : 0);
}

/* Scores of some words with one panel of rows, then powers, stored and added to `total`; or, with
   `into` none, the largest scores in `total`. Rows that do not exist have power 0. */
#define SCORE_TILE(height)                                                                  \
  static void score_##height(const softmax *s, long word, long column, const ints *exists,  \
                             float *into, vec *total) {                                     \
    long at[height];                                                                        \
    offsets(height, s->width, at);                                                          \
    SUMS(height, s->width, s->table + word * s->width, at, k,                               \
         s->columns + column * s->width, WIDTH, row[0] + k + 2 * height * s->width)                                             \
    for (int i = 0; i < height; i++) {                                                      \
      float bias = s->bias ? s->bias[word + i] * LOG2_E : 0.0f;                             \
      for (int side = 0; side < 2; side++) {                                                \
        vec score = (sum[i][side] + bias) - load(s->shift + column + side * LANES);         \
        if (into) {                                                                         \
          vec power = (vec)((ints)exp2_of(score) & exists[side]);                           \
          store(into + i * WIDTH + side * LANES, power);                                    \
          total[side] += power;                                                             \
        } else {                                                                            \
          total[side] = either(score > total[side], score, total[side]);                    \
        }                                                                                   \
      }                                                                                     \
    }                                                                                       \
  }

SCORE_TILE(1) SCORE_TILE(2) SCORE_TILE(3) SCORE_TILE(4) SCORE_TILE(5) SCORE_TILE(6)

/* Score words [first, first + count) with every row; `total` (N rounded up) takes what comes. */
static void score_block(const softmax *s, long first, long count, float *powers, float *total) {
  for (long column = 0; column < s->rows; column += WIDTH) {
    ints exists[2];
    int32_t flags[WIDTH];
    for (int j = 0; j < WIDTH; j++) flags[j] = -(column + j < s->rows);
    memcpy(exists, flags, sizeof exists);
    float *into = powers ? powers + column * count : 0;
    vec sums[2] = {{0}};
    if (!powers) sums[0] = load(total + column), sums[1] = load(total + column + LANES);
    for (long i = 0; i < count; i += HEIGHT) {
      float *place = into ? into + i * WIDTH : 0;
      switch (smaller(HEIGHT, count - i)) {
        case 1: score_1(s, first + i, column, exists, place, sums); break;
        case 2: score_2(s, first + i, column, exists, place, sums); break;
        case 3: score_3(s, first + i, column, exists, place, sums); break;
        case 4: score_4(s, first + i, column, exists, place, sums); break;
        case 5: score_5(s, first + i, column, exists, place, sums); break;
        default: score_6(s, first + i, column, exists, place, sums);
      }
    }
    for (int side = 0; side < 2; side++) {
      float *to = total + column + side * LANES;
      store(to, powers ? load(to) + sums[side] : sums[side]);
    }
  }
}

/* powersᵀ · table of a block, added to `mixed`: `height` rows of one panel, WIDTH coordinates. */
#define MIX_TILE(height)                                                                    \
  static void mix_##height(long count, const float *powers, const float *table,             \
                           float *mixed, long width, long columns) {                        \
    long at[height], to[height];                                                            \
    offsets(height, 1, at);                                                                 \
    offsets(height, width, to);                                                             \
    SUMS(height, count, powers, at, k * WIDTH, table, WIDTH, panel + 16 * WIDTH)            \
    ADD_SUMS(height, mixed, to, columns, 1)                                                 \
  }

MIX_TILE(1) MIX_TILE(2) MIX_TILE(3) MIX_TILE(4) MIX_TILE(5) MIX_TILE(6)

static void mix_block(const softmax *s, long first, long count, const float *powers, float *mixed) {
  long p = s->width;
  pack(count, p, s->table + first * p, p, 1, s->scratch);
  for (long column = 0; column < s->rows; column += WIDTH)
    for (long j = 0; j < p; j += WIDTH) {
      const float *part = s->scratch + j * count, *own = powers + column * count;
      float *to = mixed + column * p + j;
      long rows = smaller(WIDTH, s->rows - column), height;
      for (long tiles = (rows + HEIGHT - 1) / HEIGHT; tiles > 0; tiles--) {
        switch (height = (rows + tiles - 1) / tiles) {
          case 1: mix_1(count, own, part, to, p, p - j); break;
          case 2: mix_2(count, own, part, to, p, p - j); break;
          case 3: mix_3(count, own, part, to, p, p - j); break;
          case 4: mix_4(count, own, part, to, p, p - j); break;
          case 5: mix_5(count, own, part, to, p, p - j); break;
          default: mix_6(count, own, part, to, p, p - j);
        }
        rows -= height, own += height, to += height * p;
      }
    }
}

/* powers · scaled of some words, added to the table: every panel of rows in turn. */
#define TABLE_TILE(height)                                                                  \
  static void table_##height(long rows, const float *powers, long words, const float *scaled, \
                             float *into, long width, long columns) {                       \
    long at[height], to[height];                                                            \
    offsets(height, WIDTH, at);                                                             \
    offsets(height, width, to);                                                             \
    for (int i = 0; i < height; i++) __builtin_prefetch(into + to[i], 1);                  \
    SUMS(height, rows, powers, at, (k & -WIDTH) * words + (k & (WIDTH - 1)), scaled, WIDTH, \
         powers + (k & -WIDTH) * words + (2 * HEIGHT + k % WIDTH) * WIDTH)                  \
    ADD_SUMS(height, into, to, columns, 1)                                                  \
  }

TABLE_TILE(1) TABLE_TILE(2) TABLE_TILE(3) TABLE_TILE(4) TABLE_TILE(5) TABLE_TILE(6)

static void table_block(const softmax *s, long count, const float *powers, const float *scaled,
                        float *into) {
  long n = s->rows, p = s->width;
  for (long j = 0; j < p; j += WIDTH)
    for (long i = 0; i < count; i += HEIGHT) {
      const float *own = powers + i * WIDTH, *panel = scaled + j * n;
      float *to = into + i * p + j;
      switch (smaller(HEIGHT, count - i)) {
        case 1: table_1(n, own, count, panel, to, p, p - j); break;
        case 2: table_2(n, own, count, panel, to, p, p - j); break;
        case 3: table_3(n, own, count, panel, to, p, p - j); break;
        case 4: table_4(n, own, count, panel, to, p, p - j); break;
        case 5: table_5(n, own, count, panel, to, p, p - j); break;
        default: table_6(n, own, count, panel, to, p, p - j);
      }
    }
}

static void bias_block(const softmax *s, long count, const float *powers, const float *share,
                       float *into) {
  for (long i = 0; i < count; i++) {
    vec sum = {0};
    for (long column = 0; column < s->rows; column += LANES)
      sum += load(powers + column / WIDTH * WIDTH * count + i * WIDTH + column % WIDTH) *
             load(share + column);
    into[i] += sum_of(sum);
  }
}

/* `total` (N rounded up): each row's sum of powers; `mixed` (N, P): powersᵀ · table. Both given as
   zeros; without `mixed`, `total` given as -infinity takes the largest scaled scores instead. */
void softmax_sums(const softmax *s, float *total, float *mixed) {
  for (long first = 0; first < s->words; first += BLOCK) {
    long count = smaller(BLOCK, s->words - first);
    float *powers = mixed ? powers_of(s, first) : 0;
    score_block(s, first, count, powers, total);
    if (mixed) mix_block(s, first, count, powers, mixed);
  }
}

/* Add powers · scaled to `table` (V, P), powers · share to `bias` (V,), either none. `scaled` (N, P)
   is packed, `share` (N rounded up) ends in zeros. They may be the table and the bias themselves:
   what a block is made from is read before it is written. `total` is scratch (N rounded up). */
void softmax_gradients(const softmax *s, const float *scaled, const float *share, float *table,
                       float *bias, float *total) {
  for (long first = 0; first < s->words; first += BLOCK) {
    long count = smaller(BLOCK, s->words - first);
    float *powers = powers_of(s, first);
    if (!s->kept) score_block(s, first, count, powers, total);
    if (table) table_block(s, count, powers, scaled, table + first * s->width);
    if (bias) bias_block(s, count, powers, share, bias + first);
  }
}
