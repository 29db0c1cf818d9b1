/* Each row's sum of powers over a table of V words, and its best words: no score is ever stored.

   A tile of scores is made in registers as in softmax.c; it is added up as powers there and compared
   with the rows' third best score so far, which few tiles exceed.

   Legend: N rows, V words, P width of vectors. */

#include "scores.h"

#define BEST 3

typedef struct {
  long rows, words, width;
  const float *columns;  /* vectors · log2 e, packed as (P, N) */
  const float *table;    /* (V, P) */
  const float *bias;     /* (V,) or none */
  const uint8_t *silent; /* (V,): words that are never among the best */
  double *total;         /* (N rounded up,): Σ e^score is added */
  float *best;           /* (BEST, N rounded up): scores · log2 e, falling */
  int32_t *best_words;   /* the same */
} top_words;

EXPORT_SIZE(top_words)

/* Put a word where it belongs among the best of a row, after those of the same score. */
static void insert(const top_words *r, long row, float score, long word) {
  long padded = panels(r->rows) * WIDTH, place = BEST - 1;
  if (r->silent[word] || !(score > r->best[place * padded + row])) return;
  for (; place > 0 && score > r->best[(place - 1) * padded + row]; place--) {
    r->best[place * padded + row] = r->best[(place - 1) * padded + row];
    r->best_words[place * padded + row] = r->best_words[(place - 1) * padded + row];
  }
  r->best[place * padded + row] = score;
  r->best_words[place * padded + row] = (int32_t)word;
}

INLINE int any_of(ints where) {
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= where[i];
  return found;
}

/* Some words against one panel of rows: powers are added to `total`. */
INLINE void rank_tile(int words, const top_words *r, long word, long column, vec *total) {
  vec sum[HEIGHT][2];
  const float *last = r->best + (BEST - 1) * panels(r->rows) * WIDTH + column;
  ints above = {0};
  score_words(words, r->width, r->table + word * r->width, r->bias ? r->bias + word : 0,
              r->columns + column * r->width, !column, sum);
#pragma GCC unroll 8
  for (int i = 0; i < words; i++)
    for (int side = 0; side < 2; side++) {
      above |= sum[i][side] > load(last + side * LANES);
      total[side] += exp2_of(sum[i][side]);
    }
  for (int i = 0; i < words && any_of(above); i++)
    for (int j = 0; j < smaller(WIDTH, r->rows - column); j++)
      insert(r, column + j, sum[i][j / LANES][j % LANES], word + i);
}

/* Score all words for all rows; `best` is given as -infinity, `total` as zeros. */
void rank_words(const top_words *r) {
  for (long first = 0; first < r->words; first += BLOCK)
    for (long column = 0; column < r->rows; column += WIDTH) {
      vec total[2] = {{0}};
      long count = smaller(BLOCK, r->words - first);
      for (long i = 0; i < count; i += HEIGHT)
        OF_HEIGHT(smaller(HEIGHT, count - i), rank_tile, r, first + i, column, total)
      for (int j = 0; j < WIDTH; j++) r->total[column + j] += total[j / LANES][j % LANES];
    }
}
