// Device layouts of quantised weights (engine_service/quant_layouts.py); sources for quantised weights are built with
//   CODE_BITS   4, 5, 6 or 8      CODE_ZERO   the code of weight 0
//   HAS_MIN     1: a minimum is added      GROUP   0: one scale; 32 or 16: 8 x 32 codes with 8-bit scales per 32 or 16
//
// A matrix is tiles [ceil(N / 8)][K / 32 / TILE_BLOCKS] of 8 rows x TILE_BLOCKS blocks of 32 codes. A tile holds, in this order,
//   codes [TILE_BLOCKS][BLOCK_BYTES], group scales, f16 scale [8 rows], f16 minimum [8 rows] (HAS_MIN).
//   group scales, GROUP 32: u8 scale [8 blocks][8 rows], u8 minimum [8 blocks][8 rows]; GROUP 16: int8 [8 blocks][8 rows][2 halves].
// Quad p (0..7) of a block is its codes 4p..4p+3; quad vector Q[p] has bytes [8 rows][4]. The codes of a block are
//   8 bits: Q[0..7]. Otherwise 4 vectors, v of which is Q[2v] in the low nibbles and Q[2v+1] in the high ones, and then
//   5 bits: 1 vector, bit p belongs to Q[p]; 6 bits: 2 vectors, bits 2f, 2f+1 of vector u belong to Q[4u+f].
#ifdef CODE_BITS
#define BLOCK_BYTES (32 * CODE_BITS)
#define TILE_BLOCKS (GROUP ? 8 : 1)
#define GROUP_OFFSET (TILE_BLOCKS * BLOCK_BYTES)
#define SCALE_OFFSET (GROUP_OFFSET + (GROUP ? 128 : 0))
#define TILE_BYTES (SCALE_OFFSET + 16 + 16 * HAS_MIN)

#ifdef CLF_AVX2
#define CLF_TO_FLOAT8(x) __builtin_convertvector(x, float8)
#define CLF_TO_INT8(x) __builtin_convertvector(x, int8)
#else
#define CLF_TO_FLOAT8(x) convert_float8(x)
#define CLF_TO_INT8(x) convert_int8(x)
#endif

// Tiles, and all their parts, are aligned to 16 bytes.
static inline v8f clf_load8u(__global const uchar *p) { return CLF_TO_FLOAT8(*(__global const uchar8 *)p); }

// dw of docs/numerics.md section 4 for the 8 rows of block `b` of a tile.
static inline v8f tile_scale(__global const uchar *tile, int b) {
  v8f scale = clf_load8h((__global const ushort *)(tile + SCALE_OFFSET));
#if GROUP == 32
  scale *= clf_load8u(tile + GROUP_OFFSET + b * 8);
#endif
  return scale;
}

#if HAS_MIN
// mw, likewise.
static inline v8f tile_minimum(__global const uchar *tile, int b) {
  v8f minimum = clf_load8h((__global const ushort *)(tile + SCALE_OFFSET + 16));
#if GROUP == 32
  minimum *= -clf_load8u(tile + GROUP_OFFSET + 64 + b * 8);
#endif
  return minimum;
}
#endif

// Code k (0..31) of row `row` (0..7) of the block at `block`.
static inline int tile_code(__global const uchar *block, int row, int k) {
  int p = k / 4, byte = row * 4 + k % 4;
#if CODE_BITS == 8
  return block[p * 32 + byte];
#else
  int code = (block[p / 2 * 32 + byte] >> (p % 2 * 4)) & 15;
#if CODE_BITS == 5
  code |= ((block[128 + byte] >> p) & 1) << 4;
#elif CODE_BITS == 6
  code |= ((block[128 + p / 4 * 32 + byte] >> (p % 4 * 2)) & 3) << 4;
#endif
  return code;
#endif
}

#if GROUP == 16
// The scales of half `h` (0: codes 0..15, 1: 16..31) of block `b` for the 8 rows.
static inline int8 tile_half_scale(__global const uchar *tile, int b, int h) {
  short8 pairs = *(__global const short8 *)(tile + GROUP_OFFSET + b * 16);
  return CLF_TO_INT8(h ? pairs >> (short)8 : (pairs << (short)8) >> (short)8);
}
#endif
#endif
