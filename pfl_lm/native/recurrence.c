/* A recurrent layer over all time steps of K devices, forward and backward through time.

   Each device's sums are its own and in one order, so its bits do not depend on its neighbours. A
   weight that all devices hold is packed once and multiplied with the rows of all of them.

   Legend: K devices, T steps, B windows, H cells, G gates · H, S width of the state, R LoRA rank. */

#include "layer.h"

typedef struct {
  long devices, steps, windows, cells,
      gates;                /* gates: 3 forget, cell, output; 4 input, then these */
  long kept;                /* whether cells, tanh_c and outputs have all steps, or one place */
  long rests;               /* the first state is zero and its gradient not wanted: no products */
  dense recurrent, project; /* without a projection the state is the cells' output */
  float *sums;              /* (K, T, B, G): sums of the inputs; forward leaves the gates there */
  float *states;            /* (K, T + 1, B, S), the first given */
  float *c;                 /* (K, T + 1, B, H), the first given */
  float *tanh_c;            /* (K, T, B, H): tanh of c after each step */
  float *outputs;           /* (K, T, B, H), only with a projection */
  /* Backward only. */
  float *d_states; /* (K, T, B, S): by the states after each step; what comes back is added */
  float *d_sums;   /* (K, T, B, G), out */
  float *dr, *dc;  /* (K, B, S) out; (K, B, H) by the last cells, out by the first */
} recurrence;

EXPORT_SIZE(recurrence)
EXPORT_SIZE(dense)

/* Columns of y that stay in the second cache until the factors add to them. */
#define NEAR_COLUMNS (8 * WIDTH)

/* y = or += x through the packed layer for all devices of a group, B rows each: row i of device k
   begins at x + x_at[k B + i]; inner (B, R) of device k at inner + k · inner_device_stride; inner_at: room
   for B offsets. */
static void through(const packed *p, const dense *d, long group, long windows, int back,
                    const float *x, const long *x_at, float *y, const long *y_at, float *inner,
                    long inner_device_stride, long *inner_at, int add) {
  long from = back ? d->outputs : d->inputs, to = back ? d->inputs : d->outputs, r = d->rank;
  long depth = d->low ? pairs(from) : from; /* of a packed column, in numbers of 32 bits */
  long block = r ? NEAR_COLUMNS : to, near = r ? (NEAR_ROWS + windows - 1) / windows : group;
  offsets(windows, r, inner_at);
  for (long k = 0; k < group && r; k++)
    multiply_narrow(windows, from, r, x + x_at[k * windows], p->a + k * p->a_size, d->scale,
                    inner + k * inner_device_stride);
  for (long first = 0; first < group; first += near)
    for (long j = 0, end = smaller(group, first + near); j < to; j += block) {
      long columns = smaller(block, to - j);
      (d->low ? multiply_bfloat16 : multiply)(
          (end - first) * windows, columns, from, x, x_at + first * windows,
          (const uint32_t *)p->weight + j * depth, y + j, y_at + first * windows, add);
      for (long k = first; k < end && r; k++)
        multiply(windows, columns, r, inner + k * inner_device_stride, inner_at,
                 p->b + k * p->b_size + j * r, y + j, y_at + k * windows, 1);
    }
}

/* Gates, cells and output of up to LANES cells of one row; z (G): sums, then gates. */
INLINE void forward_cells(long n, long h, int gates, float *z, const float *c, float *after,
                          float *tanh_c, float *m) {
  float *first = z, *keep = z + (gates - 3) * h, *cell = keep + h, *out = cell + h;
  vec f = sigmoid_of(some(keep, n)), g = tanh_of(some(cell, n)), o = sigmoid_of(some(out, n)), now;
  if (gates == 3) {
    now = g + f * (some(c, n) - g);
  } else {
    vec i = sigmoid_of(some(first, n));
    now = f * some(c, n) + i * g;
    put(first, i, n);
  }
  vec b = tanh_of(now);
  put(keep, f, n), put(cell, g, n), put(out, o, n);
  put(after, now, n), put(tanh_c, b, n), put(m, o * b, n);
}

INLINE vec by_sigmoid(vec gradient, vec value) { return gradient * (value * (1.0f - value)); }

INLINE vec by_tanh(vec gradient, vec value) { return gradient * (1.0f - value * value); }

/* Writes the sums' gradient dz (G), and the cells' before the step over dc. */
INLINE void backward_cells(long n, long h, int gates, const float *z, const float *before,
                           const float *tanh_c, const float *dm, float *dc, float *dz) {
  long at = (gates - 3) * h;
  vec f = some(z + at, n), g = some(z + at + h, n), o = some(z + at + 2 * h, n);
  vec b = some(tanh_c, n), d = some(dm, n), c = some(before, n);
  vec through = some(dc, n) + by_tanh(d * o, b);
  put(dz + at + 2 * h, by_sigmoid(d * b, o), n);
  if (gates == 3) {
    put(dz, by_sigmoid(through * (c - g), f), n);
    put(dz + h, by_tanh(through - through * f, g), n);
  } else {
    vec i = some(z, n);
    put(dz, by_sigmoid(through * g, i), n);
    put(dz + h, by_sigmoid(through * c, f), n);
    put(dz + 2 * h, by_tanh(through * i, g), n);
  }
  put(dc, through * f, n);
}

static void forward_rows(const recurrence *r, long rows, float *z, const float *c, float *after,
                         float *tanh_c, float *m) {
  long h = r->cells, g = r->gates * h;
  for (long i = 0; i < rows; i++, z += g, c += h, after += h, tanh_c += h, m += h)
    if (r->gates == 3)
      OVER_LANES(forward_cells(n, h, 3, z + j, c + j, after + j, tanh_c + j, m + j), h)
    else
      OVER_LANES(forward_cells(n, h, 4, z + j, c + j, after + j, tanh_c + j, m + j), h)
}

static void backward_rows(const recurrence *r, long rows, const float *z, const float *before,
                          const float *tanh_c, const float *dm, float *dc, float *dz) {
  long h = r->cells, g = r->gates * h;
  for (long i = 0; i < rows; i++, z += g, before += h, tanh_c += h, dm += h, dc += h, dz += g)
    if (r->gates == 3)
      OVER_LANES(backward_cells(n, h, 3, z + j, before + j, tanh_c + j, dm + j, dc + j, dz + j), h)
    else
      OVER_LANES(backward_cells(n, h, 4, z + j, before + j, tanh_c + j, dm + j, dc + j, dz + j), h)
}

/* Offsets of B rows of each of `group` devices. */
static void spread(long group, long windows, long device_stride, long width, long *at) {
  for (long k = 0; k < group; k++)
    for (long i = 0; i < windows; i++) *at++ = k * device_stride + i * width;
}

static int prepare(packed *p, const dense *d, long first, long group, int back) {
  return prepare_weight(p, d, first, back) || prepare_factors(p, d, first, group, back);
}

typedef struct {
  packed recurrent, project;
  long *sums, *states, *outputs, *narrow, *inner; /* offsets of rows: a group's; a device's */
  float *dm;                                      /* (group, B, H) */
} tools;

static int equip(tools *u, const recurrence *r, long group) {
  long rows = group * r->windows, s = r->recurrent.inputs;
  *u = (tools){0};
  u->sums = malloc((4 * rows + r->windows) * sizeof(long));
  u->dm = room(rows * (r->cells > s ? r->cells : s));
  if (!u->sums || !u->dm) return 1;
  u->states = u->sums + rows, u->outputs = u->states + rows, u->narrow = u->outputs + rows;
  u->inner = u->narrow + rows;
  return 0;
}

static void put_away(tools *u) {
  release(&u->recurrent), release(&u->project);
  free(u->sums), free(u->dm);
}

static void forward_group(const recurrence *r, tools *u, long first, long group) {
  long b = r->windows, t_all = r->steps, h = r->cells, s = r->recurrent.inputs, g = r->gates * h;
  long places = r->kept ? t_all : 1;
  const dense *rec = &r->recurrent, *pro = &r->project;
  spread(group, b, t_all * b * g, g, u->sums);
  spread(group, b, (t_all + 1) * b * s, s, u->states);
  spread(group, b, places * b * h, h, u->outputs);
  for (long t = 0; t < t_all; t++) {
    long at = r->kept ? t : 0, next = r->kept ? t + 1 : 0;
    float *sums = r->sums + (first * t_all + t) * b * g;
    float *state = r->states + (first * (t_all + 1) + t) * b * s;
    float *inner = rec->inner + (first * t_all + t) * b * rec->rank;
    if (t || !r->rests)
      through(&u->recurrent, rec, group, b, 0, state, u->states, sums, u->sums, inner,
              t_all * b * rec->rank, u->inner, 1);
    float *m = pro->outputs ? r->outputs + (first * places + at) * b * h : state + b * s;
    for (long k = 0; k < group; k++) {
      float *c = r->c + (first + k) * (places + r->kept) * b * h;
      forward_rows(r, b, sums + k * t_all * b * g, c + at * b * h, c + next * b * h,
                   r->tanh_c + ((first + k) * places + at) * b * h,
                   m + (pro->outputs ? k * places * b * h : k * (t_all + 1) * b * s));
    }
    if (pro->outputs)
      through(&u->project, pro, group, b, 0, m, u->outputs, state + b * s, u->states,
              pro->inner + (first * t_all + t) * b * pro->rank, t_all * b * pro->rank, u->inner, 0);
  }
}

static void backward_group(const recurrence *r, tools *u, long first, long group) {
  long b = r->windows, t_all = r->steps, h = r->cells, s = r->recurrent.inputs, g = r->gates * h;
  const dense *rec = &r->recurrent, *pro = &r->project;
  spread(group, b, t_all * b * g, g, u->sums);
  spread(group, b, t_all * b * s, s, u->states);
  spread(group, b, b * h, h, u->outputs);
  spread(group, b, b * s, s, u->narrow);
  float *dr = r->dr + first * b * s;
  memset(dr, 0, 4 * group * b * s);
  for (long t = t_all - 1; t >= 0; t--) {
    float *d_state = r->d_states + (first * t_all + t) * b * s;
    float *d_sums = r->d_sums + (first * t_all + t) * b * g;
    for (long k = 0; k < group; k++)
      for (long i = 0; i < b * s; i++) d_state[k * t_all * b * s + i] += dr[k * b * s + i];
    if (pro->outputs)
      through(&u->project, pro, group, b, 1, d_state, u->states, u->dm, u->outputs,
              pro->inner + (first * t_all + t) * b * pro->rank, t_all * b * pro->rank, u->inner, 0);
    for (long k = 0; k < group; k++) {
      long all = (first + k) * t_all + t;
      backward_rows(r, b, r->sums + all * b * g, r->c + (all + first + k) * b * h,
                    r->tanh_c + all * b * h,
                    pro->outputs ? u->dm + k * b * h : d_state + k * t_all * b * s,
                    r->dc + (first + k) * b * h, d_sums + k * t_all * b * g);
    }
    if (t || !r->rests)
      through(&u->recurrent, rec, group, b, 1, d_sums, u->sums, dr, u->narrow,
              rec->inner + (first * t_all + t) * b * rec->rank, t_all * b * rec->rank, u->inner, 0);
  }
}

/* Devices [from, to); 0, or 1 where memory ran out. */
static int run(const recurrence *r, long from, long to, int back) {
  int shared = !r->recurrent.weight_device_stride &&
               !(r->project.outputs && r->project.weight_device_stride);
  long group = shared ? to - from : 1;
  tools u;
  int failed = equip(&u, r, group);
  for (long first = from; first < to && !failed; first += group) {
    failed = prepare(&u.recurrent, &r->recurrent, first, group, back);
    if (r->project.outputs) failed |= prepare(&u.project, &r->project, first, group, back);
    if (!failed) (back ? backward_group : forward_group)(r, &u, first, group);
  }
  put_away(&u);
  return failed;
}

int recurrence_forward(const recurrence *r, long from, long to) { return run(r, from, to, 0); }

int recurrence_backward(const recurrence *r, long from, long to) { return run(r, from, to, 1); }
