/* Updates on their way to the grid: squared norms, rounding at random, exact noise.

   The same numbers as numpy's passes in pfl_lm/dp/sampler/rounding.py and alias.py, to the last bit,
   whatever the compiler makes of it: squares of floats are exact as doubles, and a dither divided by
   a power of two is exact as a float, so that a fused product and sum rounds as the two of them do.
   The one product that rounds is made in a function of its own, where there is no sum to fuse it with. */
#include "vector.h"

#define SUMS 256      /* side by side; part of what a norm means, as in rounding.py */
#define STRETCH 65536 /* floats a sum is taken over; likewise */
#define AHEAD 1024    /* floats between what is added and what is fetched */
#define PIECE 256     /* coordinates in the first cache; writes wait for memory while it computes */
#define GROUP 64      /* coordinates looked at together */
#define LINE 64       /* bytes of the caches */

/* The fields of a word and of a table's entry, as in alias.py. */
#define COLUMN_SHIFT 22 /* where a word's column begins; its low bits follow below */
#define CHOICE_SHIFT 12 /* where its choice begins, if there are no low bits */
#define CHOICE_BITS 10
#define SIGN_SHIFT 31 /* from a word's lowest bit, its sign, to a float's sign */
#define REST 1023     /* the outcome that is not drawn here */
#define THRESHOLD_BITS (CHOICE_BITS + 1)
#define MASK(bits) ((1 << (bits)) - 1)

typedef uint32_t word_lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t loose_words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t loose_halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

static double sum_of_stretch(const float *values, int64_t count) {
  double lanes[SUMS] = {0};
  int64_t whole = count - count % SUMS;
  for (int64_t start = 0; start < whole; start += SUMS) {
    for (int lane = 0; lane < SUMS; lane += 16) /* a line of the cache */
      __builtin_prefetch(values + start + AHEAD + lane);
    for (int lane = 0; lane < SUMS; lane++) {
      double value = values[start + lane];
      lanes[lane] += value * value;
    }
  }
  for (int lane = 0; lane < count - whole; lane++) {
    double value = values[whole + lane];
    lanes[lane] += value * value;
  }
  for (int half = SUMS / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

/* Sum of squares: stretch by stretch, in each lane by lane, then lanes folded in halves. */
double sum_of_squares(const float *values, int64_t count) {
  double total = 0;
  for (int64_t start = 0; start < count; start += STRETCH)
    total += sum_of_stretch(values + start, count - start < STRETCH ? count - start : STRETCH);
  return total;
}

/* Products rounded to float: by the factor as a float, or as a double where that lost bits. */
static __attribute__((noinline)) void scale(const float *values, double factor, int64_t count,
                                            float *scaled) {
  const float narrow = (float)factor;
  if (factor < 0x1p-64)
    for (int64_t i = 0; i < count; i++) scaled[i] = (float)(values[i] * factor);
  else
    for (int64_t i = 0; i < count; i++) scaled[i] = values[i] * narrow;
}

/* Largest whole numbers that are not above. */
INLINE vec floor_of(vec x) {
#if LANES == 16 && defined(__AVX512F__)
  return (vec)_mm512_floor_ps((__m512)x);
#elif LANES == 8 && defined(__AVX__)
  return (vec)_mm256_floor_ps((__m256)x);
#else
  vec towards_zero = __builtin_convertvector(__builtin_convertvector(x, ints), vec);
  return towards_zero + __builtin_convertvector(towards_zero > x, vec);
#endif
}

/* Sum of squares of a piece of whole numbers, given the lanes of its sum in floats: exact below
   2^53 and at least 2^53 otherwise (see _exact_squares in rounding.py). */
static double squares_of(const float *integers, vec quick) {
  double total = 0;
  int exact = 1;
  for (int lane = 0; lane < LANES; lane++) {
    exact &= quick[lane] < 0x1p24f;
    total += quick[lane];
  }
  if (!exact) {
    total = 0;
    for (int64_t i = 0; i < PIECE; i++) total += (double)integers[i] * (double)integers[i];
  }
  return total;
}

/* A piece of numbers becomes floor(number + (dither + 1/2)/2^bits), with dithers of 16 bits.
   Return its sum of squares. */
static double round_by_halves(const uint16_t *dithers, float *numbers) {
  vec quick = {0};
  for (int64_t i = 0; i < PIECE; i += LANES) {
    ints dither = __builtin_convertvector(*(const loose_halves *)(dithers + i), ints);
    vec offset = __builtin_convertvector(dither, vec) * 0x1p-16f + 0x1p-17f;
    vec rounded = floor_of(load(numbers + i) + offset);
    quick += rounded * rounded;
    store(numbers + i, rounded);
  }
  return squares_of(numbers, quick);
}

/* The entries of the words' columns; two words a load, which is faster than to gather. */
INLINE ints look_up(const uint32_t *random, const int32_t *entries) {
  ints found;
  for (int lane = 0; lane < LANES; lane += 2) {
    uint64_t two;
    memcpy(&two, random + lane, sizeof two);
    found[lane] = entries[(uint32_t)two >> COLUMN_SHIFT];
    found[lane + 1] = entries[two >> (32 + COLUMN_SHIFT)];
  }
  return found;
}

/* The magnitudes that words and their columns' entries choose. */
INLINE ints sizes_of(word_lanes word, ints entry, int low_bits) {
  ints own = (ints)(word >> (COLUMN_SHIFT - low_bits));
  ints choice = (ints)(word >> (CHOICE_SHIFT - low_bits)) & MASK(CHOICE_BITS);
  ints below = (entry & MASK(THRESHOLD_BITS)) > choice;
  return own + (entry >> THRESHOLD_BITS & ~below); /* the step to the other outcome */
}

/* Whether any lane is not 0. */
INLINE int is_any(ints x) {
  uint64_t pairs[LANES / 2], all = 0;
  memcpy(pairs, &x, sizeof pairs);
  for (int pair = 0; pair < LANES / 2; pair++) all |= pairs[pair];
  return all != 0;
}

/* As round_by_halves, with the dithers that words of noise have room for above their signs, and the
   sum of squares added to *squares; noisy[i] is the rounded number plus the sample of words[i].
   Places left to the rest, to which nothing is added, are noted, counted from `first`, each with its
   sign as its highest bit, as long as they are below `count`. Return how many they are. */
static int64_t round_with_noise(const uint32_t *words, const int32_t *entries, int low_bits,
                                int64_t count, int64_t first, float *numbers, float *noisy,
                                double *squares, uint32_t *left) {
  const int dither_bits = CHOICE_SHIFT - low_bits - 1;
  const float unit = 0.5f / (1 << dither_bits);
  const int32_t largest = (REST << low_bits) - 1;
  int64_t noted = 0;
  vec quick = {0};
  for (int64_t start = 0; start < PIECE; start += GROUP) {
    ints rest[GROUP / LANES], any = {0};
    for (int part = 0; part < GROUP / LANES; part++) {
      int64_t i = start + part * LANES;
      word_lanes word = *(const loose_words *)(words + i);
      ints odd = (ints)((word | 1) & MASK(dither_bits + 1)); /* 2 dither + 1 */
      vec rounded = floor_of(load(numbers + i) + __builtin_convertvector(odd, vec) * unit);
      quick += rounded * rounded;
      ints size = sizes_of(word, look_up(words + i, entries), low_bits);
      rest[part] = size > largest;
      any |= rest[part];
      word_lanes sample = (word_lanes) __builtin_convertvector(size & ~rest[part], vec);
      store(numbers + i, rounded);
      store(noisy + i, rounded + (vec)(sample ^ word << SIGN_SHIFT));
    }
    if (is_any(any))
      for (int64_t i = start; i < start + GROUP && i < count; i++)
        if (rest[(i - start) / LANES][i % LANES])
          left[noted++] = (uint32_t)(first + i) | words[i] << SIGN_SHIFT;
  }
  *squares += squares_of(numbers, quick);
  return noted;
}

#ifdef __AVX2__
/* Write a line of the cache past the caches: LINE / width integers. */
INLINE void stream_line(const float *sums, int width, char *out) {
  __m256i whole = _mm256_cvttps_epi32(_mm256_loadu_ps(sums)), *line = (__m256i *)out;
  if (width == 4) {
    _mm256_stream_si256(line, whole);
    _mm256_stream_si256(line + 1, _mm256_cvttps_epi32(_mm256_loadu_ps(sums + 8)));
  } else {
    _mm256_stream_si256(line, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(whole)));
    _mm256_stream_si256(line + 1, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(whole, 1)));
  }
}
#endif

/* Write whole numbers as integers of `width` bytes. */
INLINE void write_plainly(const float *sums, int64_t count, int width, char *out) {
  if (width == 4)
    for (int64_t i = 0; i < count; i++) ((int32_t *)out)[i] = (int32_t)sums[i];
  else
    for (int64_t i = 0; i < count; i++) ((int64_t *)out)[i] = (int32_t)sums[i];
}

/* The same. Past the caches, where nobody reads `out` soon, what is overwritten need not be fetched;
   a line of the cache at a time, or they would write its halves in turns. */
INLINE void write_integers(const float *sums, int64_t count, int past_caches, int width,
                           char *out) {
  int64_t done = 0;
#ifdef __AVX2__
  if (past_caches && (uintptr_t)out % width == 0) {
    const int64_t before = (LINE - (uintptr_t)out % LINE) % LINE / width;
    done = before < count ? before : count;
    write_plainly(sums, done, width, out);
    for (; done + LINE / width <= count; done += LINE / width)
      stream_line(sums + done, width, out + done * width);
  }
#else
  (void)past_caches;
#endif
  write_plainly(sums + done, count - done, width, out + done * width);
}

/* The random words of a piece, of `width` bytes each: those at `start`, or what is left of them, and
   zeros, in `room`. */
static const void *words_of(const void *random, int width, int64_t start, int64_t piece,
                            void *room) {
  const char *first = (const char *)random + start * width;
  if (piece == PIECE) return first;
  memcpy(room, first, piece * width);
  memset((char *)room + piece * width, 0, (PIECE - piece) * width);
  return room;
}

/* out[i] = floor(values[i]*factor + (dither[i] + 1/2)/2^bits) + the sample of words[i], if there is
   an alias table (entries). The dithers are in those words, or else words of 16 bits. Return the sum
   of squares before the samples, exact below 2^53 and at least 2^53 otherwise; *noted is how many
   places are left to the rest. `out` has integers of `width` bytes, 4 or 8. */
double round_at_random(const float *values, double factor, int64_t count, const void *random,
                       const int32_t *entries, int low_bits, uint32_t *left, int64_t *noted,
                       int past_caches, int width, void *out) {
  double squares = 0;
  *noted = 0;
  for (int64_t start = 0; start < count; start += PIECE) {
    int64_t piece = count - start < PIECE ? count - start : PIECE;
    float numbers[PIECE], noisy[PIECE];
    uint32_t room[PIECE];
    if (piece < PIECE) memset(numbers, 0, sizeof numbers);
    scale(values + start, factor, piece, numbers);
    if (entries)
      *noted += round_with_noise(words_of(random, sizeof *room, start, piece, room), entries,
                                 low_bits, piece, start, numbers, noisy, &squares, left + *noted);
    else
      squares += round_by_halves(words_of(random, sizeof(uint16_t), start, piece, room), numbers);
    const float *sums = entries ? noisy : numbers;
    char *to = (char *)out + start * width;
    if (width == 4)
      write_integers(sums, piece, past_caches, 4, to);
    else
      write_integers(sums, piece, past_caches, 8, to);
  }
#ifdef __AVX2__
  _mm_sfence(); /* what went past the caches is there for its next reader */
#endif
  return squares;
}

/* Add to out[i] the sample that the i-th word of 32 bits chooses, and nothing where it leaves it to
   the rest: those places are noted, with their signs. Return how many there are. `out` has integers
   of `width` bytes, 4 or 8, and wraps at that width. */
int64_t add_samples(int64_t count, const uint32_t *random, const int32_t *entries, int low_bits,
                    uint32_t *left, int width, void *out) {
  int64_t noted = 0;
  for (int64_t start = 0; start < count; start += PIECE) {
    int64_t piece = count - start < PIECE ? count - start : PIECE;
    uint32_t room[PIECE];
    float zeros[PIECE] = {0}, samples[PIECE]; /* zeros round to zeros */
    double nothing = 0;
    noted += round_with_noise(words_of(random, sizeof *room, start, piece, room), entries, low_bits,
                              piece, start, zeros, samples, &nothing, left + noted);
    if (width == 4)
      for (int64_t i = 0; i < piece; i++)
        ((uint32_t *)out)[start + i] += (uint32_t)(int32_t)samples[i];
    else
      for (int64_t i = 0; i < piece; i++)
        ((uint64_t *)out)[start + i] += (uint64_t)(int32_t)samples[i];
  }
  return noted;
}
