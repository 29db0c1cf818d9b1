/* The sampled softmax of K devices: scores of a target and of C candidates, loss, and gradients.

   Some rows at a time are scored, turned into gradients and mixed with the candidates' rows while
   they are in the second cache. A row of weight 0 (a window's padding) is not scored: its loss and its
   gradient are 0. What trains may be what is read: all of a device's reads precede its writes.

   Legend: K devices, N rows of a device, P width, V words, k rows of the payload, C candidates. */

#include "layer.h"

#include <math.h>

#define ROWS 60 /* scored together */

/* A table (V, P), or with P = 1 a bias: the payload's rows each device's own, the others frozen. */
typedef struct {
  long width;
  const float *frozen, *now; /* (V, P); (K, k, P), or none: nothing of it travels */
  float *into;               /* (K, k, P): rate times gradients are added here; or none */
  long now_device_stride, into_device_stride;
  const int64_t *slots; /* (V,): place among k rows, below 0 outside; none: k = V */
} table;

typedef struct {
  long rows, count, width;  /* N, C, P */
  table scoring, bias;      /* without a bias its frozen is none */
  const float *vectors;     /* (K, N, P) */
  const int64_t *targets;   /* (K, N) */
  const float *weight;      /* (K, N) */
  const int64_t *words;     /* (C,), ascending */
  const float *log_weight;  /* (C,) */
  const float *inclusion;   /* (C,): factor on what goes into a candidate's row; or none */
  const float *centre;      /* (K, C, P): see `gather`; or none */
  const float *centre_bias; /* (K, C), or none */
  float rate;
  float *loss;     /* (K, N), out */
  float *gradient; /* (K, N, P), out: by the vectors */
} candidates;

EXPORT_SIZE(table)
EXPORT_SIZE(candidates)

typedef struct {
  float *memory, *turned, *plain, *rows, *bias, *scores, *vectors, *target;
  float *slopes;   /* (n, C) in panels, the caller's */
  float *counted;  /* (n, P): vectors of the n rows whose weight is not 0 */
  float *gradient; /* (ROWS, P): by the vectors of some of them */
  long *places;    /* (n,): their places among all devices' rows */
  long n;
} tools;

/* Floats of a thread's slopes. */
long slopes_size(long rows, long count) { return sized(rows, count); }

static int equip(tools *u, const candidates *c, float *slopes) {
  long turned = sized(c->width, c->count), plain = sized(c->count, c->width);
  long sizes[] = {turned,
                  plain,
                  c->count * c->width,
                  c->count,
                  ROWS * c->count,
                  sized(c->rows, c->width),
                  c->rows * c->width,
                  ROWS * c->width};
  float **places[] = {&u->turned, &u->plain,   &u->rows,    &u->bias,
                      &u->scores, &u->vectors, &u->counted, &u->gradient};
  long all = 3 * c->rows; /* a place takes two floats */
  for (int i = 0; i < 8; i++) all += sizes[i];
  if (!(u->memory = room(all))) return 1;
  u->places = (long *)u->memory;
  u->target = u->memory + 2 * c->rows;
  float *next = u->target + c->rows;
  for (int i = 0; i < 8; next += sizes[i++]) *places[i] = next;
  u->slopes = slopes;
  return 0;
}

static long slot_of(const table *t, int64_t word) { return t->slots ? t->slots[word] : word; }

static const float *row_of(const table *t, long k, int64_t word) {
  long slot = slot_of(t, word);
  return t->now && slot >= 0 ? t->now + k * t->now_device_stride + slot * t->width
                             : t->frozen + word * t->width;
}

static void add_row(const table *t, long k, int64_t word, float factor, const float *row) {
  long slot = slot_of(t, word);
  if (!t->into || slot < 0) return;
  float *into = t->into + k * t->into_device_stride + slot * t->width;
  for (long j = 0; j < t->width; j++) into[j] += factor * row[j];
}

static float factor_of(const candidates *c, long i) { return c->inclusion ? c->inclusion[i] : 1; }

/* Copy device k's row of candidate i; with a centre, only `factor_of` of its way from there. */
static void read_row(const candidates *c, const table *t, const float *centre, long k, long i,
                     float *to) {
  memcpy(to, row_of(t, k, c->words[i]), 4 * t->width);
  if (!centre) return;
  const float *from = centre + (k * c->count + i) * t->width;
  for (long j = 0; j < t->width; j++) to[j] = from[j] + factor_of(c, i) * (to[j] - from[j]);
}

/* Lay device k's candidates out as both products want them, and their score without a vector. */
static void gather(const candidates *c, tools *u, long k) {
  for (long i = 0; i < c->count; i++) {
    float bias = 0;
    read_row(c, &c->scoring, c->centre, k, i, u->rows + i * c->width);
    if (c->bias.frozen) read_row(c, &c->bias, c->centre_bias, k, i, &bias);
    u->bias[i] = c->log_weight[i] + bias;
  }
  pack(c->width, c->count, u->rows, 1, c->width, u->turned);
  pack(c->count, c->width, u->rows, c->width, 1, u->plain);
}

/* Place of a word among the candidates, or -1. */
static long place_of(const candidates *c, int64_t word) {
  long low = 0, high = c->count;
  while (low < high) {
    long middle = (low + high) / 2;
    if (c->words[middle] < word)
      low = middle + 1;
    else
      high = middle;
  }
  return low < c->count && c->words[low] == word ? low : -1;
}

static float dot(long width, const float *x, const float *y) {
  vec sum = {0};
  for (long j = 0; j < width; j += LANES) sum += some(x + j, width - j) * some(y + j, width - j);
  return sum_of(sum);
}

/* Scores of a row become weight times their slopes; returns the target's, and the row's loss. */
static float contrast(long count, float *scores, float target, float weight, float *loss) {
  vec largest = all(target), powers = {0};
  long j;
  for (j = 0; j < count; j += LANES) {
    vec score = either(first_lanes(count - j), some(scores + j, count - j), all(-INFINITY));
    largest = either(score > largest, score, largest);
  }
  float top = greatest_of(largest);
  for (j = 0; j < count; j += LANES) {
    vec power = exp_of(some(scores + j, count - j) - top);
    powers += (vec)((ints)power & first_lanes(count - j));
    put(scores + j, power, count - j);
  }
  float own = expf(target - top), total = sum_of(powers) + own, share = weight / total;
  for (j = 0; j < count; j += LANES)
    put(scores + j, some(scores + j, count - j) * share, count - j);
  *loss = logf(total) + top - target;
  return own * share - weight;
}

/* Find device k's rows that count; losses and gradients of the others are 0. */
static void find_counted(const candidates *c, tools *u, long k) {
  long p = c->width;
  u->n = 0;
  for (long i = k * c->rows; i < (k + 1) * c->rows; i++) {
    if (c->weight[i] == 0) {
      c->loss[i] = 0;
      memset(c->gradient + i * p, 0, 4 * p);
      continue;
    }
    memcpy(u->counted + u->n * p, c->vectors + i * p, 4 * p);
    u->places[u->n++] = i;
  }
}

/* Rows [first, first + count) of device k's that count, up to the gradient by the vectors. */
static void score_rows(const candidates *c, tools *u, long k, long first, long count) {
  long p = c->width;
  const float *vectors = u->counted + first * p;
  passage scores = {p, c->count, 0, vectors, 0, u->turned, 0, 0, u->bias, u->scores, 0};
  pass_through(&scores, count);
  for (long i = 0; i < count; i++) {
    long place = u->places[first + i];
    int64_t word = c->targets[place];
    float target = dot(p, vectors + i * p, row_of(&c->scoring, k, word));
    if (c->bias.frozen) target += *row_of(&c->bias, k, word);
    long hit = place_of(c, word);
    if (hit >= 0) u->scores[i * c->count + hit] = -INFINITY;
    u->target[first + i] =
        contrast(c->count, u->scores + i * c->count, target, c->weight[place], c->loss + place);
  }
  passage mixed = {c->count, p, 0, u->scores, 0, u->plain, 0, 0, 0, u->gradient, 0};
  pass_through(&mixed, count);
  for (long i = 0; i < count; i++) {
    long place = u->places[first + i];
    const float *own = row_of(&c->scoring, k, c->targets[place]), *others = u->gradient + i * p;
    float *gradient = c->gradient + place * p;
    for (long j = 0; j < p; j++) gradient[j] = others[j] + u->target[first + i] * own[j];
  }
  for (long j = 0; j < c->count; j += WIDTH)
    pack(count, smaller(WIDTH, c->count - j), u->scores + j, c->count, 1,
         u->slopes + j * u->n + first * WIDTH);
}

/* Add what device k's rows have for the table and the bias. */
static void descend(const candidates *c, tools *u, long k) {
  if (c->scoring.into) {
    pack(u->n, c->width, u->counted, c->width, 1, u->vectors);
    weight_gradient(u->n, c->count, u->slopes, c->width, u->vectors, 0, u->rows, 0);
    for (long i = 0; i < c->count; i++)
      add_row(&c->scoring, k, c->words[i], c->rate * factor_of(c, i), u->rows + i * c->width);
    for (long i = 0; i < u->n; i++)
      add_row(&c->scoring, k, c->targets[u->places[i]], c->rate * u->target[i],
              u->counted + i * c->width);
  }
  for (long i = 0; i < c->count && c->bias.into; i++) {
    float sum = 0;
    for (long n = 0; n < u->n; n++) sum += u->slopes[(i / WIDTH * u->n + n) * WIDTH + i % WIDTH];
    add_row(&c->bias, k, c->words[i], c->rate * factor_of(c, i), &sum);
  }
  for (long i = 0; i < u->n && c->bias.into; i++)
    add_row(&c->bias, k, c->targets[u->places[i]], c->rate, u->target + i);
}

/* Devices [from, to); 0, or 1 where memory ran out. */
int contrast_candidates(const candidates *c, float *slopes, long from, long to) {
  tools u;
  if (equip(&u, c, slopes)) return 1;
  for (long k = from; k < to; k++) {
    gather(c, &u, k);
    find_counted(c, &u, k);
    for (long first = 0; first < u.n; first += ROWS)
      score_rows(c, &u, k, first, smaller(ROWS, u.n - first));
    if (u.n) descend(c, &u, k);
  }
  free(u.memory);
  return 0;
}
