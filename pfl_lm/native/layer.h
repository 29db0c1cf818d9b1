/* Dense layers of K devices: y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, back through them, and gradients.

   A weight that all devices hold is packed once; factors, like a weight of its own, are packed when a
   device's turn comes. The factors' second product goes on where the weight's ended, while the sums
   are in registers.

   Legend: O width of y, I width of x, R rank of the factors. Backward, x is a gradient by y and y one
   by x: "from" and "to" are then O and I. */

#ifndef PFL_LM_LAYER
#define PFL_LM_LAYER

#include "bfloat16.h"
#include "narrow.h"

#include <stdlib.h>

#define STRETCH 512 /* products of a layer's sum in one go: rarely less than all */

typedef struct {
  long outputs, inputs, rank; /* O, I, R; O = 0: no such layer, R = 0: no factors */
  const void *weight;         /* (O, I) of the first device, float32, or bfloat16 where `low` */
  const float *a, *b;         /* (R, I), (R, O) of the first device */
  long weight_device_stride, a_device_stride,
      b_device_stride; /* numbers to the next device's; 0: all hold the same */
  float *inner;        /* rows of R: forward scale · x Aᵀ, backward scale · dy B */
  float scale;
  long low; /* whether the weight's products are made in bfloat16 */
} dense;

/* The same, packed: x → x Wᵀ + (x Aᵀ) Bᵀ, or dy → dy W + (dy B) A. */
typedef struct {
  void *weight;
  float *a, *b; /* factors one after another by device */
  long a_size, b_size;
} packed;

HELPER float *room(long floats) { return aligned_alloc(64, (4 * floats + 127) / 64 * 64); }

/* Floats that a packed matrix takes. */
HELPER long sized(long depth, long columns) { return panels(columns) * WIDTH * depth; }

HELPER void release(packed *p) { free(p->weight), free(p->a), free(p->b); }

HELPER int prepare_weight(packed *p, const dense *d, long device, int back) {
  long from = back ? d->outputs : d->inputs, to = back ? d->inputs : d->outputs;
  if (!p->weight && !(p->weight = room(sized(d->low ? pairs(from) : from, to)))) return 1;
  long at = device * d->weight_device_stride, down = back ? d->inputs : 1,
       along = back ? 1 : d->inputs;
  if (d->low)
    pack_bfloat16(from, to, (const uint16_t *)d->weight + at, down, along, p->weight);
  else
    pack(from, to, (const float *)d->weight + at, down, along, p->weight);
  return 0;
}

/* Factors of `group` devices from `first` on. */
HELPER int prepare_factors(packed *p, const dense *d, long first, long group, int back) {
  long from = back ? d->outputs : d->inputs, to = back ? d->inputs : d->outputs;
  p->a_size = narrow_size(from, d->rank), p->b_size = sized(d->rank, to);
  if (!p->a && !(p->a = room(group * p->a_size))) return 1;
  if (!p->b && !(p->b = room(group * p->b_size))) return 1;
  for (long k = 0; k < group && d->rank; k++) {
    const float *a = d->a + (first + k) * d->a_device_stride,
                *b = d->b + (first + k) * d->b_device_stride;
    float *into = p->a + k * p->a_size, *out = p->b + k * p->b_size;
    pack_narrow(from, d->rank, back ? b : a, into);
    pack(d->rank, to, back ? a : b, to, 1, out);
  }
  return 0;
}

/* add_products of a tile of pairs' rows. */
INLINE void add_tall(int rows, long n, const float *const *row, const float *panel, vec (*sum)[2]) {
#ifdef TILES
  for (int i = 0; i < rows; i += HEIGHT)
    OF_HEIGHT(smaller(HEIGHT, rows - i), add_products, n, row + i, 1, panel, WIDTH, 0, sum + i)
#else
  add_products(rows, n, row, 1, panel, WIDTH, 0, sum);
#endif
}

/* One product of rows with a layer: y (rows, to) = base + bias + x W + narrow B, all packed. */
typedef struct {
  long from, to, rank;
  const float *x, *narrow; /* (rows, from), (rows, rank) */
  const void *weight;      /* in bfloat16 where `low` */
  const float *b;
  const float *base, *bias; /* (rows, to), (to,) or none */
  float *y;
  long low;
} passage;

/* The sums of a tile with n lines of the weight; of pairs if it is in bfloat16, in `near`. */
INLINE void passage_sums(int rows, const passage *p, const uint32_t *near, long first, long column,
                         long k, long n, vec (*sum)[2]) {
  if (near) {
    const uint32_t *row[MOST_ROWS], *weight = p->weight;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) row[i] = near + i * n;
    add_pair_lines(rows, n, row, 1, weight + column * pairs(p->from) + k / 2 * WIDTH, 0, 0, sum);
  } else {
    const float *row[MOST_ROWS], *weight = p->weight;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) row[i] = p->x + (first + i) * p->from + k;
    add_products(rows, n, row, 1, weight + column * p->from + k * WIDTH, WIDTH, 0, sum);
  }
}

INLINE void passage_tile(int rows, const passage *p, const uint32_t *near, long first, long column,
                         long k, long n) {
  vec sum[MOST_ROWS][2];
  const float *row[MOST_ROWS];
  const float *base = k ? p->y : p->base;
  float *y = p->y + first * p->to + column;
  for (int i = 0; i < rows; i++) {
    expect(y + i * p->to);
    sum[i][0] = sum[i][1] = (vec){0};
  }
  passage_sums(rows, p, near, first, column, k, n, sum);
  if (p->rank && !k) {
    for (int i = 0; i < rows; i++) row[i] = p->narrow + (first + i) * p->rank;
    add_tall(rows, p->rank, row, p->b + column * p->rank, sum);
  }
  for (int half = 0; half < 2; half++) {
    long at = half * LANES, count = p->to - column - at;
    if (count <= 0) break;
    vec bias = p->bias && !k ? some(p->bias + column + at, smaller(LANES, count)) : (vec){0};
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      vec all_of_it = sum[i][half] + bias;
      if (base) all_of_it += some(base + (first + i) * p->to + column + at, smaller(LANES, count));
      put(y + i * p->to + at, all_of_it, smaller(LANES, count));
    }
  }
}

/* Rows from `first` on, at most NEAR_ROWS, through a weight in bfloat16; `near` is room for them. */
HELPER void pass_bfloat16(const passage *p, long first, long rows, uint32_t *near) {
  for (long k = 0; k < p->from; k += 2 * DEPTH) {
    const long count = smaller(2 * DEPTH, p->from - k), n = pairs(count);
    for (long i = 0; i < rows; i++) pair_row(count, p->x + (first + i) * p->from + k, near + i * n);
    for (long j = 0; j < p->to; j += WIDTH)
      for (long done = 0, height; done < rows; done += height) {
        height = pair_height_of(rows - done);
        OF_PAIR_HEIGHT(height, passage_tile, p, near + done * n, first + done, j, k, n)
      }
  }
  end_tiles();
}

HELPER void pass_through(const passage *p, long rows) {
  uint32_t near[NEAR_ROWS * DEPTH];
  for (long first = 0; p->low && first < rows; first += NEAR_ROWS)
    pass_bfloat16(p, first, smaller(NEAR_ROWS, rows - first), near);
  for (long k = 0; !p->low && k < p->from; k += STRETCH)
    for (long j = 0; j < p->to; j += WIDTH)
      for (long done = 0, height; done < rows; done += height) {
        height = height_of(rows - done);
        OF_HEIGHT(height, passage_tile, p, 0, done, j, k, smaller(STRETCH, p->from - k))
      }
}

/* Rows of a device through its packed layer: y = base + bias + x W + scale · (x A) B; base (rows, to)
   and bias (to,) or none. narrow (rows, R), out: scale · x A. */
HELPER void pass_layer(const dense *d, const packed *p, int back, long rows, const float *x,
                       float *narrow, const float *base, const float *bias, float *y) {
  long from = back ? d->outputs : d->inputs, to = back ? d->inputs : d->outputs;
  multiply_narrow(rows, from, d->rank, x, p->a, d->scale, narrow);
  passage through = {from, to, d->rank, x, narrow, p->weight, p->b, base, bias, y, d->low};
  pass_through(&through, rows);
}

/* into (O, I) = or += dyᵀ x of rows that were packed as panels of dy's and of x's columns; where
   `low`, of n pairs of rows in bfloat16. */
INLINE void gradient_tile(int rows, long n, const void *dy, const void *x, int low, float *into,
                          long inputs, long columns, int add) {
  vec sum[MOST_ROWS][2];
  long to[MOST_ROWS];
  for (int i = 0; i < rows; i++) {
    to[i] = i * inputs, sum[i][0] = sum[i][1] = (vec){0};
    expect(into + to[i]);
  }
  if (low) {
    const uint32_t *row[MOST_ROWS];
    for (int i = 0; i < rows; i++) row[i] = (const uint32_t *)dy + i;
    add_pair_lines(rows, n, row, WIDTH, x, 0, 0, sum);
  } else {
    const float *row[HEIGHT];
    for (int i = 0; i < rows; i++) row[i] = (const float *)dy + i;
    add_products(rows, n, row, WIDTH, x, WIDTH, 0, sum);
  }
  put_sums(rows, sum, into, to, columns, add);
}

HELPER void weight_gradient(long n, long outputs, const void *dy, long inputs, const void *x,
                            int low, float *into, int add) {
  const uint32_t *left = dy, *right = x; /* numbers of 32 bits, floats or pairs */
  for (long j = 0; j < inputs; j += WIDTH)
    for (long o = 0, height; o < outputs; o += height) {
      long end = smaller(outputs, (o / WIDTH + 1) * WIDTH);
      const uint32_t *from = left + o / WIDTH * WIDTH * n + o % WIDTH;
      float *to = into + o * inputs + j;
      height = low ? pair_height_of(end - o) : height_of(end - o);
      if (low)
        OF_PAIR_HEIGHT(height, gradient_tile, n, from, right + j * n, 1, to, inputs, inputs - j,
                       add)
      else
        OF_HEIGHT(height, gradient_tile, n, from, right + j * n, 0, to, inputs, inputs - j, add)
    }
  end_tiles();
}

/* into (columns) += the sum of rows. */
HELPER void sum_rows(long rows, long columns, const float *x, float *into) {
  for (long j = 0; j < columns; j += LANES) {
    long n = smaller(LANES, columns - j);
    vec sum = some(into + j, n);
    for (long i = 0; i < rows; i++) sum += some(x + i * columns + j, n);
    put(into + j, sum, n);
  }
}

#endif
