/* Causal attention of one head over one window, forward and backward, in the first cache.

   Legend: T tokens, e width of a head. The rows of queries, keys and values have a stride of `stride` floats. */

#ifndef PFL_LM_ATTENTION
#define PFL_LM_ATTENTION

#include "layer.h"

#include <math.h>

typedef struct {
  long length, each, wide, stride, mixed_stride; /* T, e, T rounded up to whole panels */
  float *weights, *slopes;                       /* (T, wide) */
  float *turned, *plain;                         /* packed (e, T) and (T, e) */
  long *lines, *rows, *mixed_rows;               /* offsets of rows of (T, wide), (T, stride), … */
} attention;

HELPER int equip_attention(attention *a, long length, long heads, long width) {
  *a = (attention){.length = length, .each = width / heads, .wide = panels(length) * WIDTH};
  a->stride = 3 * width, a->mixed_stride = width;
  a->weights = room(2 * length * a->wide + sized(a->each, length) + sized(length, a->each));
  a->lines = malloc(3 * length * sizeof(long));
  if (!a->weights || !a->lines) return 1;
  a->slopes = a->weights + length * a->wide, a->turned = a->slopes + length * a->wide;
  a->plain = a->turned + sized(a->each, length);
  a->rows = a->lines + length, a->mixed_rows = a->rows + length;
  offsets(length, a->wide, a->lines), offsets(length, a->stride, a->rows);
  offsets(length, a->mixed_stride, a->mixed_rows);
  return 0;
}

HELPER void put_attention_away(attention *a) { free(a->weights), free(a->lines); }

/* Rows of a product: row i of the left side begins at left + i * down, its numbers `along` apart. */
INLINE void attention_tile(int rows, long n, const float *left, long down, long along,
                           const float *panel, float *to, const long *to_rows, long columns) {
  vec sum[HEIGHT][2];
  const float *row[HEIGHT];
  for (int i = 0; i < rows; i++) row[i] = left + i * down, sum[i][0] = sum[i][1] = (vec){0};
  add_products(rows, n, row, along, panel, WIDTH, 0, sum);
  put_sums(rows, sum, to, to_rows, columns, 0);
}

/* attention_tile of a panel's left half alone, rows of the left side `down` apart. */
INLINE void left_half_tile(int rows, long n, const float *left, long down, const float *panel,
                           float *to, long wide) {
  vec sum[HEIGHT] = {{0}};
  for (long k = 0; k < n; k++, panel += WIDTH) {
    vec line = load(panel);
    IN_REGISTER(line);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) sum[i] += all(left[i * down + k]) * line;
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) store(to + i * wide, sum[i]);
}

/* into (T, wide) = x yᵀ of (T, e) each: what lies at or before the diagonal, and some beyond. */
HELPER void pair_up(const attention *a, const float *x, long x_stride, const float *y,
                    long y_stride, float *into) {
  long t = a->length;
  pack(a->each, t, y, 1, y_stride, a->turned);
  for (long j = 0; j < t; j += WIDTH) {
    const float *panel = a->turned + j * a->each;
    long i = j, both = smaller(t, j + LANES); /* from here on both halves of the panel are needed */
    for (long height; i < both; i += height) {
      height = height_of(both - i);
      OF_HEIGHT(height, left_half_tile, a->each, x + i * x_stride, x_stride, panel,
                into + i * a->wide + j, a->wide)
    }
    for (long height; i < t; i += height) {
      height = height_of(t - i);
      OF_HEIGHT(height, attention_tile, a->each, x + i * x_stride, x_stride, 1, panel,
                into + i * a->wide + j, a->lines, WIDTH)
    }
  }
}

/* to (T, e) = weights x, or `over` weightsᵀ x; only what the triangle holds is multiplied. */
HELPER void mix(const attention *a, const float *weights, int over, const float *x, long stride,
                float *to, const long *to_rows) {
  long t = a->length;
  pack(t, a->each, x, stride, 1, a->plain);
  for (long j = 0; j < a->each; j += WIDTH)
    for (long i = 0, height; i < t; i += height) {
      height = height_of(t - i);
      const float *own = weights + i * a->wide + (over ? i : 0);
      const float *panel = a->plain + j * t + (over ? i * WIDTH : 0);
      OF_HEIGHT(height, attention_tile, over ? t - i : i + height, own, over ? 1 : a->wide,
                over ? a->wide : 1, panel, to + to_rows[i] + j, to_rows, a->each - j)
    }
}

/* Scores become their causal softmax, 0 beyond the diagonal. */
HELPER void weigh(const attention *a) {
  float scale = 1.44269504088896341f / sqrtf((float)a->each);
  for (long i = 0; i < a->length; i++) {
    float *row = a->weights + i * a->wide;
    vec largest = all(row[0]), sum = {0};
    long j, n = i + 1;
    for (j = 0; j < n; j += LANES) {
      vec score = either(first_lanes(n - j), load(row + j), all(-INFINITY));
      store(row + j, score);
      largest = either(score > largest, score, largest);
    }
    float top = greatest_of(largest);
    for (j = 0; j < n; j += LANES) {
      vec power = exp2_of((load(row + j) - top) * scale);
      store(row + j, power);
      sum += power;
    }
    float share = 1.0f / sum_of(sum);
    for (j = 0; j < n; j += LANES) store(row + j, load(row + j) * share);
    for (; j < a->wide; j += LANES) store(row + j, (vec){0});
  }
}

/* Gradients by the weights become those by the scores before their scaling. */
HELPER void weigh_back(const attention *a) {
  float scale = 1.0f / sqrtf((float)a->each);
  for (long i = 0; i < a->length; i++) {
    const float *weights = a->weights + i * a->wide;
    float *row = a->slopes + i * a->wide;
    vec sum = {0};
    long j, n = i + 1;
    for (j = 0; j < n; j += LANES) {
      vec slope = (vec)((ints)load(row + j) & first_lanes(n - j));
      store(row + j, slope);
      sum += slope * load(weights + j);
    }
    float mean = sum_of(sum);
    for (j = 0; j < n; j += LANES)
      store(row + j, load(weights + j) * (load(row + j) - mean) * scale);
    for (; j < a->wide; j += LANES) store(row + j, (vec){0});
  }
}

/* mixed (T, e) of one head's queries, keys and values. */
HELPER void attend(const attention *a, const float *q, const float *k, const float *v,
                   float *mixed) {
  pair_up(a, q, a->stride, k, a->stride, a->weights);
  weigh(a);
  mix(a, a->weights, 0, v, a->stride, mixed, a->mixed_rows);
}

HELPER void attend_back(const attention *a, const float *q, const float *k, const float *v,
                        const float *d_mixed, float *dq, float *dk, float *dv) {
  pair_up(a, q, a->stride, k, a->stride, a->weights);
  weigh(a);
  pair_up(a, d_mixed, a->mixed_stride, v, a->stride, a->slopes);
  weigh_back(a);
  mix(a, a->slopes, 0, k, a->stride, dq, a->rows);
  mix(a, a->slopes, 1, q, a->stride, dk, a->rows);
  mix(a, a->weights, 1, d_mixed, a->mixed_stride, dv, a->rows);
}

#endif
