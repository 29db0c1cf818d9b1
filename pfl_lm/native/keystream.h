/* AES in counter mode, two blocks an instruction, where the processor has vector AES.
 *
 * Each instruction is a round of the cipher and takes the same time whatever the key: no table is
 * looked up. Elsewhere there are no rounds, and pfl_lm/keystream.py leaves the work to OpenSSL.
 * Source: FIPS 197 §5.2 (the schedule of keys); NIST SP 800-38A §6.5 (counter mode).
 */
#ifndef PFL_LM_KEYSTREAM
#define PFL_LM_KEYSTREAM

#include <stdint.h>
#include <string.h>

#define AES_BLOCK 16
#define AT_ONCE 16 /* blocks: as many as hide the latency of a round */

struct keystream {
    uint8_t first[AES_BLOCK]; /* counter of byte 0, big-endian */
    uint8_t schedule[15 * AES_BLOCK];
    int32_t rounds;
};

#if defined(__VAES__) && defined(__AVX2__)
#include <immintrin.h>

static inline uint32_t substituted(uint32_t word)
{
    return (uint32_t)_mm_cvtsi128_si32(_mm_aeskeygenassist_si128(_mm_set1_epi32((int)word), 0));
}

/* Expand a key of 16 or 32 bytes; return the rounds of the cipher. */
static inline int expand(const uint8_t *key, int bytes, uint8_t *schedule)
{
    const int own = bytes / 4, rounds = own + 6;
    uint32_t words[60], constant = 1;
    memcpy(words, key, bytes);
    for (int i = own; i < 4 * (rounds + 1); i++) {
        uint32_t word = words[i - 1];
        if (i % own == 0) {
            word = substituted(word);
            word = (word >> 8 | word << 24) ^ constant;
            constant = constant << 1 ^ (constant & 0x80 ? 0x11b : 0);
        } else if (own > 6 && i % own == 4)
            word = substituted(word);
        words[i] = words[i - own] ^ word;
    }
    memcpy(schedule, words, AES_BLOCK * (rounds + 1));
    return rounds;
}

/* Encrypt AT_ONCE counters from `high`, `low` on; past a carry out of `low` they are wrong. */
static inline void encrypt(
    const __m256i *keys, int rounds, uint64_t high, uint64_t low, uint8_t *out)
{
    const __m256i big_endian = _mm256_broadcastsi128_si256(
        _mm_set_epi8(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i first = _mm256_set_epi64x(low + 1, high, low, high);
    __m256i pairs[AT_ONCE / 2];
    for (int i = 0; i < AT_ONCE / 2; i++) {
        __m256i counters = _mm256_add_epi64(first, _mm256_set_epi64x(2 * i, 0, 2 * i, 0));
        pairs[i] = _mm256_shuffle_epi8(counters, big_endian) ^ keys[0];
    }
    for (int round = 1; round < rounds; round++)
        for (int i = 0; i < AT_ONCE / 2; i++)
            pairs[i] = _mm256_aesenc_epi128(pairs[i], keys[round]);
    for (int i = 0; i < AT_ONCE / 2; i++) {
        pairs[i] = _mm256_aesenclast_epi128(pairs[i], keys[rounds]);
        _mm256_storeu_si256((__m256i *)(out + 2 * AES_BLOCK * i), pairs[i]);
    }
}

/* Write `count` bytes of a stream from byte `position` on. */
static void keystream(
    const struct keystream *stream, int64_t position, int64_t count, uint8_t *out)
{
    __m256i keys[15];
    uint64_t high, low;
    for (int round = 0; round <= stream->rounds; round++)
        keys[round] = _mm256_broadcastsi128_si256(
            _mm_loadu_si128((const __m128i *)(stream->schedule + AES_BLOCK * round)));
    memcpy(&high, stream->first, 8);
    memcpy(&low, stream->first + 8, 8);
    high = __builtin_bswap64(high);
    low = __builtin_bswap64(low);
    while (count > 0) {
        uint64_t at = low + (uint64_t)(position / AES_BLOCK), carried = high + (at < low);
        int64_t skipped = position % AES_BLOCK, made = AES_BLOCK * AT_ONCE - skipped;
        if (-at && -at < AT_ONCE)
            made = AES_BLOCK * (int64_t)-at - skipped; /* then `low` carries */
        if (made == AES_BLOCK * AT_ONCE && made <= count)
            encrypt(keys, stream->rounds, carried, at, out);
        else {
            uint8_t blocks[AES_BLOCK * AT_ONCE];
            made = made < count ? made : count;
            encrypt(keys, stream->rounds, carried, at, blocks);
            memcpy(out, blocks + skipped, made);
        }
        position += made;
        count -= made;
        out += made;
    }
}
#else
static inline int expand(const uint8_t *key, int bytes, uint8_t *schedule) { return 0; }

static void keystream(
    const struct keystream *stream, int64_t position, int64_t count, uint8_t *out)
{
}
#endif
#endif
