/* Products of K devices for callers in Python, each device's operands a stride from the last one's;
   a stride of 0 is an operand that all of them hold. All return 0, or 1 where memory ran out. */

#include "products.h"

#include <stdlib.h>

static float *room(long floats) { return aligned_alloc(64, (4 * floats + 127) / 64 * 64); }

/* Floats that a packed matrix (depth, columns) takes. */
long packed_size(long depth, long columns) { return panels(columns) * WIDTH * depth; }

void pack_matrix(long depth, long columns, const float *b, long down, long along, float *packed) {
  pack(depth, columns, b, down, along, packed);
}

/* C (K, M, N) = or += A (K, M, D) B (K, D, N) + bias (K, N). */
int multiply_devices(long devices, long rows, long columns, long depth,
                     const float *a, long a_apart, long a_stride,
                     const float *b, long b_apart, long down, long along,
                     const float *bias, long bias_apart,
                     float *c, long c_apart, long c_stride, int add) {
  long group = b_apart ? 1 : devices;
  long *at = malloc(2 * group * rows * sizeof *at), *to = at + group * rows;
  float *packed = room(packed_size(depth, columns));
  int failed = !at || !packed;
  for (long k = 0; k < group && !failed; k++)
    for (long i = 0; i < rows; i++) {
      at[k * rows + i] = k * a_apart + i * a_stride;
      to[k * rows + i] = k * c_apart + i * c_stride;
    }
  for (long k = 0; k < devices && !failed; k += group) {
    float *into = c + k * c_apart;
    for (long one = 0; one < group && bias; one++)
      for (long i = 0; i < rows; i++)
        memcpy(into + to[one * rows + i], bias + (k + one) * bias_apart, 4 * columns);
    pack(depth, columns, b + k * b_apart, down, along, packed);
    multiply(group * rows, columns, depth, a + k * a_apart, at, packed, into, to, add || bias);
  }
  free(at), free(packed);
  return failed;
}

/* Gradients (K, O, I) += rate · dy (K, M, O) transposed times x (K, M, I); = where `add` is 0. Where
   there are few outputs, x is used as it lies. */
int gradient_devices(long devices, long rows, long outputs, long inputs,
                     const float *dy, long dy_apart, long dy_stride,
                     const float *x, long x_apart, long x_stride,
                     float *into, long into_apart, float rate, int add) {
  int few = outputs <= 2 * HEIGHT;
  long whole = few ? inputs / WIDTH * WIDTH : 0; /* columns that are not packed */
  long *at = malloc(2 * outputs * sizeof *at), *to = at + outputs;
  float *turned = room(rows * outputs), *packed = room(packed_size(rows, inputs - whole));
  int failed = !at || !turned || !packed;
  if (!failed) offsets(outputs, rows, at), offsets(outputs, inputs, to);
  for (long k = 0; k < devices && !failed; k++) {
    const float *own = x + k * x_apart;
    float *sums = into + k * into_apart;
    turn(rows, outputs, dy + k * dy_apart, dy_stride, turned, rows, rate);
    for (long first = 0; first < rows; first += DEPTH)
      for (long j = 0; j < whole; j += WIDTH)
        pass(outputs, smaller(DEPTH, rows - first), turned + first, at, own + first * x_stride + j,
             x_stride, sums + j, to, WIDTH, add || first > 0, 0);
    pack(rows, inputs - whole, own + whole, x_stride, 1, packed);
    multiply(outputs, inputs - whole, rows, turned, at, packed, sums + whole, to, add);
  }
  free(at), free(turned), free(packed);
  return failed;
}
