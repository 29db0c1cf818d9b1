/* A block of a causal pre-norm transformer over K devices, forward and backward.

   Some windows at a time pass through the whole block, so that what one layer leaves is in the
   second cache when the next one takes it. Always as many windows: a device's sums, and so its bits,
   do not depend on its neighbours.

   Legend: K devices, B windows, T tokens, D width, F inner width, h heads, R LoRA rank; N = B · T. */

#include "attention.h"
#include "pointwise.h"

#define WINDOWS 8 /* that pass through a block together */

enum { ATTENTION, ATTENTION_OUT, FEEDFORWARD_IN, FEEDFORWARD_OUT, LAYERS };

typedef struct {
  const float *gain, *bias; /* (D,) of the first device */
  long gain_device_stride, bias_device_stride;
  float *d_gain, *d_bias; /* (K, D), 0 at first; both or none */
} norm;

typedef struct {
  dense d; /* d.inner (K, N, R) */
  const float *bias;
  long bias_device_stride;
  float *d_weight; /* gradients (K, O, I), (K, O), (K, R, I), (K, R, O), or none; */
  float *d_bias;   /* all but the first are given as 0 */
  float *d_a, *d_b;
} layer;

typedef struct {
  long devices, windows, length, width, inner, heads;
  long gelu; /* or ReLU */
  layer layers[LAYERS];
  norm norms[2];          /* attention, feed-forward */
  const float *cos, *sin; /* (T, e / 2) of rotary positions, or none */
  const float *x;         /* (K, N, D) */
  float *y;               /* (K, N, D), out */
  float *projected;       /* (K, N, 3 D): queries, keys, values; none, like the next: not kept */
  float *mixed, *middle;  /* (K, N, D): attention's output; x with it added */
  float *hidden;          /* (K, N, F): before GELU, after ReLU */
  const float *dy;        /* backward: (K, N, D) */
  float *dx;              /* (K, N, D), out */
} block;

EXPORT_SIZE(norm)
EXPORT_SIZE(layer)
EXPORT_SIZE(block)
EXPORT_SIZE(dense)

/* A thread's own. */
typedef struct {
  packed layers[LAYERS];
  attention one;
  float *memory, *normal, *active, *projected, *mixed, *middle, *inner, *narrow, *left, *right;
} tools; /* of a part's rows; backward the gradients by what is so called */

static int equip(tools *u, const block *b, int back) {
  long rows = smaller(WINDOWS, b->windows) * b->length, d = b->width, f = b->inner, rank = 0;
  for (int i = 0; i < LAYERS; i++)
    if (b->layers[i].d.rank > rank) rank = b->layers[i].d.rank;
  long widest = back ? sized(rows, f > 3 * d ? f : 3 * d) : 0;
  *u = (tools){0};
  u->memory = room(rows * (6 * d + 2 * f + rank) + 2 * widest);
  if (!u->memory || equip_attention(&u->one, b->length, b->heads, d)) return 1;
  u->left = u->memory, u->right = u->left + widest, u->active = u->right + widest;
  u->inner = u->active + rows * f, u->normal = u->inner + rows * f, u->mixed = u->normal + rows * d;
  u->middle = u->mixed + rows * d, u->projected = u->middle + rows * d;
  u->narrow = u->projected + 3 * rows * d;
  return 0;
}

static void put_away(tools *u) {
  for (int i = 0; i < LAYERS; i++) release(&u->layers[i]);
  put_attention_away(&u->one);
  free(u->memory);
}

/* Pack what device k does not have in common with the one before it. */
static int prepare(tools *u, const block *b, long k, int fresh, int back) {
  int failed = 0;
  for (int i = 0; i < LAYERS && !failed; i++) {
    const dense *d = &b->layers[i].d;
    if (fresh || d->weight_device_stride) failed = prepare_weight(&u->layers[i], d, k, back);
    if (d->rank && (fresh || d->a_device_stride || d->b_device_stride))
      failed |= prepare_factors(&u->layers[i], d, k, 1, back);
  }
  return failed;
}

/* Rows [first, first + count) of device k. */
typedef struct {
  long k, first, count;
} part;

static const float *rows_of(const block *b, part p, const float *all, long width) {
  return all + (p.k * b->windows * b->length + p.first) * width;
}

/* Where to put a part's rows: in the tensor (K, N, width) that keeps them, else in one's own. */
static float *kept(const block *b, part p, float *all, long width, float *own) {
  return all ? (float *)rows_of(b, p, all, width) : own;
}

/* y (rows, O) = base + bias + x Wᵀ + scale · (x Aᵀ) Bᵀ. */
static void forward_layer(const block *b, tools *u, int which, part p, const float *x,
                          const float *base, float *y) {
  const layer *l = &b->layers[which];
  float *narrow = kept(b, p, l->d.inner, l->d.rank, u->narrow);
  const float *bias = l->bias ? l->bias + p.k * l->bias_device_stride : 0;
  pass_layer(&l->d, &u->layers[which], 0, p.count, x, narrow, base, bias, y);
}

/* into (O, I) = or += dyᵀ x of some rows. */
static void gradient_by_weight(tools *u, const layer *l, long rows, const float *dy, const float *x,
                               float *into, int add) {
  long o = l->d.outputs, i = l->d.inputs, n = l->d.low ? pairs(rows) : rows;
  if (l->d.low) {
    uint32_t *left = (uint32_t *)u->left, *right = (uint32_t *)u->right;
    pack_pairs(rows, o, dy, o, left), pack_pairs(rows, i, x, i, right);
  } else {
    pack(rows, o, dy, o, 1, u->left), pack(rows, i, x, i, 1, u->right);
  }
  weight_gradient(n, o, u->left, i, u->right, l->d.low, into, add);
}

/* dx (rows, I) = dy W + scale · (dy B) A, and gradients that are asked for; x (rows, I) went in. */
static void backward_layer(const block *b, tools *u, int which, part p, const float *dy,
                           const float *x, float *dx) {
  const layer *l = &b->layers[which];
  long o = l->d.outputs, i = l->d.inputs, r = l->d.rank;
  if (l->d_b)
    factor_gradient(p.count, r, rows_of(b, p, l->d.inner, r), o, dy, l->d_b + p.k * r * o);
  pass_layer(&l->d, &u->layers[which], 1, p.count, dy, u->narrow, 0, 0, dx);
  if (l->d_weight) gradient_by_weight(u, l, p.count, dy, x, l->d_weight + p.k * o * i, p.first > 0);
  if (l->d_bias) sum_rows(p.count, o, dy, l->d_bias + p.k * o);
  if (l->d_a) factor_gradient(p.count, r, u->narrow, i, x, l->d_a + p.k * r * i);
}

static void normalise_rows(const block *b, int which, part p, const float *x, float *normal) {
  const norm *n = &b->norms[which];
  normalise(p.count, b->width, x, n->gain + p.k * n->gain_device_stride,
            n->bias + p.k * n->bias_device_stride, normal);
}

static void back_through_norm(const block *b, int which, part p, const float *x, const float *dy,
                              float *dx) {
  const norm *n = &b->norms[which];
  long own = n->d_gain ? p.k * b->width : 0;
  normalise_back(p.count, b->width, x, n->gain + p.k * n->gain_device_stride, dy, dx,
                 n->d_gain + own, n->d_bias + own);
}

/* Turn queries and keys, or (side = -1) turn their gradients back. */
static void rotate_rows(const block *b, part p, float side, float *projected) {
  long d = b->width, e = d / b->heads;
  for (long i = 0; i < p.count && b->cos; i += b->length)
    for (long head = 0; head < 2 * b->heads; head++)
      rotate(b->length, e, 3 * d, b->cos, b->sin, side, projected + i * 3 * d + head * e);
}

static void forward_part(const block *b, tools *u, part p) {
  long d = b->width, e = d / b->heads, f = b->inner;
  const float *x = rows_of(b, p, b->x, d);
  float *projected = kept(b, p, b->projected, 3 * d, u->projected);
  float *mixed = kept(b, p, b->mixed, d, u->mixed), *middle = kept(b, p, b->middle, d, u->middle);
  float *hidden = kept(b, p, b->hidden, f, u->inner), *active = b->gelu ? u->active : hidden;
  normalise_rows(b, 0, p, x, u->normal);
  forward_layer(b, u, ATTENTION, p, u->normal, 0, projected);
  rotate_rows(b, p, 1.0f, projected);
  for (long i = 0; i < p.count; i += b->length)
    for (long head = 0; head < b->heads; head++) {
      const float *q = projected + i * 3 * d + head * e;
      attend(&u->one, q, q + d, q + 2 * d, mixed + i * d + head * e);
    }
  forward_layer(b, u, ATTENTION_OUT, p, mixed, x, middle);
  normalise_rows(b, 1, p, middle, u->normal);
  forward_layer(b, u, FEEDFORWARD_IN, p, u->normal, 0, hidden);
  activate(p.count * f, b->gelu, hidden, active);
  forward_layer(b, u, FEEDFORWARD_OUT, p, active, middle, kept(b, p, b->y, d, 0));
}

static void attend_rows_back(const block *b, tools *u, part p, const float *d_mixed) {
  long d = b->width, e = d / b->heads;
  const float *projected = rows_of(b, p, b->projected, 3 * d);
  for (long i = 0; i < p.count; i += b->length)
    for (long head = 0; head < b->heads; head++) {
      const float *q = projected + i * 3 * d + head * e, *dm = d_mixed + i * d + head * e;
      float *dq = u->projected + i * 3 * d + head * e;
      attend_back(&u->one, q, q + d, q + 2 * d, dm, dq, dq + d, dq + 2 * d);
    }
  rotate_rows(b, p, -1.0f, u->projected);
}

static void backward_part(const block *b, tools *u, part p) {
  long d = b->width, f = b->inner;
  const float *x = rows_of(b, p, b->x, d), *dy = rows_of(b, p, b->dy, d);
  const float *mixed = rows_of(b, p, b->mixed, d), *middle = rows_of(b, p, b->middle, d);
  const float *hidden = rows_of(b, p, b->hidden, f), *active = b->gelu ? u->active : hidden;
  float *dx = kept(b, p, b->dx, d, 0);
  if (b->gelu) activate(p.count * f, 1, hidden, u->active);
  backward_layer(b, u, FEEDFORWARD_OUT, p, dy, active, u->inner);
  activate_back(p.count * f, b->gelu, hidden, u->inner);
  normalise_rows(b, 1, p, middle, u->normal);
  backward_layer(b, u, FEEDFORWARD_IN, p, u->inner, u->normal, u->mixed);
  memcpy(u->middle, dy, 4 * p.count * d);
  back_through_norm(b, 1, p, middle, u->mixed, u->middle);
  backward_layer(b, u, ATTENTION_OUT, p, u->middle, mixed, u->mixed);
  attend_rows_back(b, u, p, u->mixed);
  normalise_rows(b, 0, p, x, u->normal);
  backward_layer(b, u, ATTENTION, p, u->projected, u->normal, u->mixed);
  memcpy(dx, u->middle, 4 * p.count * d);
  back_through_norm(b, 0, p, x, u->mixed, dx);
}

/* Devices [from, to); 0, or 1 where memory ran out. */
static int run(const block *b, long from, long to, int back) {
  long rows = b->windows * b->length, step = WINDOWS * b->length;
  tools u;
  int failed = equip(&u, b, back);
  for (long k = from; k < to && !failed; k++) {
    failed = prepare(&u, b, k, k == from, back);
    for (long first = 0; first < rows && !failed; first += step)
      (back ? backward_part : forward_part)(b, &u, (part){k, first, smaller(step, rows - first)});
  }
  put_away(&u);
  return failed;
}

int block_forward(const block *b, long from, long to) { return run(b, from, to, 0); }

int block_backward(const block *b, long from, long to) { return run(b, from, to, 1); }
