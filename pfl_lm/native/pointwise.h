/* What a transformer does row by row between its products: norms, activations, turned positions.

   Legend: D width of a row. */

#ifndef PFL_LM_POINTWISE
#define PFL_LM_POINTWISE

#include "vector.h"

#include <math.h>

#define EPSILON 1e-5f /* added to a norm's variance */

INLINE void add_numbers(const float *x, long n, vec *sum) { *sum += some(x, n); }

INLINE void add_squares(const float *x, long n, float mean, vec *sum) {
  vec off = (vec)((ints)(some(x, n) - mean) & first_lanes(n));
  *sum += off * off;
}

/* 1 / standard deviation of a row, and its mean. */
INLINE float moments(long width, const float *x, float *mean) {
  vec sum = {0}, squares = {0};
  OVER_LANES(add_numbers(x + j, n, &sum), width)
  *mean = sum_of(sum) / width;
  OVER_LANES(add_squares(x + j, n, *mean, &squares), width)
  return 1.0f / sqrtf(sum_of(squares) / width + EPSILON);
}

INLINE void put_normal(long n, const float *x, float mean, float scale, const float *gain,
                       const float *bias, float *y) {
  put(y, (some(x, n) - mean) * scale * some(gain, n) + some(bias, n), n);
}

/* y (rows, D) = gain · (x - mean) / deviation + bias. */
HELPER void normalise(long rows, long width, const float *x, const float *gain, const float *bias,
                      float *y) {
  for (; rows > 0; rows--, x += width, y += width) {
    float mean, scale = moments(width, x, &mean);
    OVER_LANES(put_normal(n, x + j, mean, scale, gain + j, bias + j, y + j), width)
  }
}

/* What a row's gradient has along the constant and along the normalised row itself. */
INLINE void add_along(long n, const float *x, float mean, float scale, const float *gain,
                      const float *dy, vec *sum, vec *along) {
  vec by = some(dy, n) * some(gain, n);
  *sum += by;
  *along += by * ((some(x, n) - mean) * scale);
}

INLINE void add_back(long n, const float *x, float mean, float scale, const float *gain,
                     const float *dy, float sum, float along, float *dx) {
  vec normal = (some(x, n) - mean) * scale, by = some(dy, n) * some(gain, n);
  put(dx, some(dx, n) + (by - sum - normal * along) * scale, n);
}

INLINE void add_norm_gradients(long n, const float *x, float mean, float scale, const float *dy,
                               float *d_gain, float *d_bias) {
  put(d_gain, some(d_gain, n) + some(dy, n) * ((some(x, n) - mean) * scale), n);
  put(d_bias, some(d_bias, n) + some(dy, n), n);
}

/* To dx (rows, D) is added what dy brings through the norm; to both gradients, if there, theirs. */
HELPER void normalise_back(long rows, long width, const float *x, const float *gain,
                           const float *dy, float *dx, float *d_gain, float *d_bias) {
  for (; rows > 0; rows--, x += width, dy += width, dx += width) {
    float mean, scale = moments(width, x, &mean);
    vec sum = {0}, along = {0};
    OVER_LANES(add_along(n, x + j, mean, scale, gain + j, dy + j, &sum, &along), width)
    float constant = sum_of(sum) / width, slope = sum_of(along) / width;
    OVER_LANES(add_back(n, x + j, mean, scale, gain + j, dy + j, constant, slope, dx + j), width)
    if (d_gain)
      OVER_LANES(add_norm_gradients(n, x + j, mean, scale, dy + j, d_gain + j, d_bias + j), width)
  }
}

/* x Φ(x), the exact GELU, and its slope Φ(x) + x φ(x). */
INLINE vec gelu_of(vec x) { return x * (0.5f + 0.5f * erf_of(x * 0.707106781186547524f)); }

INLINE vec gelu_slope(vec x) {
  vec density = 0.398942280401432678f * exp_of(-0.5f * x * x);
  return 0.5f + 0.5f * erf_of(x * 0.707106781186547524f) + x * density;
}

HELPER void activate(long count, int gelu, const float *x, float *y) {
  for (long j = 0; j < count; j += LANES) {
    vec before = some(x + j, count - j);
    put(y + j, gelu ? gelu_of(before) : either(before < 0.0f, (vec){0}, before), count - j);
  }
}

/* dy becomes the gradient by x. */
HELPER void activate_back(long count, int gelu, const float *x, float *dy) {
  for (long j = 0; j < count; j += LANES) {
    vec before = some(x + j, count - j), d = some(dy + j, count - j);
    put(dy + j, gelu ? d * gelu_slope(before) : either(before <= 0.0f, (vec){0}, d), count - j);
  }
}

/* Turn pairs of coordinates (j, j + e / 2) of a head's T rows by cos and sin (T, e / 2). */
HELPER void rotate(long length, long each, long stride, const float *cos, const float *sin,
                   float side, float *x) {
  long half = each / 2;
  for (; length > 0; length--, x += stride, cos += half, sin += half)
    for (long j = 0; j < half; j++) {
      float first = x[j], second = x[j + half], s = side * sin[j];
      x[j] = first * cos[j] - second * s;
      x[j + half] = first * s + second * cos[j];
    }
}

#endif
