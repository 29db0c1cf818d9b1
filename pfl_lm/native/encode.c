/* Updates on their way to the grid: squared norms, rounding at random, exact noise.
 *
 * The same numbers as numpy's passes in pfl_lm/dp/rounding.py and alias.py, to the last bit,
 * whatever the compiler makes of it: squares of floats are exact as doubles, and a word divided by
 * 2^16 is exact as a float, so that a fused product and sum rounds as the two of them do. The one
 * product that rounds is made in a function of its own, where there is no sum to fuse it with.
 */
#include <math.h>
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 256      /* sums side by side; part of what a norm means, as in rounding.py */
#define STRETCH 65536  /* floats a sum is taken over; likewise */
#define AHEAD 1024     /* floats between what is added and what is fetched */
#define PIECE 256      /* coordinates in the first cache; writes wait for memory while it computes */
#define GROUP 32       /* coordinates looked at together */
#define COLUMN_BITS 10 /* of an alias table, as in alias.py */
#define SIGN (1u << 31)
#define COLUMN_MASK ((1u << COLUMN_BITS) - 1)
#define LOW_END (31 - COLUMN_BITS) /* bits of a word below its column */

static double sum_of_stretch(const float *values, int64_t count)
{
    double lanes[LANES] = {0};
    int64_t whole = count - count % LANES;
    for (int64_t start = 0; start < whole; start += LANES) {
        for (int lane = 0; lane < LANES; lane += 16) /* a line of the cache */
            __builtin_prefetch(values + start + AHEAD + lane);
        for (int lane = 0; lane < LANES; lane++) {
            double value = values[start + lane];
            lanes[lane] += value * value;
        }
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

/* Sum of squares: stretch by stretch, in each lane by lane, then lanes folded in halves. */
double sum_of_squares(const float *values, int64_t count)
{
    double total = 0;
    for (int64_t start = 0; start < count; start += STRETCH)
        total += sum_of_stretch(values + start, count - start < STRETCH ? count - start : STRETCH);
    return total;
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

/* Sum of squares of whole numbers, exact below 2^53 and at least 2^53 otherwise: in floats where
 * that is exact, which the sum itself tells (see _exact_squares in rounding.py). */
static double squares_of(const float *integers, int64_t count)
{
    float quick[GROUP] = {0};
    double total = 0;
    int64_t whole = count - count % GROUP;
    int exact = 1;
    for (int64_t i = 0; i < whole; i += GROUP)
        for (int lane = 0; lane < GROUP; lane++)
            quick[lane] += integers[i + lane] * integers[i + lane];
    for (int lane = 0; lane < GROUP; lane++) {
        exact &= quick[lane] < 0x1p24f;
        total += quick[lane];
    }
    if (!exact)
        total = 0;
    for (int64_t i = exact ? whole : 0; i < count; i++)
        total += (double)integers[i] * (double)integers[i];
    return total;
}

/* The outcome that a word's column of an alias table chooses. */
static inline uint32_t outcome_of(uint32_t word, uint32_t entry, int low_bits)
{
    uint32_t column = word >> LOW_END & COLUMN_MASK;
    int32_t below = (int32_t)(word & ((1u << (LOW_END - low_bits)) - 1)), threshold = (int32_t)(entry >> COLUMN_BITS);
    return below < threshold ? column : entry & COLUMN_MASK;
}

/* sums[i] += the sample of words[i], or nothing where it is left to the rest; return whether any was
 * (as a number other than 0). */
static inline __attribute__((always_inline)) uint32_t add_group(
    const uint32_t *words, const uint32_t *chosen, int low_bits, int64_t count, int32_t *sums)
{
    const int low_shift = LOW_END - low_bits;
    const uint32_t low_mask = (1u << low_bits) - 1;
    uint32_t any = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t outcome = outcome_of(words[i], chosen[i], low_bits);
        uint32_t rest = -(uint32_t)(outcome == COLUMN_MASK);
        uint32_t low = words[i] >> low_shift & low_mask;
        int32_t size = (int32_t)((outcome << low_bits | low) & ~rest);
        int32_t sign = -(int32_t)(words[i] >> 31);
        sums[i] += (size ^ sign) - sign;
        any |= rest;
    }
    return any;
}

/* The same of a whole piece; the places left to the rest are noted, counted from `first`, each with
 * its word's sign as its highest bit. Return how many they are. */
static int64_t add_piece(
    const uint32_t *words, const uint32_t *entries, int low_bits, int64_t count, int64_t first,
    int32_t *sums, uint32_t *left)
{
    uint32_t chosen[PIECE];
    int64_t noted = 0;
    for (int64_t i = 0; i < count; i++)
        chosen[i] = entries[words[i] >> LOW_END & COLUMN_MASK];
    for (int64_t start = 0; start < count; start += GROUP) {
        int64_t end = count - start < GROUP ? count : start + GROUP;
        uint32_t any = end - start == GROUP
            ? add_group(words + start, chosen + start, low_bits, GROUP, sums + start)
            : add_group(words + start, chosen + start, low_bits, end - start, sums + start);
        for (int64_t i = start; any && i < end; i++)
            if (outcome_of(words[i], chosen[i], low_bits) == COLUMN_MASK)
                left[noted++] = (uint32_t)(first + i) | (words[i] & SIGN);
    }
    return noted;
}

/* Widen. Past the caches, where nobody reads `out` soon, what is overwritten need not be fetched. */
static void widen(const int32_t *sums, int64_t count, int past_caches, int64_t *out)
{
    int64_t done = 0;
#ifdef __AVX2__
    if (past_caches && (uintptr_t)out % sizeof(int64_t) == 0) {
        while (done < count && (uintptr_t)(out + done) % sizeof(__m256i)) {
            out[done] = sums[done];
            done++;
        }
        for (; done + 4 <= count; done += 4) {
            __m256i wide = _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)(sums + done)));
            _mm256_stream_si256((__m256i *)(out + done), wide);
        }
    }
#endif
    for (; done < count; done++)
        out[done] = sums[done];
}

/* out[i] = floor(values[i]*factor + dither[i]/2^16 + 2^-17) + the sample of words[i], if there is an
 * alias table (entries), as add_samples says. First come the words, then the dither. Return the sum
 * of squares before the samples, exact below 2^53 and at least 2^53 otherwise; *noted is how many
 * places are left to the rest. */
double round_at_random(
    const float *values, double factor, int64_t count, const void *random,
    const uint32_t *entries, int low_bits, uint32_t *left, int64_t *noted, int past_caches,
    int64_t *out)
{
    const uint32_t *words = random;
    const uint16_t *dithers = (const void *)(entries ? words + count : words);
    float scaled[PIECE];
    int32_t sums[PIECE];
    double squares = 0;
    *noted = 0;
    for (int64_t start = 0; start < count; start += PIECE) {
        int64_t piece = count - start < PIECE ? count - start : PIECE;
        const uint16_t *dither = dithers + start;
        scale(values + start, factor, piece, scaled);
        for (int64_t i = 0; i < piece; i++) {
            float dithered = scaled[i] + dither[i] * 0x1p-16f;
            scaled[i] = floorf(dithered + 0x1p-17f);
            sums[i] = (int32_t)scaled[i]; /* below 2^23: see Grid */
        }
        squares += squares_of(scaled, piece);
        if (entries)
            *noted += add_piece(
                words + start, entries, low_bits, piece, start, sums, left + *noted);
        widen(sums, piece, past_caches, out + start);
    }
#ifdef __AVX2__
    _mm_sfence(); /* what went past the caches is there for whoever reads it next */
#endif
    return squares;
}

/* Add to out[i] the sample that the i-th word of 32 bits chooses, and nothing where it leaves it to
 * the rest: those places are noted, with their signs. Return how many there are. */
int64_t add_samples(
    int64_t count, const uint32_t *words, const uint32_t *entries, int low_bits, uint32_t *left,
    int64_t *out)
{
    int64_t noted = 0;
    for (int64_t start = 0; start < count; start += PIECE) {
        int64_t piece = count - start < PIECE ? count - start : PIECE;
        int32_t samples[PIECE] = {0};
        noted += add_piece(words + start, entries, low_bits, piece, start, samples, left + noted);
        for (int64_t i = 0; i < piece; i++)
            out[start + i] += samples[i];
    }
    return noted;
}
