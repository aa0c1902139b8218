// Device layouts of weights (engine_service/compute/quant_layouts.py), and how matmuls go through them: put before every source, for
// those that are built for a layout.
//
// A matrix is tiles [ceil(N / 8)][...] of 8 rows: lanes are rows.
// Float weights: -DWEIGHT_F32, -DWEIGHT_F16 or -DWEIGHT_BF16; a tile is element k of 8 rows, [ceil(N / 8)][K][8].
// Quantised weights:
//   CODE_BITS   4, 5, 6 or 8      CODE_ZERO   the code of weight 0
//   HAS_MIN     1: a minimum is added      GROUP   0: one scale; 32 or 16: 8 x 32 codes with 8-bit scales per 32 or 16
// Tiles are [ceil(N / 8)][K / 32 / TILE_BLOCKS], each of 8 rows x TILE_BLOCKS blocks of 32 codes. A tile holds, in order,
//   codes         [TILE_BLOCKS][BLOCK_BYTES]
//   group scales  GROUP 32: u8 scale [8 blocks][8 rows], u8 minimum [8 blocks][8 rows]; GROUP 16: int8 [8 blocks][8 rows][2]
//   scale         f16 [8 rows]
//   minimum       f16 [8 rows], where HAS_MIN
// Quad p (0..7) of a block is its codes 4p..4p+3; quad vector Q[p] has bytes [8 rows][4]. The codes of a block are
//   8 bits: Q[0..7]. Otherwise 4 vectors, v of which is Q[2v] in the low nibbles and Q[2v+1] in the high ones, and then
//   5 bits: 1 vector, bit p belongs to Q[p]; 6 bits: 2 vectors, bits 2f, 2f+1 of vector u belong to Q[4u+f].
// Matrices are aligned to 32 bytes; tiles of quantised weights, and all their parts of 16 bytes and more, to 16.
#ifdef CLF_AVX2
#define CLF_TO_FLOAT8(x) __builtin_convertvector(x, float8)
#define CLF_TO_INT8(x) __builtin_convertvector(x, int8)
#else
#define CLF_TO_FLOAT8(x) convert_float8(x)
#define CLF_TO_INT8(x) convert_int8(x)
#endif

#if defined(WEIGHT_F32)
#define WEIGHT_BYTES 4
static inline v8f load_weights(__global const uchar *p) { return *(__global const float8 *)p; }
#elif defined(WEIGHT_F16)
#define WEIGHT_BYTES 2
static inline v8f load_weights(__global const uchar *p) { return clf_load8h((__global const ushort *)p); }
#elif defined(WEIGHT_BF16)
#define WEIGHT_BYTES 2
static inline v8f load_weights(__global const uchar *p) {
  return as_float8(CLF_TO_INT8(*(__global const ushort8 *)p) << 16);
}
#endif

#ifdef CODE_BITS
#define BLOCK_BYTES (32 * CODE_BITS)
#define TILE_BLOCKS (GROUP ? 8 : 1)
#define GROUP_OFFSET (TILE_BLOCKS * BLOCK_BYTES)
#define SCALE_OFFSET (GROUP_OFFSET + (GROUP ? 128 : 0))
#define TILE_BYTES (SCALE_OFFSET + 16 + 16 * HAS_MIN)

static inline v8f load_bytes(__global const uchar *p) { return CLF_TO_FLOAT8(*(__global const uchar8 *)p); }

// dw of docs/numerics.md section 4 for the 8 rows of block `b` of a tile.
static inline v8f tile_scale(__global const uchar *tile, int b) {
  v8f scale = clf_load8h((__global const ushort *)(tile + SCALE_OFFSET));
#if GROUP == 32
  scale *= load_bytes(tile + GROUP_OFFSET + b * 8);
#endif
  return scale;
}

#if HAS_MIN
// mw, likewise.
static inline v8f tile_minimum(__global const uchar *tile, int b) {
  v8f minimum = clf_load8h((__global const ushort *)(tile + SCALE_OFFSET + 16));
#if GROUP == 32
  minimum *= -load_bytes(tile + GROUP_OFFSET + 64 + b * 8);
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
// The scales of half `h` (0: codes 0..15, 1: 16..31) of block `b`: of row `row`, or of the 8 rows.
static inline int tile_half_scale(__global const uchar *tile, int b, int row, int h) {
  return as_char(tile[GROUP_OFFSET + b * 16 + row * 2 + h]);
}

static inline int8 tile_half_scales(__global const uchar *tile, int b, int h) {
  short8 pairs = *(__global const short8 *)(tile + GROUP_OFFSET + b * 16);
  return CLF_TO_INT8(h ? pairs >> (short)8 : (pairs << (short)8) >> (short)8);
}
#endif
#endif

#if defined(WEIGHT_BYTES) || defined(CODE_BITS)
// A matmul's groups of 8 weight rows are shared out evenly to the work-items, however many there are; ITEM_GROUPS each are
// enough to repay what an item does once. Each takes its groups through all tokens, in tiles of ROW_GROUPS groups x TOKENS
// tokens, so that what is unpacked or loaded once serves several. What a tile has past the last group or token repeats that
// and is not stored; a last token alone is done apart.
#ifndef ROW_GROUPS
#define ROW_GROUPS 2
#endif
#ifndef TOKENS
#if defined(CODE_BITS) && defined(CLF_AVX2) && CLF_VNNI
#define TOKENS 8
#else
#define TOKENS 4
#endif
#endif
#ifndef ITEM_GROUPS
#define ITEM_GROUPS 8
#endif

static inline int groups_per_item(int num_groups, int num_items) {
  int share = (num_groups + num_items - 1) / num_items;
  return (share + ROW_GROUPS - 1) / ROW_GROUPS * ROW_GROUPS;
}

#define FOR(i, n) _Pragma("unroll") for (int i = 0; i < n; i++)
// Over the row groups or tokens of a tile: all of them where it is `full`, else the first alone. The loop's length is a
// constant all the same, since only then do arrays that it indexes live in registers.
#define EACH(i, n) FOR(i, n) if (i == 0 || __builtin_expect(full, 1))

// Weights into the second-level cache, for the next work-item. Past the end of the buffer this does nothing.
static inline void prefetch_weights(__global const uchar *p, int nbytes) {
#ifdef CLF_AVX2
  for (int i = 0; i < nbytes; i += 64) __builtin_prefetch((const void *)(size_t)(p + i), 0, 2);
#endif
}

// Rows n .. n + 7 of one token, as far as there are: y points to row 0.
static inline void store_rows(__global float *y, v8f total, __global const float *bias, int n, int N) {
  if (n + 8 <= N) {
#ifdef BIAS
    total += clf_load8(bias + n);
#endif
#ifdef RESIDUAL
    total = clf_load8(y + n) + total;
#endif
    clf_store8(y + n, total);
    return;
  }
  float lanes[8];
  clf_store8(lanes, total);
  for (int i = 0; n + i < N; i++) {
    float value = lanes[i];
#ifdef BIAS
    value += bias[n + i];
#endif
#ifdef RESIDUAL
    value = y[n + i] + value;
#endif
    y[n + i] = value;
  }
}
#endif
