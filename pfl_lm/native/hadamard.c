/* The Hadamard transform, and signs: the rotation of pfl_lm/dp/rotation.py.

   A stage replaces a pair of numbers by sum and difference. Stages between numbers that lie far
   apart are taken together, on columns that are copied into the first cache. */
#include "vector.h"

#define OCTET 8    /* numbers whose signs are a byte: a vector */
#define CHUNK 4096 /* numbers that stay in the first cache */
#define ROWS 128   /* of a column */
#define COLUMN 16  /* numbers of a row that lie in one cache line */

typedef uint32_t words __attribute__((vector_size(4 * OCTET)));
typedef uint32_t loose_words __attribute__((vector_size(4 * OCTET), aligned(4), may_alias));

/* The transform of one vector's eight numbers, unscaled. */
INLINE eight within(eight x) {
  const eight one = {1, -1, 1, -1, 1, -1, 1, -1}, two = {1, 1, -1, -1, 1, 1, -1, -1};
  const eight four = {1, 1, 1, 1, -1, -1, -1, -1};
  x = x * one + __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
  x = x * two + __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  return x * four + __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
}

/* The transform along `rows` rows, a power of two, that lie back to back. */
static void across(float *at, int64_t rows, int64_t width) {
  for (int64_t half = width; half < rows * width; half *= 2)
    for (int64_t pair = 0; pair < rows * width; pair += 2 * half)
      for (int64_t i = pair; i < pair + half; i += OCTET) {
        loose_eight *low = (loose_eight *)(at + i), *high = (loose_eight *)(at + i + half);
        eight a = *low, b = *high;
        *low = a + b;
        *high = a - b;
      }
}

/* The same along rows that lie `stride` apart, column by column. */
static void across_far(float *at, int64_t rows, int64_t stride) {
  float column[ROWS * COLUMN];
  for (int64_t first = 0; first < stride; first += COLUMN) {
    for (int64_t row = 0; row < rows; row++)
      memcpy(column + row * COLUMN, at + row * stride + first, COLUMN * sizeof *at);
    across(column, rows, COLUMN);
    for (int64_t row = 0; row < rows; row++)
      memcpy(at + row * stride + first, column + row * COLUMN, COLUMN * sizeof *at);
  }
}

/* block = scale * H block, for `size` numbers, a power of two from OCTET on. */
void hadamard(float *block, int64_t size, float scale) {
  const int64_t chunk = size < CHUNK ? size : CHUNK;
  for (int64_t first = 0; first < size; first += chunk) {
    for (int64_t i = first; i < first + chunk; i += OCTET) {
      loose_eight *at = (loose_eight *)(block + i);
      *at = within(*at * scale);
    }
    across(block + first, chunk / OCTET, OCTET);
  }
  for (int64_t stride = chunk, rows; stride < size; stride *= rows) {
    rows = size / stride < ROWS ? size / stride : ROWS;
    for (int64_t first = 0; first < size; first += rows * stride)
      across_far(block + first, rows, stride);
  }
}

/* Turn the sign of block[i] where bit i of `signs` is set, for `size` numbers, a multiple of 8. */
void turn_signs(float *block, const uint8_t *signs, int64_t size) {
  const words lane = {31, 30, 29, 28, 27, 26, 25, 24};
  for (int64_t i = 0; i < size; i += OCTET) {
    loose_words *at = (loose_words *)(block + i);
    words bits = (words){0} + signs[i / 8];
    *at ^= bits << lane & 0x80000000u;
  }
}
