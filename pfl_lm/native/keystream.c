/* The AES keystream for pfl_lm/keystream.py; what it is made of is in keystream.h. */
#include "keystream.h"

/* Open the stream of a key of 16 or 32 bytes from the counter `first` on; return 0 where the
 * processor has no vector AES. */
int open_stream(struct keystream *stream, const uint8_t *key, int bytes, const uint8_t *first)
{
    memcpy(stream->first, first, AES_BLOCK);
    stream->rounds = expand(key, bytes, stream->schedule);
    return stream->rounds;
}

/* Write `count` bytes of the stream from byte `position` on. */
void read_stream(
    const struct keystream *stream, int64_t position, int64_t count, uint8_t *out)
{
    keystream(stream, position, count, out);
}
