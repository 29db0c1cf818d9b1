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
/* Eight fields at once: bytes to their lanes, and shifted down. Each field must lie within four
 * bytes of the sixteen that begin with its half of the group. */
static __attribute__((noinline)) void add_groups_fast(
    uint32_t *total, const uint8_t *packed, int64_t groups, int bits, int subtract)
{
    uint8_t from[32];
    uint32_t down[8];
    for (int j = 0; j < GROUP; j++) {
        int half = j / 4 * (4 * bits) / 8, at = j * bits - 8 * half;
        for (int byte = 0; byte < 4; byte++)
            from[4 * j + byte] = (uint8_t)(at / 8 + byte);
        down[j] = at % 8;
    }
    const __m256i order = _mm256_loadu_si256((const void *)from);
    const __m256i shift = _mm256_loadu_si256((const void *)down);
    const int middle = 4 * bits / 8;
    for (int64_t group = 0; group < groups; group++, packed += bits, total += GROUP) {
        __m256i bytes = _mm256_castsi128_si256(_mm_loadu_si128((const void *)packed));
        bytes = _mm256_inserti128_si256(bytes, _mm_loadu_si128((const void *)(packed + middle)), 1);
        __m256i values = _mm256_srlv_epi32(_mm256_shuffle_epi8(bytes, order), shift);
        __m256i sum = _mm256_loadu_si256((const void *)total);
        sum = subtract ? _mm256_sub_epi32(sum, values) : _mm256_add_epi32(sum, values);
        _mm256_storeu_si256((void *)total, sum);
    }
}

/* Does a field of so many bits lie within four bytes, whichever of the eight it is? */
static int within_four_bytes(int bits) { return bits <= 26 || bits == 28; }
#endif

static inline void add_groups(
    void *total, int width, const uint8_t *packed, int64_t groups, int bits, int subtract)
{
#ifdef __AVX2__
    if (width == 4 && within_four_bytes(bits)) {
        add_groups_fast(total, packed, groups, bits, subtract);
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

static inline void add_words(
    void *total, int width, const uint8_t *packed, int64_t count, int subtract)
{
    /* The vector may begin anywhere: its words are copied out, which compiles to plain loads. */
#define ADD_WORDS(WORD)                                                                         \
    for (int64_t i = 0; i < count; i++) {                                                       \
        WORD value;                                                                             \
        memcpy(&value, packed + i * sizeof value, sizeof value);                                \
        ((WORD *)total)[i] += subtract ? (WORD)(0 - value) : value;                             \
    }
    if (width == 2) {
        ADD_WORDS(uint16_t)
    } else if (width == 4) {
        ADD_WORDS(uint32_t)
    } else {
        ADD_WORDS(uint64_t)
    }
}

/* Add one piece of one vector; `bytes` of `packed` may be read, and no more. */
static inline void add_piece(
    char *total, int width, const uint8_t *packed, int64_t bytes, int64_t count, int bits,
    int subtract)
{
    if (bits == 8 * width) {
        add_words(total, width, packed, count, subtract);
        return;
    }
    /* Whole groups whose reading stays inside; what is left goes through a padded copy. */
    int64_t safe = (bytes - REACH) / bits, groups = count / GROUP;
    groups = safe < 0 ? 0 : safe < groups ? safe : groups;
    add_groups(total, width, packed, groups, bits, subtract);
    for (int64_t done = groups * GROUP; done < count; done += GROUP) {
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

/* total[first + i] ±= field i of each of the first `vectors` vectors, modulo 2^(8*width), for
 * `count` fields. No byte after the last field of a vector is read. */
void add_packed(const struct sum *sum, int64_t first, int64_t count, int64_t vectors)
{
    const int width = sum->width, bits = sum->bits;
    const int64_t bytes = (count * bits + 7) / 8;
    for (int64_t start = 0; start < count; start += PIECE) {
        int64_t piece = count - start < PIECE ? count - start : PIECE;
        int64_t at = start / GROUP * bits;
        char *to = (char *)sum->total + (first + start) * width;
        for (int64_t v = 0; v < vectors; v++) {
            const uint8_t *from = sum->packed + v * sum->stride + at;
            if (sum->subtract)
                add_piece(to, width, from, bytes - at, piece, bits, 1);
            else
                add_piece(to, width, from, bytes - at, piece, bits, 0);
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
