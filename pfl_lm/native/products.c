/* The product and its packing, for callers in Python. */

#include "products.h"

#include <stdlib.h>

/* Floats that a packed matrix (depth, columns) takes. */
long packed_size(long depth, long columns) { return panels(columns) * WIDTH * depth; }

void pack_matrix(long depth, long columns, const float *b, long down, long along, float *packed) {
  pack(depth, columns, b, down, along, packed);
}

/* C (rows, columns) = or += A B, B packed; rows of A and C at strides. 0, or 1 without memory. */
int multiply_packed(long rows, long columns, long depth, const float *a, long a_stride,
                    const float *packed, float *c, long c_stride, int add) {
  long *at = malloc(2 * rows * sizeof *at);
  if (!at) return 1;
  offsets(rows, a_stride, at);
  offsets(rows, c_stride, at + rows);
  multiply(rows, columns, depth, a, at, packed, c, at + rows, add);
  free(at);
  return 0;
}
