/* Vectors of b-bit fields, back to back and little-endian: added to machine words, and written.

   Field j begins at bit (j*b) % 8 of byte (j*b) / 8; eight fields fill b bytes. The same in numpy,
   which is the definition: pfl_lm/secagg/packing.py. Words that are added to keep rubbish above
   their b bits, as there: what lies above a field need not be cut off before it is added. */
#include "vector.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "fields are read as little-endian words"
#endif

typedef unsigned __int128 wide;

#define GROUP 8  /* fields that fill whole bytes, whatever b is */
#define REACH 24 /* bytes before and beyond a group that reading it may touch */
#define TOGETHER 8

/* Packed vectors, and the words of `width` bytes (4 or 8) to which they are added. */
typedef struct {
  void *total;
  const uint8_t *packed[TOGETHER];
  int width, bits, subtract;
} packed_sum;

EXPORT_SIZE(packed_sum)

/* Field `j` of a group, with rubbish above it; touches up to nine bytes from where it begins. */
INLINE uint64_t field(const uint8_t *group, int j, int bits) {
  int at = j * bits, shift = at & 7;
  uint64_t low;
  memcpy(&low, group + (at >> 3), 8);
  low >>= shift;
  if (shift + bits > 64) low |= (uint64_t)group[(at >> 3) + 8] << (64 - shift);
  return low;
}

#define DEFINE_ADD_GROUPS(WORD)                                                                 \
  static void add_groups_##WORD(WORD *total, const uint8_t *packed, int64_t begin, int64_t end, \
                                int bits, int subtract) {                                       \
    for (int64_t group = begin; group < end; group++)                                           \
      for (int j = 0; j < GROUP; j++) {                                                         \
        WORD value = (WORD)field(packed + group * bits, j, bits);                               \
        WORD *to = total + group * GROUP + j;                                                   \
        *to = subtract ? *to - value : *to + value;                                             \
      }                                                                                         \
  }
DEFINE_ADD_GROUPS(uint32_t)
DEFINE_ADD_GROUPS(uint64_t)

#ifdef __AVX2__
/* Does a field of so many bits lie within four bytes, whichever of the eight it is? */
INLINE int within_four_bytes(int bits) { return bits <= 26 || bits == 28 || bits == 32; }

/* Where the bytes of eight fields come from, and how far each is to be shifted down: fields 0 to 3
   from sixteen bytes at `low`, fields 4 to 7 from sixteen at `middle`. If b is even, the fifth field
   begins a byte, so that `low` may lie sixteen before and both are one load. */
struct lanes {
  __m256i order, shift;
  int low, middle;
};

INLINE struct lanes lanes_of(int bits) {
  uint8_t from[32];
  uint32_t down[GROUP];
  const int middle = 4 * bits / 8, low = bits % 2 ? 0 : middle - 16;
  for (int j = 0; j < GROUP; j++) {
    int start = j < 4 ? low : middle, at = j * bits - 8 * start;
    for (int byte = 0; byte < 4; byte++) /* past the sixteenth: rubbish above the field, or 0 */
      from[4 * j + byte] = at / 8 + byte < 16 ? (uint8_t)(at / 8 + byte) : 0x80;
    down[j] = at % 8;
  }
  struct lanes lanes = {_mm256_loadu_si256((const void *)from),
                        _mm256_loadu_si256((const void *)down), low, middle};
  return lanes;
}

INLINE __m256i eight_fields(const uint8_t *group, struct lanes lanes, int even) {
  __m256i bytes;
  if (even)
    bytes = _mm256_loadu_si256((const void *)(group + lanes.low));
  else
    bytes = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const void *)(group + lanes.low))),
        _mm_loadu_si128((const void *)(group + lanes.middle)), 1);
  return _mm256_srlv_epi32(_mm256_shuffle_epi8(bytes, lanes.order), lanes.shift);
}

/* Add groups `begin` to `end` of so many vectors, whose sum stays in a register. */
INLINE void add_fast(uint32_t *total, const uint8_t *const *packed, int64_t begin, int64_t end,
                     int bits, int subtract, int vectors, int even) {
  const struct lanes lanes = lanes_of(bits);
  const uint8_t *from[TOGETHER];
  for (int v = 0; v < vectors; v++) from[v] = packed[v];
  for (int64_t group = begin; group < end; group++) {
    __m256i *to = (__m256i *)(total + group * GROUP), before = _mm256_loadu_si256(to);
    __m256i sum = eight_fields(from[0] + group * bits, lanes, even);
    for (int v = 1; v < vectors; v++)
      sum = _mm256_add_epi32(sum, eight_fields(from[v] + group * bits, lanes, even));
    sum = subtract ? _mm256_sub_epi32(before, sum) : _mm256_add_epi32(before, sum);
    _mm256_storeu_si256(to, sum);
  }
}

#define DEFINE_ADD_FAST(VECTORS)                                                               \
  static void add_fast_##VECTORS(uint32_t *total, const uint8_t *const *packed, int64_t begin, \
                                 int64_t end, int bits, int subtract) {                        \
    if (bits % 2)                                                                              \
      add_fast(total, packed, begin, end, bits, subtract, VECTORS, 0);                         \
    else                                                                                       \
      add_fast(total, packed, begin, end, bits, subtract, VECTORS, 1);                         \
  }
DEFINE_ADD_FAST(1)
DEFINE_ADD_FAST(4)
DEFINE_ADD_FAST(8)
#endif

/* Add groups `begin` to `end` of some vectors; return of how many: of 1, 4 or 8. */
static int add_groups(const packed_sum *sum, void *total, const uint8_t *const *packed,
                      int64_t begin, int64_t end, int vectors) {
  const int bits = sum->bits, subtract = sum->subtract;
#ifdef __AVX2__
  if (sum->width == 4 && within_four_bytes(bits)) {
    const int together = vectors >= 8 ? 8 : vectors >= 4 ? 4 : 1;
    (together == 8   ? add_fast_8
     : together == 4 ? add_fast_4
                     : add_fast_1)(total, packed, begin, end, bits, subtract);
    return together;
  }
#endif
  (void)vectors;
  if (sum->width == 4)
    add_groups_uint32_t(total, *packed, begin, end, bits, subtract);
  else
    add_groups_uint64_t(total, *packed, begin, end, bits, subtract);
  return 1;
}

/* Add the fields `from` to `to` of one vector, near its ends: through a padded copy. */
static void add_edge(const packed_sum *sum, char *total, const uint8_t *packed, int64_t from,
                     int64_t to) {
  const int bits = sum->bits, width = sum->width;
  for (; from < to; from += GROUP) {
    const int64_t left = to - from < GROUP ? to - from : GROUP;
    uint8_t copy[REACH + 64 + REACH] = {0};
    const uint8_t *group = copy + REACH;
    uint64_t words[GROUP] = {0};
    memcpy(copy + REACH, packed + from / GROUP * bits, (left * bits + 7) / 8);
    memcpy(words, total + from * width, left * width);
    add_groups(sum, words, &group, 0, 1, 1);
    memcpy(total + from * width, words, left * width);
  }
}

/* total[first + i] ±= field i of each of the first `vectors` vectors, modulo 2^(8*width), for
   `count` fields. No byte before the first field of a vector, or after its last one, is read. */
void add_packed(const packed_sum *sum, int64_t first, int64_t count, int64_t vectors) {
  int64_t begin = REACH / GROUP, end = ((count * sum->bits + 7) / 8 - REACH) / sum->bits;
  char *total = (char *)sum->total + first * sum->width;
  if (end < begin) begin = end = 0;
  for (int64_t v = 0; v < vectors; v++) {
    add_edge(sum, total, sum->packed[v], 0, begin * GROUP);
    add_edge(sum, total, sum->packed[v], end * GROUP, count);
  }
  for (int64_t v = 0; v < vectors;)
    v += add_groups(sum, total, sum->packed + v, begin, end, (int)(vectors - v));
}

/* The lowest `bits` bits of four words in a row, as one number. */
INLINE wide four_fields(const uint32_t *words, uint64_t mask, int bits) {
  uint64_t low = (words[0] & mask) | (words[1] & mask) << bits;
  uint64_t high = (words[2] & mask) | (words[3] & mask) << bits;
  return low | (wide)high << (2 * bits);
}

/* Write groups of words of four bytes as long as what is written beyond a group lies within
   `packed`, and will be overwritten; return how many. */
static int64_t pack_groups(uint8_t *packed, const uint32_t *words, int64_t count, int bits) {
  const uint64_t mask = ((uint64_t)1 << bits) - 1;
  const int64_t groups = (count * bits / 8 - 32) / bits;
  const int middle = 4 * bits / 8, odd = 4 * bits % 8; /* the second half may begin in a byte */
  for (int64_t group = 0; group < groups; group++, words += GROUP, packed += bits) {
    wide low = four_fields(words, mask, bits), high = four_fields(words + 4, mask, bits);
    if (odd) high = high << 4 | low >> (4 * bits - 4);
    memcpy(packed, &low, 16);
    memcpy(packed + middle, &high, 16);
  }
  return groups < 0 ? 0 : groups;
}

/* Write the lowest `bits` bits of `count` words of `width` bytes (4 or 8) back to back; unused bits
   are 0. */
void pack(uint8_t *packed, const void *words, int width, int64_t count, int bits) {
  const uint64_t mask = bits == 64 ? ~(uint64_t)0 : ((uint64_t)1 << bits) - 1;
  const int64_t groups = width == 4 ? pack_groups(packed, words, count, bits) : 0;
  uint64_t waiting = 0; /* bits that do not fill eight bytes yet */
  int held = 0;
  packed += groups * bits;
  for (int64_t i = groups * GROUP; i < count; i++) {
    uint64_t value = width == 4 ? ((const uint32_t *)words)[i] : ((const uint64_t *)words)[i];
    value &= mask;
    waiting |= value << held;
    held += bits;
    if (held >= 64) {
      memcpy(packed, &waiting, 8);
      packed += 8;
      held -= 64;
      waiting = held ? value >> (bits - held) : 0;
    }
  }
  memcpy(packed, &waiting, (held + 7) / 8);
}
