/* Products with a narrow matrix, one of a layer's two factors of rank R: x (N, n) times (n, R), and
   gradients (R, columns).

   A panel holds LANES columns of the narrow matrix. Where there are at most half as many, a vector
   holds two lines of them, number beside number, and two numbers of x at once are multiplied with it. */

#ifndef PFL_LM_NARROW
#define PFL_LM_NARROW

#include "panels.h"

#define HALF (LANES / 2)
#define NEAR_NARROW 40 /* rows of a wide matrix that stay in the first cache beside a narrow one */

typedef int64_t two_by_two __attribute__((vector_size(4 * LANES)));
typedef float half_vec __attribute__((vector_size(4 * HALF)));

/* Floats that a packed narrow matrix (depth, R) takes. */
HELPER long narrow_size(long depth, long rank) {
  if (rank <= HALF) return rank ? (depth + 1) / 2 * LANES : 0;
  return (rank + LANES - 1) / LANES * LANES * depth;
}

/* Pack a factor (R, depth), which lies row by row; what is missing is 0. */
HELPER void pack_narrow(long depth, long rank, const float *factor, float *packed) {
  int whole = rank <= HALF ? rank == HALF && depth % 2 == 0 : rank % LANES == 0;
  if (!whole) memset(packed, 0, 4 * narrow_size(depth, rank));
  if (rank <= HALF) {
    for (long k = 0; k < depth; k += 2, packed += LANES)
      for (long j = 0; j < rank; j++)
        memcpy(packed + 2 * j, factor + j * depth + k, 4 * smaller(2, depth - k));
  } else {
    for (long j = 0; j < rank; j += LANES, packed += LANES * depth)
      turn(smaller(LANES, rank - j), depth, factor + j * depth, depth, packed, LANES, 1.0f);
  }
}

/* Two numbers that follow one another, again and again. */
INLINE vec all_pairs(const float *x) {
  int64_t two;
  memcpy(&two, x, 8);
  return (vec)(two - (two_by_two){0});
}

/* Sums of lanes that stand side by side. */
INLINE half_vec sums_of_pairs(vec x) {
#if LANES == 16
  return __builtin_shufflevector(x, x, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(x, x, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(x, x, 0, 2, 4, 6) + __builtin_shufflevector(x, x, 1, 3, 5, 7);
#endif
}

/* Rows through a panel with `lines` lines in a vector, a constant, 1 or 2: even vectors in one
   register, odd ones in another. */
INLINE void narrow_tile(int rows, int lines, long n, const float *x, const float *panel,
                        float scale, float *to, long stride, long columns) {
  vec sum[HEIGHT][2] = {{{0}}};
  long k = 0;
  for (; k + 2 * lines <= n; k += 2 * lines, panel += 2 * LANES) {
    vec even = load(panel), odd = load(panel + LANES);
    IN_REGISTER(even);
    IN_REGISTER(odd);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      const float *at = x + i * n + k;
      sum[i][0] += (lines == 2 ? all_pairs(at) : all(*at)) * even;
      sum[i][1] += (lines == 2 ? all_pairs(at + 2) : all(at[1])) * odd;
    }
  }
  for (; k < n; k += lines, panel += LANES)
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      const float *at = x + i * n + k, last[2] = {*at, 0};
      sum[i][0] += (lines == 2 ? all_pairs(k + 1 < n ? at : last) : all(*at)) * load(panel);
    }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
    vec total = sum[i][0] + sum[i][1];
    half_vec of_pairs = sums_of_pairs(total) * scale;
    if (lines == 2)
      memcpy(to + i * stride, &of_pairs, 4 * columns);
    else
      put(to + i * stride, total * scale, columns);
  }
}

/* narrow (rows, R) = scale · x A of (rows, n) and a packed (n, R). */
HELPER void multiply_narrow(long rows, long n, long rank, const float *x, const float *a,
                            float scale, float *narrow) {
  for (long i = 0; i < rows && rank && rank <= HALF; i += HEIGHT)
    OF_HEIGHT(smaller(HEIGHT, rows - i), narrow_tile, 2, n, x + i * n, a, scale, narrow + i * rank,
              rank, rank)
  for (long j = 0; j < rank && rank > HALF; j += LANES)
    for (long i = 0; i < rows; i += HEIGHT)
      OF_HEIGHT(smaller(HEIGHT, rows - i), narrow_tile, 1, n, x + i * n, a + j * n, scale,
                narrow + i * rank + j, rank, smaller(LANES, rank - j))
}

/* into (R, columns) += narrowᵀ wide of (n, R) and (n, columns), both as they lie. */
INLINE void factor_tile(int rows, long n, const float *narrow, long rank, const float *wide,
                        long step, float *into, long stride, long columns) {
  vec sum[HEIGHT][2];
  const float *row[HEIGHT];
  long to[HEIGHT];
  for (int i = 0; i < rows; i++)
    row[i] = narrow + i, to[i] = i * stride, sum[i][0] = sum[i][1] = (vec){0};
  add_products(rows, n, row, rank, wide, step, 0, sum);
  put_sums(rows, sum, into, to, columns, 1);
}

HELPER void factor_gradient(long rows, long rank, const float *narrow, long columns,
                            const float *wide, float *into) {
  float tail[NEAR_NARROW * WIDTH];
  for (long first = 0; first < rows; first += NEAR_NARROW) {
    long n = smaller(NEAR_NARROW, rows - first);
    for (long j = 0; j < columns; j += WIDTH) {
      const float *panel = wide + first * columns + j;
      int whole = columns - j >= WIDTH;
      if (!whole) pack(n, columns - j, panel, columns, 1, tail);
      for (long r = 0, height; r < rank; r += height) {
        height = height_of(rank - r);
        OF_HEIGHT(height, factor_tile, n, narrow + first * rank + r, rank, whole ? panel : tail,
                  whole ? columns : WIDTH, into + r * columns + j, columns, columns - j)
      }
    }
  }
}

#endif
