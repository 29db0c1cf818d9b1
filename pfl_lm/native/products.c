/* Products of K devices for callers in Python, each device's operands a stride from the last one's;
   a stride of 0 is an operand that all of them hold. All return 0, or 1 where memory ran out. */

#include "bfloat16.h"

#include <stdlib.h>

static float *room(long floats) { return aligned_alloc(64, (4 * floats + 127) / 64 * 64); }

/* The sum of n numbers. */
static float sum_over(const float *x, long n) {
  vec sum = {0};
  for (long i = 0; i < n; i += LANES) sum += some(x + i, smaller(LANES, n - i));
  return sum_of(sum);
}

/* Numbers of 32 bits that a packed matrix (depth, columns) takes, of bfloat16 where `low`. */
long packed_size(long depth, long columns, int low) {
  return panels(columns) * WIDTH * (low ? pairs(depth) : depth);
}

void pack_matrix(long depth, long columns, const void *b, long down, long along, int low,
                 void *packed) {
  if (low)
    pack_bfloat16(depth, columns, b, down, along, packed);
  else
    pack(depth, columns, b, down, along, packed);
}

/* Whether the processor multiplies pairs of bfloat16, as this file was compiled. */
int has_bfloat16(void) {
#ifdef TILES
  return 1;
#elif defined(__AVX512BF16__)
  return LANES == 16;
#else
  return 0;
#endif
}

/* Whether this process multiplies them by the processor's tiles. */
int has_tiles(void) {
#ifdef TILES
  return tiles_work;
#else
  return 0;
#endif
}

/* C (K, M, N) = or += A (K, M, D) B (K, D, N) + bias (K, N). B is in bfloat16 where `low`. */
int multiply_devices(long devices, long rows, long columns, long depth, const float *a,
                     long a_device_stride, long a_stride, const void *b, long b_device_stride,
                     long down, long along, int low, const float *bias, long bias_device_stride,
                     float *c, long c_device_stride, long c_stride, int add) {
  long group = b_device_stride ? 1 : devices;
  long *at = malloc(2 * group * rows * sizeof *at), *to = at + group * rows;
  void *packed = room(packed_size(depth, columns, low));
  int failed = !at || !packed;
  for (long k = 0; k < group && !failed; k++)
    for (long i = 0; i < rows; i++) {
      at[k * rows + i] = k * a_device_stride + i * a_stride;
      to[k * rows + i] = k * c_device_stride + i * c_stride;
    }
  for (long k = 0; k < devices && !failed; k += group) {
    float *into = c + k * c_device_stride;
    for (long one = 0; one < group && bias; one++)
      for (long i = 0; i < rows; i++)
        memcpy(into + to[one * rows + i], bias + (k + one) * bias_device_stride, 4 * columns);
    if (low)
      pack_bfloat16(depth, columns, (const uint16_t *)b + k * b_device_stride, down, along, packed);
    else
      pack(depth, columns, (const float *)b + k * b_device_stride, down, along, packed);
    (low ? multiply_bfloat16 : multiply)(group * rows, columns, depth, a + k * a_device_stride, at,
                                         packed, into, to, add || bias);
  }
  free(at), free(packed);
  return failed;
}

/* Gradients of one device: (O, I) += turned dy times x, NEAR_ROWS outputs at a time; see below. Where
   there are few outputs, x is used as it lies. */
static void gradient(long rows, long outputs, long inputs, const float *dy, long dy_stride,
                     const float *x, long x_stride, int low, float *into, float *bias, float rate,
                     int add, float *turned, const long *at, const long *to, void *packed) {
  int few = outputs <= 2 * HEIGHT && !low;
  long whole = few ? inputs / WIDTH * WIDTH : 0; /* columns that are not packed */
  if (low)
    pack_pairs(rows, inputs, x, x_stride, packed);
  else
    pack(rows, inputs - whole, x + whole, x_stride, 1, packed);
  for (long first = 0, count; first < outputs; first += count, into += count * inputs) {
    count = smaller(NEAR_ROWS, outputs - first);
    turn(rows, count, dy + first, dy_stride, turned, rows, rate);
    for (long k = 0; k < rows; k += DEPTH)
      for (long j = 0; j < whole; j += WIDTH)
        pass(count, smaller(DEPTH, rows - k), turned + k, at, x + k * x_stride + j, x_stride,
             into + j, to, WIDTH, add || k > 0, 0);
    (low ? multiply_bfloat16 : multiply)(count, inputs - whole, rows, turned, at, packed,
                                         into + whole, to, add);
    for (long i = 0; bias && i < count; i++)
      bias[first + i] = (add ? bias[first + i] : 0) + sum_over(turned + i * rows, rows);
  }
}

/* Gradients (K, O, I) += rate · dy (K, M, O) transposed times x (K, M, I), and biases (K, O), if any,
   += rate · dy summed over rows; = where `add` is 0. Where `low`, products are made in bfloat16. */
int gradient_devices(long devices, long rows, long outputs, long inputs, const float *dy,
                     long dy_device_stride, long dy_stride, const float *x, long x_device_stride,
                     long x_stride, int low, float *into, long into_device_stride, float *bias,
                     long bias_device_stride, float rate, int add) {
  long near = smaller(NEAR_ROWS, outputs);
  long *at = malloc(2 * near * sizeof *at), *to = at + near;
  float *turned = room(rows * near);
  void *packed = room(packed_size(rows, inputs, low));
  int failed = !at || !turned || !packed;
  if (!failed) offsets(near, rows, at), offsets(near, inputs, to);
  for (long k = 0; k < devices && !failed; k++)
    gradient(rows, outputs, inputs, dy + k * dy_device_stride, dy_stride, x + k * x_device_stride,
             x_stride, low, into + k * into_device_stride, bias ? bias + k * bias_device_stride : 0,
             rate, add, turned, at, to, packed);
  free(at), free(turned), free(packed);
  return failed;
}
