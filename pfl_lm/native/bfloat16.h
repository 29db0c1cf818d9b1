/* Products of float32 rows with a matrix in bfloat16: numbers of 16 bits, sums of float32.

   Two neighbours of a sum are a pair, one word of 32 bits: the first in its low half. Processors with
   AVX512_BF16 multiply and add a pair in one instruction; elsewhere its halves are numbers of float32
   whose low half is 0, multiplied one after the other. Panels, tiles and stretches are those of
   panels.h, with lines of pairs. Rows are rounded when they are multiplied, to the nearest even.
   Where the processor has tiles (tiles.h), they make whole stretches of 16 lines. */

#ifndef PFL_LM_BFLOAT16
#define PFL_LM_BFLOAT16

#include "tiles.h"

typedef ints loose_ints __attribute__((aligned(4), may_alias));

INLINE long pairs(long numbers) { return (numbers + 1) / 2; }

/* sum + the products of pairs, lane by lane. */
INLINE vec add_pairs(vec sum, ints a, ints b) {
#if defined(__AVX512BF16__) && LANES == 16
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  const int32_t high = (int32_t)0xffff0000;
  sum += (vec)(a & high) * (vec)(b & high);
  return sum + (vec)(a << 16) * (vec)(b << 16);
#endif
}

typedef eight any_eight __attribute__((aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint64_t twos __attribute__((vector_size(4 * LANES)));
typedef uint32_t halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t loose_words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t loose_halves __attribute__((vector_size(2 * LANES), aligned(4), may_alias));

/* Each number's highest 16 bits, rounded to the nearest, ties to even, as the highest of a lane; NaN
   stays NaN. */
INLINE words rounded(vec x) {
  words bits = (words)x, up = bits + 0x7fff + (bits >> 16 & 1);
  return (words)either(x == x, (vec)up, (vec)(bits | 0x400000));
}

/* LANES numbers as pairs. */
INLINE halves paired(vec x) {
  twos two = (twos)rounded(x);
  return __builtin_convertvector((two >> 16 & 0xffff) | (two >> 32 & 0xffff0000), halves);
}

/* LANES pairs of a number of x and the number of y in its lane. */
INLINE words paired_with(vec x, vec y) { return rounded(x) >> 16 | (rounded(y) & 0xffff0000); }

INLINE void store_words(uint32_t *to, words x) { *(loose_words *)to = x; }

/* n numbers of a row as pairs; an odd one has 0 beside it. */
HELPER void pair_row(long n, const float *row, uint32_t *to) {
  long k = 0;
  for (; k + LANES <= n; k += LANES) *(loose_halves *)(to + k / 2) = paired(load(row + k));
  halves last = paired(load_some(row + k, n - k));
  memcpy(to + k / 2, &last, 4 * pairs(n - k));
}

/* add_pair_lines by vectors. */
INLINE void add_in_registers(int rows, long n, const uint32_t *const *row, long stride,
                             const uint32_t *panel, const uint32_t *soon, int ahead,
                             vec (*sum)[2]) {
#pragma GCC unroll 2
  for (long k = 0; k < n; k++, panel += WIDTH) {
    if (ahead && k % 2 == 0) __builtin_prefetch(soon + 8 * k, 0, 2);
    ints left = *(const loose_ints *)panel, right = *(const loose_ints *)(panel + LANES);
    IN_REGISTER(left);
    IN_REGISTER(right);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      ints one = (int32_t)row[i][k * stride] - (ints){0};
      sum[i][0] = add_pairs(sum[i][0], one, left);
      sum[i][1] = add_pairs(sum[i][1], one, right);
    }
  }
}

/* Rows of a tile of pairs, and tile(height, ...): of vectors a constant height, as OF_HEIGHT. */
#ifdef TILES
#define MOST_ROWS TILE
#define OF_PAIR_HEIGHT(height, tile, ...) tile((int)(height), __VA_ARGS__);
#else
#define MOST_ROWS HEIGHT
#define OF_PAIR_HEIGHT OF_HEIGHT
#endif

/* height_of, of rows of pairs. */
INLINE long pair_height_of(long left) {
  long tiles = (left + MOST_ROWS - 1) / MOST_ROWS;
  return (left + tiles - 1) / tiles;
}

#ifdef TILES
/* TILE pairs of TILE neighbours of a panel, whose lines are `stride` words long, side by side. */
INLINE void turn_tile(const uint32_t *from, long stride, uint32_t *to) {
  for (int i = 0; i < TILE; i += 8)
    for (int k = 0; k < TILE; k += 8) {
      eight r[8];
      for (int x = 0; x < 8; x++) r[x] = *(const any_eight *)(from + (k + x) * stride + i);
      rows_to_columns(r);
      for (int x = 0; x < 8; x++) *(any_eight *)(to + (i + x) * TILE + k) = r[x];
    }
}

/* Lines that tiles multiply: see add_pair_lines. Rows begin at one distance from each other; those
   whose pairs lie apart are neighbours in a panel, and are turned first. */
HELPER long add_tiles(int rows, long n, const uint32_t *const *row, long stride,
                      const uint32_t *panel, vec (*sum)[2]) {
  if (stride == 1) return add_by_tiles(rows, n, row[0], rows > 1 ? row[1] - row[0] : n, panel, sum);
  uint32_t near[TILE * TILE];
  long k = 0;
  for (; tiles_work && k + TILE <= n; k += TILE) {
    turn_tile(row[0] + k * stride, stride, near);
    add_by_tiles(rows, TILE, near, TILE, panel + k * WIDTH, sum);
  }
  return k;
}

/* Tiles, then vectors for the lines that are left. */
HELPER void add_tiles_and_rest(int rows, long n, const uint32_t *const *row, long stride,
                               const uint32_t *panel, vec (*sum)[2]) {
  long done = add_tiles(rows, n, row, stride, panel, sum);
  for (int i = 0; i < rows && done < n; i += HEIGHT) {
    const uint32_t *rest[HEIGHT];
    int count = (int)smaller(HEIGHT, rows - i);
    for (int j = 0; j < count; j++) rest[j] = row[i + j] + done * stride;
    OF_HEIGHT(count, add_in_registers, n - done, rest, stride, panel + done * WIDTH, 0, 0, sum + i)
  }
}
#endif

/* sum[i] += row[i][k stride] line[k] over n lines of pairs. `ahead`, a constant: whether vectors ask
   for a cache line of `soon` every two of them. */
INLINE void add_pair_lines(int rows, long n, const uint32_t *const *row, long stride,
                           const uint32_t *panel, const uint32_t *soon, int ahead, vec (*sum)[2]) {
#ifdef TILES
  (void)soon, (void)ahead;
  add_tiles_and_rest(rows, n, row, stride, panel, sum);
#else
  add_in_registers(rows, n, row, stride, panel, soon, ahead, sum);
#endif
}

INLINE void pair_tile(int rows, long n, const uint32_t *a, const uint32_t *panel, float *c,
                      const long *to, long columns, int add) {
  vec sum[MOST_ROWS][2];
  const uint32_t *row[MOST_ROWS];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++) {
    expect(c + to[i]);
    row[i] = a + i * n;
    sum[i][0] = sum[i][1] = (vec){0};
  }
  add_pair_lines(rows, n, row, 1, panel, 0, 0, sum);
  put_sums(rows, sum, c, to, columns, add);
}

/* multiply() of panels.h with B packed by pack_bfloat16; DEPTH pairs are a stretch. */
HELPER void multiply_bfloat16(long rows, long columns, long depth, const float *a, const long *at,
                              const void *packed, float *c, const long *to, int add) {
  uint32_t near[NEAR_ROWS * DEPTH];
  for (long first = 0; first < rows; first += NEAR_ROWS)
    for (long k = 0; k < depth; k += 2 * DEPTH) {
      long count = smaller(NEAR_ROWS, rows - first), n = pairs(smaller(2 * DEPTH, depth - k));
      for (long i = 0; i < count; i++)
        pair_row(smaller(2 * DEPTH, depth - k), a + at[first + i] + k, near + i * n);
      for (long j = 0; j < columns; j += WIDTH) {
        const uint32_t *panel = (const uint32_t *)packed + j * pairs(depth) + k / 2 * WIDTH;
        for (long i = 0, height; i < count; i += height) {
          height = pair_height_of(count - i);
          OF_PAIR_HEIGHT(height, pair_tile, n, near + i * n, panel, c + j, to + first + i,
                         columns - j, add || k > 0)
        }
      }
    }
  end_tiles();
}

/* Pack rows of float32, B (K, N) at a stride, into panels of pairs of rows; what is missing is 0. */
HELPER void pack_pairs(long depth, long columns, const float *b, long stride, uint32_t *line) {
  for (long j = 0; j < columns; j += WIDTH)
    for (long k = 0; k < depth; k += 2, line += WIDTH)
      for (long i = 0; i < WIDTH; i += LANES) {
        const float *at = b + k * stride + j + i;
        long width = j + i < columns ? smaller(LANES, columns - j - i) : 0;
        vec x = width ? some(at, width) : (vec){0};
        vec y = width && k + 1 < depth ? some(at + stride, width) : (vec){0};
        store_words(line + i, paired_with(x, y));
      }
}

typedef uint16_t eight_shorts __attribute__((vector_size(16)));
typedef uint16_t any_shorts __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t eight_words __attribute__((vector_size(32)));
typedef uint32_t any_words __attribute__((vector_size(32), aligned(4), may_alias));

/* Eight columns of 16 numbers each, `stride` apart, become eight lines of a panel of pairs. */
INLINE void turn_pairs(const uint16_t *from, long stride, uint32_t *line) {
  eight r[8];
  for (int i = 0; i < 8; i++) r[i] = *(const any_eight *)(from + i * stride);
  rows_to_columns(r);
  for (int i = 0; i < 8; i++) *(any_eight *)(line + i * WIDTH) = r[i];
}

/* The same of 16 rows of eight numbers each. */
INLINE void join_rows(const uint16_t *from, long stride, uint32_t *line) {
  for (int i = 0; i < 8; i++, from += 2 * stride) {
    eight_shorts low = *(const any_shorts *)from, high = *(const any_shorts *)(from + stride);
    *(any_words *)(line + i * WIDTH) = __builtin_convertvector(low, eight_words) |
                                       __builtin_convertvector(high, eight_words) << 16;
  }
}

/* The same number by number, of a part with fewer columns or numbers. */
HELPER void pack_few(long depth, long columns, const uint16_t *from, long down, long along,
                     uint32_t *line) {
  for (long k = 0; k < depth; k += 2, line += WIDTH)
    for (long i = 0; i < 8; i++) {
      const uint16_t *at = from + k * down + i * along;
      line[i] = i >= columns ? 0 : at[0] | (k + 1 < depth ? (uint32_t)at[down] << 16 : 0);
    }
}

/* Pack B (K, N) of bfloat16, whose element (k, j) lies at b[k * down + j * along], one of the two
   being 1, into panels of pairs; what is missing is 0. */
HELPER void pack_bfloat16(long depth, long columns, const uint16_t *b, long down, long along,
                          void *packed) {
  uint32_t *panel = packed;
  for (long j = 0; j < columns; j += WIDTH, panel += pairs(depth) * WIDTH)
    for (long k = 0; k < depth; k += 16)
      for (long i = 0; i < WIDTH; i += 8) {
        const uint16_t *from = b + k * down + (j + i) * along;
        uint32_t *to = panel + k / 2 * WIDTH + i;
        if (j + i + 8 > columns || k + 16 > depth)
          pack_few(smaller(16, depth - k), columns - j - i, from, down, along, to);
        else if (down == 1)
          turn_pairs(from, along, to);
        else
          join_rows(from, down, to);
      }
}

#endif
