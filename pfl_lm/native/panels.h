/* Matrix products: C (M, N) = or += A (M, K) B (K, N), float32, on one core.

   B is packed once into panels of 2 LANES columns and used many times: for a weight, by all time
   steps of a local step and by all devices that hold it frozen. A tile of up to HEIGHT rows by one panel
   has its sums in registers. Rows of A and C lie anywhere (`at`: offsets in floats), so that rows of
   several devices are one product without being copied together.

   Each sum is taken over stretches of DEPTH products, in order, whatever the number of rows: a
   row's result has the same bits beside any other rows.

   Source: the division into panels is Goto and van de Geijn 2008 (ACM TOMS 34(3)), section 4. */

#ifndef PFL_LM_PANELS
#define PFL_LM_PANELS

#include "vector.h"

#define WIDTH (2 * LANES) /* columns of a panel */

/* HEIGHT: most rows of a tile, two sums each: at least 12 sums hide the latency of one, and more of
   them share what is loaded, where there are registers: 32 of AVX-512, 16 of other processors. */
#if LANES == 16
#define HEIGHT 8
#define TALL(tile, ...)                \
  case 6: tile(6, __VA_ARGS__); break; \
  case 7: tile(7, __VA_ARGS__); break;
#else
#define HEIGHT 6
#define TALL(tile, ...)
#endif

#define DEPTH 336     /* products of a stretch: its part of a panel stays in the first cache */
#define NEAR_ROWS 144 /* of A, that stay in the second cache while panels pass */

/* Keeps what was loaded in its register: compilers would load it again for every row. */
#if defined(__AVX512F__) || (defined(__AVX__) && LANES == 8)
#define IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define IN_REGISTER(v)
#endif

INLINE long panels(long columns) { return (columns + WIDTH - 1) / WIDTH; }

INLINE long smaller(long a, long b) { return a < b ? a : b; }

/* add_products; `ahead`, a constant: whether a cache line of `soon` is asked for every two products. */
INLINE void add_lines(int rows, long n, const float *const *row, long stride, const float *panel,
                      long step, const float *soon, int ahead, vec (*sum)[2]) {
  long k = 0;
  for (; k + 2 <= n; k += 2) {
    if (ahead) __builtin_prefetch(soon, 0, 2);
    soon += 16 * ahead;
#pragma GCC unroll 4
    for (int line = 0; line < 2; line++, panel += step) {
      vec left = load(panel), right = load(panel + LANES);
      IN_REGISTER(left);
      IN_REGISTER(right);
#pragma GCC unroll 8
      for (int i = 0; i < rows; i++) {
        vec one = all(row[i][(k + line) * stride]);
        sum[i][0] += one * left;
        sum[i][1] += one * right;
      }
    }
  }
#pragma GCC unroll 1
  for (; k < n; k++, panel += step) {
    vec left = load(panel), right = load(panel + LANES);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      vec one = all(row[i][k * stride]);
      sum[i][0] += one * left;
      sum[i][1] += one * right;
    }
  }
}

/* What `rows` rows of A add to their sums with n lines of a panel: sum[i] += row[i][k stride] line[k].
   `soon`, if any, is needed later: a cache line of it is asked for every two products. Where nothing
   need be asked for, nothing is: on a core that is shared, instructions are what counts. */
INLINE void add_products(int rows, long n, const float *const *row, long stride, const float *panel,
                         long step, const float *soon, vec (*sum)[2]) {
  if (soon)
    add_lines(rows, n, row, stride, panel, step, soon, 1, sum);
  else
    add_lines(rows, n, row, stride, panel, step, 0, 0, sum);
}

/* The sums stored to, or added to, rows of C: as many columns of the panel as there are. */
INLINE void put_sums(int rows, vec (*sum)[2], float *c, const long *to, long columns, int add) {
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
    float *line = c + to[i];
    if (columns >= WIDTH) {
      store(line, add ? load(line) + sum[i][0] : sum[i][0]);
      store(line + LANES, add ? load(line + LANES) + sum[i][1] : sum[i][1]);
    } else {
      float tail[WIDTH];
      store(tail, sum[i][0]);
      store(tail + LANES, sum[i][1]);
      for (int j = 0; j < columns; j++) line[j] = add ? line[j] + tail[j] : tail[j];
    }
  }
}

/* Ask for where a row of sums will be stored: WIDTH numbers, which mostly lie in two cache lines. */
INLINE void expect(const float *line) {
  __builtin_prefetch(line, 1);
  __builtin_prefetch(line + WIDTH - 1, 1);
}

/* Sums of `rows` rows of A, row i beginning at a + at[i]. */
INLINE void begin_sums(int rows, const float *a, const long *at, const float **row, vec (*sum)[2]) {
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
    row[i] = a + at[i];
    sum[i][0] = sum[i][1] = (vec){0};
  }
}

/* Rows of the next tile where `left` are left: tiles of like height, as few as there can be. */
INLINE long height_of(long left) {
  long tiles = (left + HEIGHT - 1) / HEIGHT;
  return (left + tiles - 1) / tiles;
}

/* tile(height, ...), the height a constant in each case: its sums are then in registers. */
#define OF_HEIGHT(height, tile, ...)     \
  switch (height) {                      \
    case 1: tile(1, __VA_ARGS__); break; \
    case 2: tile(2, __VA_ARGS__); break; \
    case 3: tile(3, __VA_ARGS__); break; \
    case 4: tile(4, __VA_ARGS__); break; \
    case 5:                              \
      tile(5, __VA_ARGS__);              \
      break;                             \
      TALL(tile, __VA_ARGS__)            \
    default: tile(HEIGHT, __VA_ARGS__);  \
  }

INLINE void tile(int rows, long n, const float *a, const long *at, const float *b, long step,
                 float *c, const long *to, long columns, int add, const float *soon) {
  vec sum[HEIGHT][2];
  const float *row[HEIGHT];
  for (int i = 0; i < rows; i++) expect(c + to[i]);
  begin_sums(rows, a, at, row, sum);
  add_products(rows, n, row, 1, b, step, soon, sum);
  put_sums(rows, sum, c, to, columns, add);
}

/* Rows [0, rows) against one panel, cut into tiles of like height. The first two of them bring the
   panel that is next to the second cache, half of it each: all at once it would queue. */
HELPER void pass(long rows, long n, const float *a, const long *at, const float *b, long step,
                 float *c, const long *to, long columns, int add, const float *next) {
  const float *soon = next;
  for (long done = 0, height; done < rows; done += height) {
    height = height_of(rows - done);
    OF_HEIGHT(height, tile, n, a, at + done, b, step, c, to + done, columns, add, soon)
    soon = next && soon == next ? next + n * WIDTH / 2 : 0;
  }
}

/* C = or += A B with B packed; row i of A begins at a + at[i], of C at c + to[i]. */
HELPER void multiply(long rows, long columns, long depth, const float *a, const long *at,
                     const void *b, float *c, const long *to, int add) {
  const float *packed = b;
  for (long first = 0; first < rows; first += NEAR_ROWS)
    for (long k = 0; k < depth; k += DEPTH)
      for (long j = 0; j < columns; j += WIDTH)
        pass(smaller(NEAR_ROWS, rows - first), smaller(DEPTH, depth - k), a + k, at + first,
             packed + j * depth + k * WIDTH, WIDTH, c + j, to + first, columns - j, add || k > 0,
             packed + (j + WIDTH) * depth + k * WIDTH);
}

/* Offsets of rows that follow one another at a stride. */
HELPER void offsets(long rows, long stride, long *at) {
  for (long i = 0; i < rows; i++) at[i] = i * stride;
}

/* Eight rows of eight numbers become columns, bits as they are. */
INLINE void rows_to_columns(eight *r) {
  eight s[8];
  for (int i = 0; i < 4; i++) { /* rows i and i + 4, number by number; three times over */
    s[2 * i] = __builtin_shufflevector(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    s[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
  for (int i = 0; i < 4; i++) {
    r[2 * i] = __builtin_shufflevector(s[i], s[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    r[2 * i + 1] = __builtin_shufflevector(s[i], s[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
  for (int i = 0; i < 4; i++) {
    s[2 * i] = __builtin_shufflevector(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    s[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i++) r[i] = s[i];
}

/* Eight rows of eight numbers, turned: to[j * wide + i] = factor from[i * stride + j]. */
INLINE void turn_eight(const float *from, long stride, float *to, long wide, float factor) {
  eight r[8];
  for (int i = 0; i < 8; i++) r[i] = *(const loose_eight *)(from + i * stride) * factor;
  rows_to_columns(r);
  for (int j = 0; j < 8; j++) *(loose_eight *)(to + j * wide) = r[j];
}

/* to[j * wide + i] = factor from[i * stride + j] for i < rows, j < columns. */
HELPER void turn(long rows, long columns, const float *from, long stride, float *to, long wide,
                 float factor) {
  long j = 0;
  for (; j + 8 <= columns; j += 8) {
    for (long next = 0; next < rows && rows >= 8; next += 8) {
      long i = smaller(next, rows - 8); /* the last eight, some of them for the second time */
      turn_eight(from + i * stride + j, stride, to + j * wide + i, wide, factor);
    }
    for (long i = 0; i < rows && rows < 8; i++)
      for (long y = j; y < j + 8; y++) to[y * wide + i] = factor * from[i * stride + y];
  }
  for (; j < columns; j++)
    for (long i = 0; i < rows; i++) to[j * wide + i] = factor * from[i * stride + j];
}

/* Pack B (K, N), whose element (k, j) lies at b[k * down + j * along], one of the two being 1, into
   panels; the columns that are missing from the last one are 0. */
HELPER void pack(long depth, long columns, const float *b, long down, long along, float *packed) {
  for (long j = 0; j < columns; j += WIDTH, packed += depth * WIDTH) {
    long width = smaller(WIDTH, columns - j);
    if (width < WIDTH) memset(packed, 0, 4 * depth * WIDTH);
    const float *from = b + j * along;
    if (along != 1)
      turn(width, depth, from, along, packed, WIDTH, 1.0f);
    else if (width == WIDTH)
      for (long k = 0; k < depth; k++) memcpy(packed + k * WIDTH, from + k * down, 4 * WIDTH);
    else
      for (long k = 0; k < depth; k++) memcpy(packed + k * WIDTH, from + k * down, 4 * width);
  }
}

#endif
