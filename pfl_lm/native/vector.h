/* Vectors of float32 and the functions that gates, powers and activations are made of.

   Polynomials on a reduced range, of the usual minimax kind; tests/native state their errors: 2 ulp
   for powers, 4 for the rest. Infinity gives the limit, NaN gives NaN. Nothing here is special to
   one processor: the compiler turns vectors into what the machine has. */

#ifndef PFL_LM_VECTOR
#define PFL_LM_VECTOR

#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif

/* Lets the caller compare a struct with its own description of it: pfl_lm/native/bindings.py. */
#define EXPORT_SIZE(type) \
  long size_of_##type(void) { return sizeof(type); }

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define HELPER static __attribute__((unused)) /* of a header: not every file calls it */

INLINE vec all(float x) { return x - (vec){0}; }

INLINE vec load(const float *from) { return *(const loose *)from; }

INLINE void store(float *to, vec x) { *(loose *)to = x; }

/* The first `count` numbers, where fewer than LANES are left; the rest reads as 0. */
INLINE vec load_some(const float *from, long count) {
  vec x = {0};
  memcpy(&x, from, 4 * count);
  return x;
}

INLINE void store_some(float *to, vec x, long count) { memcpy(to, &x, 4 * count); }

/* What is left of a row: LANES numbers, or `count` where that is fewer. */
INLINE vec some(const float *from, long count) {
  return count >= LANES ? load(from) : load_some(from, count);
}

INLINE void put(float *to, vec x, long count) {
  if (count >= LANES)
    store(to, x);
  else
    store_some(to, x, count);
}

/* All bits of the first `count` lanes. */
INLINE ints first_lanes(long count) {
  ints lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  return lane < (int32_t)count;
}

INLINE vec either(ints where, vec yes, vec no) {
  return (vec)(((ints)yes & where) | ((ints)no & ~where));
}

typedef float eight __attribute__((vector_size(32)));
typedef float loose_eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef float quarter __attribute__((vector_size(16)));

/* The lanes of a vector, two times folded in the middle or, of 16, three times: sum and greatest. */
#if LANES == 16
#define FOLDED(x, op)                                                                          \
  op(op(__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7)), \
     op(__builtin_shufflevector(x, x, 8, 9, 10, 11),                                           \
        __builtin_shufflevector(x, x, 12, 13, 14, 15)))
#else
#define FOLDED(x, op) \
  op(__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7))
#endif

INLINE quarter sums(quarter a, quarter b) { return a + b; }

INLINE quarter greater(quarter a, quarter b) {
  __typeof__(a > b) where = a > b;
  return (quarter)(((__typeof__(where))a & where) | ((__typeof__(where))b & ~where));
}

INLINE float sum_of(vec x) {
  quarter y = FOLDED(x, sums);
  return (y[0] + y[2]) + (y[1] + y[3]);
}

INLINE float greatest_of(vec x) {
  quarter y = FOLDED(x, greater);
  float even = y[0] > y[2] ? y[0] : y[2], odd = y[1] > y[3] ? y[1] : y[3];
  return even > odd ? even : odd;
}

/* `call` with n numbers at place j of a row: LANES, a constant, but for what is left at its end. */
#define OVER_LANES(call, width)                    \
  {                                                \
    long j = 0, n = LANES;                         \
    for (; j + LANES <= (width); j += LANES) call; \
    if (j < (width)) {                             \
      n = -j + (width);                            \
      call;                                        \
    }                                              \
  }

/* p 2^n for whole n from -126, where it is 0, to 128, where 2^n itself is infinite. */
INLINE vec times_power(vec p, vec n) {
  return (p + p) * (vec)((__builtin_convertvector(n, ints) + 126) << 23);
}

/* The nearest whole number, for |x| < 2^22; NaN stays NaN. */
INLINE vec nearest(vec x) { return (x + 12582912.0f) - 12582912.0f; }

/* 2^(1 + f) for f in [-1/2, 1/2]. */
INLINE vec broken_power(vec f) {
  vec p = all(2 * 1.535336188319500e-4f);
  p = p * f + 2 * 1.339887440266574e-3f;
  p = p * f + 2 * 9.618437357674640e-3f;
  p = p * f + 2 * 5.550332471162809e-2f;
  p = p * f + 2 * 2.402264791363012e-1f;
  p = p * f + 2 * 6.931472028550421e-1f;
  return p * f + 2.0f;
}

/* The least and the greatest of a bound and x; of NaN, NaN. */
#if defined(__AVX512F__) && LANES == 16
INLINE vec at_most(float bound, vec x) { return (vec)_mm512_min_ps((__m512)all(bound), (__m512)x); }
INLINE vec at_least(float bound, vec x) {
  return (vec)_mm512_max_ps((__m512)all(bound), (__m512)x);
}
#elif defined(__AVX__) && LANES == 8
INLINE vec at_most(float bound, vec x) { return (vec)_mm256_min_ps((__m256)all(bound), (__m256)x); }
INLINE vec at_least(float bound, vec x) {
  return (vec)_mm256_max_ps((__m256)all(bound), (__m256)x);
}
#else
INLINE vec at_most(float bound, vec x) { return either(x > bound, all(bound), x); }
INLINE vec at_least(float bound, vec x) { return either(x < bound, all(bound), x); }
#endif

/* 2^x; 0 below 2^-125.5, about where float32 would go on with fewer digits. Added to x, 1.5 2^23 +
   126 leaves the exponent of the nearest whole power, less 1, in the lowest bits. */
INLINE vec exp2_of(vec x) {
  vec inside = at_least(-126.0f, at_most(128.0f, x));
  vec shifted = inside + 12583038.0f;
  vec fraction = inside - (shifted - 12583038.0f);
  return broken_power(fraction) * (vec)((ints)shifted << 23);
}

/* e^x; 0 below 2^-125.5. The reduction carries the rounding error of the product with log 2. */
INLINE vec exp_of(vec x) {
  vec inside = at_least(-87.3f, at_most(89.0f, x));
  vec n = nearest(inside * 1.44269504088896341f);
  vec f = (inside - n * 0.693359375f) + n * 2.12194440e-4f; /* |f| <= log(2) / 2 */
  vec p = all(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  return times_power(p, n);
}

INLINE vec sigmoid_of(vec x) { return 1.0f / (1.0f + exp_of(-x)); }

/* tanh x: x + x^3 P(x^2) near 0, where 1 - 2 / (e^2x + 1) would lose digits. */
INLINE vec tanh_of(vec x) {
  vec size = (vec)((ints)x & 0x7fffffff), s = x * x;
  vec p = all(-5.70498872745e-3f);
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  vec near = p * s * x + x;
  vec far = 1.0f - 2.0f / (exp_of(size + size) + 1.0f);
  far = (vec)((ints)far | ((ints)x & (ints)(all(-0.0f))));
  return either(size < 0.625f, near, far);
}

/* erf x: x P(x^2) near 0; beyond, 1 - e^(x Q(x)), which is 1 in float32 from 4 on. */
INLINE vec erf_of(vec x) {
  vec size = at_most(4.0f, (vec)((ints)x & 0x7fffffff)), s = x * x;
  vec p = all(7.8538577e-5f);
  p = p * s - 8.0101925e-4f;
  p = p * s + 5.18832756e-3f;
  p = p * s - 2.68538119e-2f;
  p = p * s + 1.12835851e-1f;
  p = p * s - 3.76126258e-1f;
  vec near = (p * s + 1.12837917f) * x;
  vec q = all(2.10643499e-4f);
  q = q * size - 3.18694888e-3f;
  q = q * size + 2.27984695e-2f;
  q = q * size - 1.05116150e-1f;
  q = q * size - 6.35831470e-1f;
  vec far = 1.0f - exp_of((q * size - 1.12848004f) * size);
  far = (vec)((ints)far | ((ints)x & (ints)(all(-0.0f))));
  return either(size < 1.0f, near, far);
}

#endif
