/* Tiles of the processor (Intel AMX): one instruction adds the products of 16 rows and 16 columns, 16
   pairs of bfloat16 each, to 256 sums of float32.

   A file compiled for a processor with AMX_BF16 asks the kernel for tiles when it is loaded (Linux
   lends them to a process that asks) and multiplies a known matrix. Where either fails, vectors do the
   work. tests/native/emulated_tiles.h stands for the instructions on other processors.

   Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 (tiles), and
   volume 2, TDPBF16PS: products of the even and of the odd numbers are summed apart, each over the 16
   pairs in order, and both are then added to the sum. Numbers below 2^-126 count as 0. */

#ifndef PFL_LM_TILES
#define PFL_LM_TILES

#include "panels.h"

#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && LANES == 16 /* GCC, clang */
#define TILES

#define TILE 16 /* rows of a tile, columns of sums, and pairs of a stretch */

#ifndef PERMITTED
#include <sys/syscall.h>
#include <unistd.h>
#define PERMITTED (!syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */))
#endif

/* What LDTILECFG reads: tiles 0 and 1 are a panel's halves, 2 rows of the left matrix, 3 and 4 sums. */
typedef struct {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16]; /* of a row of each tile */
  uint8_t rows[16];
} __attribute__((aligned(64))) tile_shapes;

static int tiles_work;              /* whether this process may use them */
static _Thread_local int tile_rows; /* of the left matrix, as tiles are shaped now; 0: not at all */

INLINE void shape_tiles(int rows) {
  tile_shapes shapes = {.palette = 1};
  for (int i = 0; i < 5; i++) shapes.bytes[i] = 64, shapes.rows[i] = i < 2 ? TILE : rows;
  _tile_loadconfig(&shapes);
  tile_rows = rows;
}

/* Gives the tiles back: another library may shape them in its own way. */
HELPER void end_tiles(void) {
  if (tile_rows) _tile_release();
  tile_rows = 0;
}

/* sum[i] += row i times the panel over whole stretches of TILE lines of pairs; rows begin `apart`
   words from each other. Returns how many lines that were. */
HELPER long add_by_tiles(int rows, long n, const uint32_t *row, long apart, const uint32_t *panel,
                         vec (*sum)[2]) {
  long whole = n / TILE * TILE;
  if (!tiles_work || !whole) return 0;
  if (tile_rows != rows) shape_tiles(rows);
  __asm__ volatile("" ::: "memory"); /* what tiles load is in memory, not in a register */
  _tile_loadd(3, sum[0], 4 * WIDTH);
  _tile_loadd(4, sum[0] + 1, 4 * WIDTH);
  for (long k = 0; k < whole; k += TILE) {
    _tile_loadd(0, panel + k * WIDTH, 4 * WIDTH);
    _tile_loadd(1, panel + k * WIDTH + LANES, 4 * WIDTH);
    _tile_loadd(2, row + k, 4 * apart);
    _tile_dpbf16ps(3, 2, 0);
    _tile_dpbf16ps(4, 2, 1);
  }
  _tile_stored(3, sum[0], 4 * WIDTH);
  _tile_stored(4, sum[0] + 1, 4 * WIDTH);
  __asm__ volatile("" ::: "memory");
  return whole;
}

/* Asks for tiles, and lets them multiply numbers whose products and sums float32 holds exactly. */
__attribute__((constructor)) static void try_tiles(void) {
  uint32_t left[TILE * TILE], panel[TILE * WIDTH];
  vec sum[TILE][2] = {{{0}}};
  float expected[TILE][WIDTH] = {{0}};
  if (!PERMITTED) return;
  tiles_work = 1;
  /* On the left 1 + (i + 2 k) % 5 and 2, on the right 3 and j % 2, each two a pair. */
  for (int i = 0; i < TILE; i++)
    for (int k = 0; k < TILE; k++) {
      float number = (float)(1 + (i + 2 * k) % 5);
      uint32_t bits;
      memcpy(&bits, &number, 4);
      left[i * TILE + k] = bits >> 16 | 0x40000000;
      for (int j = 0; j < WIDTH; j++) expected[i][j] += 3.0f * number + 2.0f * (float)(j % 2);
    }
  for (int k = 0; k < TILE; k++)
    for (int j = 0; j < WIDTH; j++) panel[k * WIDTH + j] = 0x4040 | (j % 2 ? 0x3f800000u : 0);
  add_by_tiles(TILE, TILE, left, TILE, panel, sum);
  end_tiles();
  tiles_work = !memcmp(sum, expected, sizeof sum);
}

#else
HELPER void end_tiles(void) {}
#endif

#endif
