/* Vectors of b-bit fields, back to back and little-endian: added to machine words, and written.
 *
 * Field j begins at bit (j*b) % 8 of byte (j*b) / 8; eight fields fill b bytes. The same in numpy,
 * which is the definition: pfl_lm/secagg/packing.py. Words that are added to keep rubbish above
 * their b bits, as there: what lies above a field need not be cut off before it is added.
 */
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "fields are read as little-endian words"
#endif

#define GROUP 8    /* fields that fill whole bytes, whatever b is */
#define REACH 24   /* bytes beyond a group that reading it may touch */
#define PIECE 2048 /* words of the total that stay in the first cache while vectors are added */

/* Field `j` of a group, with rubbish above it; touches up to nine bytes from where it begins. */
static inline uint64_t field(const uint8_t *group, int j, int bits)
{
    int at = j * bits, shift = at & 7;
    uint64_t low;
    memcpy(&low, group + (at >> 3), 8);
    low >>= shift;
    if (shift + bits > 64)
        low |= (uint64_t)group[(at >> 3) + 8] << (64 - shift);
    return low;
}

#define DEFINE_ADD_GROUPS(WORD)                                                                 \
    static inline void add_groups_##WORD(                                                       \
        WORD *total, const uint8_t *packed, int64_t groups, int bits, int subtract)             \
    {                                                                                           \
        for (int64_t group = 0; group < groups; group++, packed += bits, total += GROUP)        \
            for (int j = 0; j < GROUP; j++) {                                                   \
                WORD value = (WORD)field(packed, j, bits);                                      \
                total[j] = subtract ? total[j] - value : total[j] + value;                      \
            }                                                                                   \
    }
DEFINE_ADD_GROUPS(uint16_t)
DEFINE_ADD_GROUPS(uint64_t)
DEFINE_ADD_GROUPS(uint32_t)

#ifdef __AVX2__
/* Does a field of so many bits lie within four bytes, whichever of the eight it is? */
static inline int within_four_bytes(int bits) { return bits <= 26 || bits == 28; }

/* Where the bytes of eight fields come from, and how far each is to be shifted down. Fields 0 to 3
 * lie in the sixteen bytes from the group's first, fields 4 to 7 in those from its middle. */
struct lanes { __m256i order, shift; int middle; };

static inline struct lanes lanes_of(int bits)
{
    uint8_t from[32];
    uint32_t down[GROUP];
    for (int j = 0; j < GROUP; j++) {
        int half = j / 4 * (4 * bits) / 8, at = j * bits - 8 * half;
        for (int byte = 0; byte < 4; byte++)
            from[4 * j + byte] = (uint8_t)(at / 8 + byte);
        down[j] = at % 8;
    }
    struct lanes lanes = {
        _mm256_loadu_si256((const void *)from), _mm256_loadu_si256((const void *)down),
        4 * bits / 8};
    return lanes;
}

static inline __m256i eight_fields(const uint8_t *group, struct lanes lanes)
{
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const void *)group));
    __m128i high = _mm_loadu_si128((const void *)(group + lanes.middle));
    __m256i bytes = _mm256_inserti128_si256(low, high, 1);
    return _mm256_srlv_epi32(_mm256_shuffle_epi8(bytes, lanes.order), lanes.shift);
}

/* Groups of `vectors` vectors at once, whose sum stays in a register. */
static inline __attribute__((always_inline)) void add_groups_fast(
    uint32_t *total, const uint8_t *packed, int64_t stride, int vectors, int64_t groups, int bits,
    int subtract)
{
    const struct lanes lanes = lanes_of(bits);
    for (int64_t group = 0; group < groups; group++, packed += bits, total += GROUP) {
        __m256i sum = eight_fields(packed, lanes), before = _mm256_loadu_si256((void *)total);
        for (int v = 1; v < vectors; v++)
            sum = _mm256_add_epi32(sum, eight_fields(packed + v * stride, lanes));
        sum = subtract ? _mm256_sub_epi32(before, sum) : _mm256_add_epi32(before, sum);
        _mm256_storeu_si256((void *)total, sum);
    }
}
#endif

static void add_groups(
    void *total, int width, const uint8_t *packed, int64_t groups, int bits, int subtract)
{
#ifdef __AVX2__
    if (width == 4 && within_four_bytes(bits)) {
        add_groups_fast(total, packed, 0, 1, groups, bits, subtract);
        return;
    }
#endif
    if (width == 2)
        add_groups_uint16_t(total, packed, groups, bits, subtract);
    else if (width == 4)
        add_groups_uint32_t(total, packed, groups, bits, subtract);
    else
        add_groups_uint64_t(total, packed, groups, bits, subtract);
}

/* A packed vector whose fields are words; it may begin anywhere, so they are copied out, which
 * compiles to plain loads. */
#define DEFINE_ADD_WORDS(WORD)                                                                  \
    static void add_words_##WORD(                                                               \
        WORD *total, const uint8_t *packed, int64_t count, int subtract)                        \
    {                                                                                           \
        for (int64_t i = 0; i < count; i++) {                                                   \
            WORD value;                                                                         \
            memcpy(&value, packed + i * sizeof value, sizeof value);                            \
            total[i] += subtract ? (WORD)(0 - value) : value;                                   \
        }                                                                                       \
    }
DEFINE_ADD_WORDS(uint16_t)
DEFINE_ADD_WORDS(uint32_t)
DEFINE_ADD_WORDS(uint64_t)

static void add_words(void *total, int width, const uint8_t *packed, int64_t count, int subtract)
{
    if (width == 2)
        add_words_uint16_t(total, packed, count, subtract);
    else if (width == 4)
        add_words_uint32_t(total, packed, count, subtract);
    else
        add_words_uint64_t(total, packed, count, subtract);
}

/* Add `count` fields of one vector; none of its bytes from `bytes` on is read. The first `done`
 * fields, whole groups, were added already. */
static void add_piece(
    char *total, int width, const uint8_t *packed, int64_t bytes, int64_t count, int64_t done,
    int bits, int subtract)
{
    int64_t safe = (bytes - REACH) / bits, groups = count / GROUP;
    groups = safe < 0 ? 0 : safe < groups ? safe : groups;
    if (groups * GROUP > done) {
        add_groups(
            total + done * width, width, packed + done / GROUP * bits, groups - done / GROUP, bits,
            subtract);
        done = groups * GROUP;
    }
    for (; done < count; done += GROUP) { /* near the end: through a padded copy */
        int64_t left = count - done < GROUP ? count - done : GROUP;
        uint8_t copy[64 + REACH] = {0};
        uint64_t words[GROUP] = {0};
        memcpy(copy, packed + done / GROUP * bits, (left * bits + 7) / 8);
        memcpy(words, total + done * width, left * width);
        add_groups(words, width, copy, 1, bits, subtract);
        memcpy(total + done * width, words, left * width);
    }
}

/* A buffer of packed vectors and the words to which they are added, `width` bytes each (2, 4, 8). */
struct sum {
    void *total;
    const uint8_t *packed;
    int64_t stride; /* bytes from one vector to the next */
    int width, bits, subtract;
};

/* Add whole groups of four vectors at once where that is fast; return how many fields that were. */
static int64_t add_four(const struct sum *sum, char *total, const uint8_t *packed, int64_t bytes,
                        int64_t count)
{
#ifdef __AVX2__
    int64_t safe = (bytes - REACH) / sum->bits, groups = count / GROUP;
    groups = safe < 0 ? 0 : safe < groups ? safe : groups;
    if (sum->width == 4 && within_four_bytes(sum->bits)) {
        uint32_t *words = (uint32_t *)total;
        if (sum->subtract)
            add_groups_fast(words, packed, sum->stride, 4, groups, sum->bits, 1);
        else
            add_groups_fast(words, packed, sum->stride, 4, groups, sum->bits, 0);
        return groups * GROUP;
    }
#endif
    return 0;
}

/* total[first + i] ±= field i of each of the first `vectors` vectors, modulo 2^(8*width), for
 * `count` fields. No byte after the last field of a vector is read. */
void add_packed(const struct sum *sum, int64_t first, int64_t count, int64_t vectors)
{
    const int width = sum->width, bits = sum->bits;
    const int64_t bytes = (count * bits + 7) / 8;
    for (int64_t start = 0; start < count; start += PIECE) {
        int64_t piece = count - start < PIECE ? count - start : PIECE;
        int64_t at = start / GROUP * bits, done = 0;
        char *to = (char *)sum->total + (first + start) * width;
        const uint8_t *from = sum->packed + at;
        for (int64_t v = 0; v < vectors; v++, from += sum->stride) {
            if (bits == 8 * width) {
                add_words(to, width, from, piece, sum->subtract);
                continue;
            }
            if (v % 4 == 0)
                done = vectors - v < 4 ? 0 : add_four(sum, to, from, bytes - at, piece);
            add_piece(to, width, from, bytes - at, piece, done, bits, sum->subtract);
        }
    }
}

/* Write the lowest `bits` bits of `count` words of `width` bytes back to back; unused bits are 0. */
void pack(uint8_t *packed, const void *words, int width, int64_t count, int bits)
{
    const uint64_t mask = bits == 64 ? ~(uint64_t)0 : ((uint64_t)1 << bits) - 1;
    uint64_t waiting = 0; /* bits that do not fill eight bytes yet */
    int held = 0;
    for (int64_t i = 0; i < count; i++) {
        uint64_t value = width == 2   ? ((const uint16_t *)words)[i]
                         : width == 4 ? ((const uint32_t *)words)[i]
                                      : ((const uint64_t *)words)[i];
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
