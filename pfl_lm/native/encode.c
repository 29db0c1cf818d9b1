/* Updates on their way to the grid: squared norms, and rounding at random.
 *
 * The same numbers as numpy's passes in pfl_lm/dp/rounding.py, to the last bit, whatever the
 * compiler makes of it: squares of floats are exact as doubles, and a word divided by 2^16 is exact
 * as a float, so that a fused product and sum rounds as the two of them do. The one product that
 * rounds is made in a function of its own, where there is no sum to fuse it with.
 */
#include <math.h>
#include <stdint.h>

#define LANES 256  /* sums side by side; part of what a norm means, as in rounding.py */
#define PIECE 2048 /* floats that stay in the first cache between two passes */

/* Sum of squares of `count` floats: lane by lane, then lanes folded in halves. */
double sum_of_squares(const float *values, int64_t count)
{
    double lanes[LANES] = {0};
    int64_t whole = count - count % LANES;
    for (int64_t start = 0; start < whole; start += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            double value = values[start + lane];
            lanes[lane] += value * value;
        }
    for (int lane = 0; lane < count - whole; lane++) {
        double value = values[whole + lane];
        lanes[lane] += value * value;
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++)
            lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* Products rounded to float: by the factor as a float, or as a double where that lost bits. */
static __attribute__((noinline)) void scale(
    const float *values, double factor, int64_t count, float *scaled)
{
    const float narrow = (float)factor;
    if (factor < 0x1p-64)
        for (int64_t i = 0; i < count; i++)
            scaled[i] = (float)(values[i] * factor);
    else
        for (int64_t i = 0; i < count; i++)
            scaled[i] = values[i] * narrow;
}

/* rounded[i] = floor(values[i]*factor + words[i]/2^16 + 2^-17); return the sum of their squares,
 * exact below 2^53 and at least 2^53 otherwise. */
double round_at_random(
    const float *values, double factor, const uint16_t *words, int64_t count, int64_t *rounded)
{
    float scaled[PIECE];
    double sums[16] = {0};
    for (int64_t start = 0; start < count; start += PIECE) {
        int64_t piece = count - start < PIECE ? count - start : PIECE;
        scale(values + start, factor, piece, scaled);
        for (int64_t i = 0; i < piece; i++) {
            float dithered = scaled[i] + words[start + i] * 0x1p-16f;
            scaled[i] = floorf(dithered + 0x1p-17f);
        }
        for (int64_t i = 0; i < piece; i++)
            rounded[start + i] = (int32_t)scaled[i]; /* below 2^23: see Grid */
        for (int64_t i = 0; i < piece / 16 * 16; i += 16)
            for (int lane = 0; lane < 16; lane++)
                sums[lane] += (double)scaled[i + lane] * (double)scaled[i + lane];
        for (int64_t i = piece / 16 * 16; i < piece; i++)
            sums[0] += (double)scaled[i] * (double)scaled[i];
    }
    for (int lane = 1; lane < 16; lane++)
        sums[0] += sums[lane];
    return sums[0];
}
