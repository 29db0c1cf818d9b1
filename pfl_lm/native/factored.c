/* A dense layer with factors over K devices, for callers in Python: forward, or back through it.

   A file of its own, because its tiles take the compiler longer than all other products. */

#include "layer.h"

EXPORT_SIZE(dense)

/* y (K, M, O) = x (K, M, I) through a layer with factors, plus bias (K, O), if any; where `back`, from
   (K, M, O) to (K, M, I). d->inner is (K, M, R). */
int through_layer(const dense *d, long devices, long rows, int back, const float *x,
                  const float *bias, long bias_device_stride, float *y) {
  long from = back ? d->outputs : d->inputs, to = back ? d->inputs : d->outputs;
  packed p = {0};
  int failed = 0;
  for (long k = 0; k < devices && !failed; k++) {
    if (!k || d->weight_device_stride) failed = prepare_weight(&p, d, k, back);
    failed = failed || prepare_factors(&p, d, k, 1, back);
    for (long first = 0, count; first < rows && !failed; first += count) {
      long at = k * rows + first;
      count = smaller(NEAR_ROWS, rows - first);
      pass_layer(d, &p, back, count, x + at * from, d->inner + at * d->rank, 0,
                 bias ? bias + k * bias_device_stride : 0, y + at * to);
    }
  }
  release(&p);
  return failed;
}
