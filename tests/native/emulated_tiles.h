/* Intel AMX's tiles in plain C, for processors that have none: `-DLANES=16 -include` this file.

   It follows the Software Developer's Manual (LDTILECFG, TILELOADD, TDPBF16PS, TILESTORED): what
   would fault on a processor ends the program with a message. */

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_loadd(to, base, stride) emulated_load(to, base, stride)
#define _tile_stored(from, base, stride) emulated_store(from, base, stride)
#define _tile_dpbf16ps(to, left, right) emulated_multiply(to, left, right)
#define __AMX_BF16__ 1
#ifndef PERMITTED
#define PERMITTED 1
#endif

static _Thread_local struct {
  int shaped;
  int rows[8], bytes[8];
  uint8_t content[8][16][64];
} emulated;

static __attribute__((unused)) void emulated_fault(const char *what) {
  fprintf(stderr, "emulated tiles: %s\n", what);
  abort();
}

static __attribute__((unused)) void emulated_loadconfig(const void *from) {
  const uint8_t *shapes = from;
  if (shapes[0] != 1) emulated_fault("palette");
  for (int i = 1; i < 16; i++)
    if (shapes[i]) emulated_fault("start or reserved bytes");
  for (int i = 0; i < 16; i++) {
    uint16_t bytes;
    memcpy(&bytes, shapes + 16 + 2 * i, 2);
    int rows = shapes[48 + i];
    if ((i >= 8 && (rows || bytes)) || rows > 16 || bytes > 64 || !rows != !bytes)
      emulated_fault("shape");
    if (i < 8) emulated.rows[i] = rows, emulated.bytes[i] = bytes;
  }
  memset(emulated.content, 0, sizeof emulated.content);
  emulated.shaped = 1;
}

static __attribute__((unused)) void emulated_release(void) { emulated.shaped = 0; }

static __attribute__((unused)) void emulated_ready(int tile) {
  if (!emulated.shaped || !emulated.rows[tile]) emulated_fault("a tile without a shape");
}

static __attribute__((unused)) void emulated_load(int tile, const void *base, long stride) {
  emulated_ready(tile);
  memset(emulated.content[tile], 0, sizeof emulated.content[tile]);
  for (int i = 0; i < emulated.rows[tile]; i++)
    memcpy(emulated.content[tile][i], (const char *)base + i * stride, emulated.bytes[tile]);
}

static __attribute__((unused)) void emulated_store(int tile, void *base, long stride) {
  emulated_ready(tile);
  for (int i = 0; i < emulated.rows[tile]; i++)
    memcpy((char *)base + i * stride, emulated.content[tile][i], emulated.bytes[tile]);
}

static __attribute__((unused)) float emulated_number(uint32_t bits) {
  float number;
  if (!(bits & 0x7f800000)) bits &= 0x80000000; /* denormals are zero */
  memcpy(&number, &bits, 4);
  return number;
}

/* TDPBF16PS: even and odd products apart, fused; results below 2^-126 are not flushed here. */
static __attribute__((unused)) void emulated_multiply(int to, int left, int right) {
  emulated_ready(to), emulated_ready(left), emulated_ready(right);
  int pairs = emulated.bytes[left] / 4, columns = emulated.bytes[to] / 4;
  if (emulated.rows[left] != emulated.rows[to] || emulated.bytes[right] != emulated.bytes[to] ||
      emulated.rows[right] != pairs)
    emulated_fault("shapes of a product");
  for (int i = 0; i < emulated.rows[to]; i++)
    for (int j = 0; j < columns; j++) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < pairs; k++) {
        uint32_t a, b;
        memcpy(&a, emulated.content[left][i] + 4 * k, 4);
        memcpy(&b, emulated.content[right][k] + 4 * j, 4);
        even = __builtin_fmaf(emulated_number(a << 16), emulated_number(b << 16), even);
        odd = __builtin_fmaf(emulated_number(a & 0xffff0000), emulated_number(b & 0xffff0000), odd);
      }
      memcpy(&sum, emulated.content[to][i] + 4 * j, 4);
      sum += even + odd;
      memcpy(emulated.content[to][i] + 4 * j, &sum, 4);
    }
}
