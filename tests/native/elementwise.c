/* Functions of single numbers over arrays: for tests of vector.h. */

#include "vector.h"

#define OVER(name)                                                                       \
  void name##_each(long count, const float *x, float *y) {                               \
    long i = 0;                                                                          \
    for (; i + LANES <= count; i += LANES) store(y + i, name##_of(load(x + i)));         \
    if (i < count) store_some(y + i, name##_of(load_some(x + i, count - i)), count - i); \
  }

OVER(exp2) OVER(exp) OVER(sigmoid) OVER(tanh) OVER(erf)
