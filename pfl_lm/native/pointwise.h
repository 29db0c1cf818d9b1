/* What a transformer does row by row between its products: norms, activations, turned positions.

   Legend: D width of a row. */

#ifndef PFL_LM_POINTWISE
#define PFL_LM_POINTWISE

#include "vector.h"

#include <math.h>

#define EPSILON 1e-5f /* added to a norm's variance */

/* 1 / standard deviation of a row, and its mean. */
INLINE float moments(long width, const float *x, float *mean) {
  vec sum = {0}, squares = {0};
  for (long j = 0; j < width; j += LANES) sum += some(x + j, width - j);
  *mean = sum_of(sum) / width;
  for (long j = 0; j < width; j += LANES) {
    vec off = (vec)((ints)(some(x + j, width - j) - *mean) & first_lanes(width - j));
    squares += off * off;
  }
  return 1.0f / sqrtf(sum_of(squares) / width + EPSILON);
}

/* y (rows, D) = gain · (x - mean) / deviation + bias. */
static void normalise(long rows, long width, const float *x, const float *gain, const float *bias,
                      float *y) {
  for (; rows > 0; rows--, x += width, y += width) {
    float mean, scale = moments(width, x, &mean);
    for (long j = 0; j < width; j += LANES) {
      long n = width - j;
      put(y + j, (some(x + j, n) - mean) * scale * some(gain + j, n) + some(bias + j, n), n);
    }
  }
}

/* To dx (rows, D) is added what dy brings through the norm; to the gradients, if there, theirs. */
static void normalise_back(long rows, long width, const float *x, const float *gain, const float *dy,
                           float *dx, float *d_gain, float *d_bias) {
  for (; rows > 0; rows--, x += width, dy += width, dx += width) {
    float mean, scale = moments(width, x, &mean);
    vec sum = {0}, along = {0};
    for (long j = 0; j < width; j += LANES) {
      long n = width - j;
      vec normal = (some(x + j, n) - mean) * scale, d = some(dy + j, n), by = d * some(gain + j, n);
      sum += by, along += by * normal;
      if (d_gain) put(d_gain + j, some(d_gain + j, n) + d * normal, n);
      if (d_bias) put(d_bias + j, some(d_bias + j, n) + d, n);
    }
    float offset = sum_of(sum) / width, slope = sum_of(along) / width;
    for (long j = 0; j < width; j += LANES) {
      long n = width - j;
      vec normal = (some(x + j, n) - mean) * scale, by = some(dy + j, n) * some(gain + j, n);
      put(dx + j, some(dx + j, n) + (by - offset - normal * slope) * scale, n);
    }
  }
}

/* x Φ(x), the exact GELU, and its slope Φ(x) + x φ(x). */
INLINE vec gelu_of(vec x) { return x * (0.5f + 0.5f * erf_of(x * 0.707106781186547524f)); }

INLINE vec gelu_slope(vec x) {
  vec density = 0.398942280401432678f * exp_of(-0.5f * x * x);
  return 0.5f + 0.5f * erf_of(x * 0.707106781186547524f) + x * density;
}

static void activate(long count, int gelu, const float *x, float *y) {
  for (long j = 0; j < count; j += LANES) {
    vec before = some(x + j, count - j);
    put(y + j, gelu ? gelu_of(before) : either(before < 0.0f, (vec){0}, before), count - j);
  }
}

/* dy becomes the gradient by x. */
static void activate_back(long count, int gelu, const float *x, float *dy) {
  for (long j = 0; j < count; j += LANES) {
    vec before = some(x + j, count - j), d = some(dy + j, count - j);
    put(dy + j, gelu ? d * gelu_slope(before) : either(before <= 0.0f, (vec){0}, d), count - j);
  }
}

/* Turn pairs of coordinates (j, j + e / 2) of a head's T rows by cos and sin (T, e / 2). */
static void rotate(long length, long each, long stride, const float *cos, const float *sin, float side,
                   float *x) {
  long half = each / 2;
  for (; length > 0; length--, x += stride, cos += half, sin += half)
    for (long j = 0; j < half; j++) {
      float first = x[j], second = x[j + half], s = side * sin[j];
      x[j] = first * cos[j] - second * s;
      x[j + half] = first * s + second * cos[j];
    }
}

#endif
