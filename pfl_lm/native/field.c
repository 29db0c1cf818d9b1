/* Shamir's sharing over the prime 2^256 + 297: polynomials evaluated, and Lagrange's coefficients.

   The same numbers as from the integers of pfl_lm/secagg/sharing.py. Here an element is five words
   of 64 bits, the lowest first, always below the prime. */
#include <stdint.h>
#include <string.h>

#define WORDS 5
#define SHARE 33   /* bytes of a share */
#define EXCESS 297 /* the prime is 2^256 and this: what lies above 2^256 counts -297 times */

typedef unsigned __int128 wide;
typedef struct {
  uint64_t word[WORDS];
} element;

static const element PRIME = {{EXCESS, 0, 0, 0, 1}}, ONE = {{1}};

/* a - b; return whether that is negative, and then 2^320 is added to it. */
static int subtract(element *a, const element *b) {
  uint64_t borrow = 0;
  for (int i = 0; i < WORDS; i++) {
    wide difference = (wide)a->word[i] - b->word[i] - borrow;
    a->word[i] = (uint64_t)difference;
    borrow = (uint64_t)(difference >> 64) & 1;
  }
  return (int)borrow;
}

static void add(element *a, const element *b) {
  wide carry = 0;
  for (int i = 0; i < WORDS; i++) {
    carry += (wide)a->word[i] + b->word[i];
    a->word[i] = (uint64_t)carry;
    carry >>= 64;
  }
}

/* low (4 words) + 2^256 * high, where high is below 2^310. */
static element fold(const uint64_t *low, const element *high) {
  element sum = {{low[0], low[1], low[2], low[3], 0}}, minus = {{0}}, plus = {{0}}, smaller;
  wide carry = 0;
  for (int i = 0; i < WORDS; i++) { /* 297 * high, below 2^320 */
    carry += (wide)high->word[i] * EXCESS;
    minus.word[i] = (uint64_t)carry;
    carry >>= 64;
  }
  carry = (wide)minus.word[4] * EXCESS; /* and what of that lies above 2^256 again */
  minus.word[4] = 0;
  plus.word[0] = (uint64_t)carry;
  plus.word[1] = (uint64_t)(carry >> 64);
  add(&sum, &plus);
  if (subtract(&sum, &minus)) add(&sum, &PRIME);
  smaller = sum;
  return subtract(&smaller, &PRIME) ? sum : smaller;
}

static element multiply(const element *a, const element *b) {
  uint64_t product[2 * WORDS] = {0};
  for (int i = 0; i < WORDS; i++) {
    wide carry = 0;
    for (int j = 0; j < WORDS; j++) {
      carry += (wide)a->word[i] * b->word[j] + product[i + j];
      product[i + j] = (uint64_t)carry;
      carry >>= 64;
    }
    product[i + WORDS] = (uint64_t)carry;
  }
  element high = {{product[4], product[5], product[6], product[7], product[8]}};
  return fold(product, &high);
}

/* a * factor + b, for a factor below 2^62. */
static element multiply_add(const element *a, uint64_t factor, const element *b) {
  uint64_t sum[WORDS];
  wide carry = 0;
  for (int i = 0; i < WORDS; i++) {
    carry += (wide)a->word[i] * factor + b->word[i];
    sum[i] = (uint64_t)carry;
    carry >>= 64;
  }
  element high = {{sum[4]}};
  return fold(sum, &high);
}

/* x_i times the product of all x_j - x_i with j != i, where `point` is x_i. The factors are small: as
   many as fit a word are multiplied there. */
static element differences(const uint64_t *points, int64_t count, uint64_t point) {
  const element none = {{0}};
  element product = ONE, turned = PRIME;
  uint64_t some = point, negative = 0;
  for (int64_t j = 0; j < count; j++) {
    if (points[j] == point) continue;
    negative ^= points[j] < point;
    uint64_t factor = points[j] < point ? point - points[j] : points[j] - point;
    if ((wide)some * factor >> 62) {
      product = multiply_add(&product, some, &none);
      some = 1;
    }
    some *= factor;
  }
  product = multiply_add(&product, some, &none);
  subtract(&turned, &product);
  return negative ? turned : product;
}

/* a^(prime - 2), which is 1/a. */
static element invert(const element *a) {
  element result = ONE;
  const element exponent = {{EXCESS - 2, 0, 0, 0, 1}};
  for (int bit = 256; bit >= 0; bit--) {
    result = multiply(&result, &result);
    if (exponent.word[bit / 64] >> (bit % 64) & 1) result = multiply(&result, a);
  }
  return result;
}

/* values[i] = the polynomial at points[i] (below 2^32); `coefficients` of the highest power first. */
void evaluate(const element *coefficients, int64_t terms, const uint64_t *points, int64_t count,
              element *values) {
  for (int64_t i = 0; i < count; i++) {
    element value = {{0}};
    for (int64_t term = 0; term < terms; term++)
      value = multiply_add(&value, points[i], &coefficients[term]);
    values[i] = value;
  }
}

/* weights[i] = the product over j != i of x_j / (x_j - x_i), for distinct points below 2^32 and
   not 0; `scratch` has room for `count` elements. */
void lagrange(const uint64_t *points, int64_t count, element *weights, element *scratch) {
  const element none = {{0}};
  element whole = ONE, prefix = ONE;
  for (int64_t i = 0; i < count; i++) {
    element below = differences(points, count, points[i]);
    weights[i] = below;
    scratch[i] = prefix; /* Montgomery: one inversion for all */
    prefix = multiply(&prefix, &below);
    whole = multiply_add(&whole, points[i], &none);
  }
  element inverse = invert(&prefix);
  for (int64_t i = count - 1; i >= 0; i--) {
    element below = weights[i], one = multiply(&inverse, &scratch[i]);
    weights[i] = multiply(&whole, &one);
    inverse = multiply(&inverse, &below);
  }
}

/* The sum of all weights[i] times shares[i], which lie back to back. */
void combine(const element *weights, const uint8_t *shares, int64_t count, element *sum) {
  element total = {{0}};
  for (int64_t i = 0; i < count; i++, shares += SHARE) {
    element share = {{0}}, smaller;
    memcpy(&share, shares, SHARE); /* words are little-endian, as shares are */
    share = multiply(&share, &weights[i]);
    add(&total, &share);
    smaller = total;
    if (!subtract(&smaller, &PRIME)) total = smaller;
  }
  *sum = total;
}
