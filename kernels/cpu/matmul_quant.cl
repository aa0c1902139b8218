// y = weights x activations for quantised weights, and activations quantised per 32 (docs/numerics.md sections 2 and 4).
//
// Defines: the layout's (kernels/weight_tile.cl); BIAS adds bias[n]; RESIDUAL adds what y holds.
// CLF_VNNI=1 (with AVX2) takes AVX-512's dot product of bytes, for several tokens as kernels/cpu/vnni_tile.cl has it.
//
// Work is shared out as kernels/weight_tile.cl says: launch any number of items. Sums inside a block are integers and all
// other sums follow K, so neither the share nor the tile changes a result.
#define SEGMENT 16                    // blocks of 32 in a segment of docs/numerics.md section 4
#define HALVES (GROUP == 16 ? 2 : 1)  // parts of a block with a scale of their own

#if CODE_BITS == 8 && defined(CLF_AVX2) && !CLF_VNNI
#define WIDE 1  // codes of 8 bits would overflow the int16 sums of vpmaddubsw: multiplied as int16
#else
#define WIDE 0
#endif

// A segment of a tile of tokens, gathered so that rows whose distance is a multiple of 4 KiB do not share cache sets.
typedef struct {
  int8 codes[SEGMENT][TOKENS][1 + WIDE];  // int8 quads in order; WIDE: int16 pairs (0, 2), then (1, 3), of each quad
  int zero[TOKENS][SEGMENT * HALVES];     // what the weights' zero adds to each integer sum
  float scale[TOKENS][SEGMENT];           // d
  float sum[TOKENS][SEGMENT];             // float(s[0] + s[1]) * d
} activations_t;

// Token t of the tile is `count` blocks from block `first` of the whole xq on.
static inline void load_activations(activations_t *x, __global const char *xq, __global const float *xd,
                                    __global const short *xsum, size_t first, int count, int t) {
  xsum += 2 * first;
  for (int b = 0; b < count; b++) {
    int8 quads = ((__global const int8 *)xq)[first + b];
#if WIDE
    x->codes[b][t][0] = as_int8((as_short16(quads) << (short)8) >> (short)8);
    x->codes[b][t][1] = as_int8(as_short16(quads) >> (short)8);
#else
    x->codes[b][t][0] = quads;
#endif
  }
  for (int b = 0; b < count; b++) x->scale[t][b] = xd[first + b];
#if HALVES == 2
  for (int h = 0; h < 2 * count; h++) x->zero[t][h] = -CODE_ZERO * xsum[h];
#elif CODE_ZERO
  for (int b = 0; b < count; b++) x->zero[t][b] = -CODE_ZERO * (xsum[2 * b] + xsum[2 * b + 1]);
#endif
#if HAS_MIN
  for (int b = 0; b < count; b++) x->sum[t][b] = (float)(xsum[2 * b] + xsum[2 * b + 1]) * x->scale[t][b];
#endif
}

#ifdef CLF_AVX2
typedef char v32c __attribute__((__vector_size__(32)));
typedef short v16s __attribute__((__vector_size__(32)));
typedef ushort ushort16_half_aligned __attribute__((ext_vector_type(16), aligned(16)));

#define LOAD(p) (*(__global const ushort16_half_aligned *)(p))

// Step s of a block takes two vectors of codes; each is multiplied with an int of activations, 2s and 2s + 1 of the block's.
#define STEPS (WIDE ? 8 : 4)

static inline void load_codes(ushort16 *codes, __global const uchar *block, int s) {
#if CODE_BITS == 8 && !WIDE
  codes[0] = LOAD(block + s * 64);
  codes[1] = LOAD(block + s * 64 + 32);
#elif CODE_BITS == 8
  ushort16 quad = LOAD(block + s * 32);
  codes[0] = quad & (ushort)0xff;
  codes[1] = quad >> (ushort)8;
#else
  ushort16 packed = LOAD(block + s * 32);
  codes[0] = packed & (ushort)0x0f0f;
  codes[1] = (packed >> (ushort)4) & (ushort)0x0f0f;
#if CODE_BITS == 5
  ushort16 bits = LOAD(block + 128);
  codes[0] |= (s < 2 ? bits << (ushort)(4 - 2 * s) : bits >> (ushort)(2 * s - 4)) & (ushort)0x1010;
  codes[1] |= (s < 2 ? bits << (ushort)(3 - 2 * s) : bits >> (ushort)(2 * s - 3)) & (ushort)0x1010;
#elif CODE_BITS == 6
  ushort16 bits = LOAD(block + 128 + s / 2 * 32);
  codes[0] |= (s % 2 ? bits : bits << (ushort)4) & (ushort)0x3030;
  codes[1] |= (s % 2 ? bits >> (ushort)2 : bits << (ushort)2) & (ushort)0x3030;
#endif
#endif
}

// The empty statements hide the sums from the compiler, whose own order of additions spills every unpacked code.
#if CLF_VNNI
static inline int8 multiply_add(int8 sum, ushort16 codes, int8 x) {
  __asm__("vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
  return sum;
}
#elif WIDE
static inline int8 multiply_add(int8 sum, ushort16 codes, int8 x) {
  sum += as_int8(__builtin_ia32_pmaddwd256(__builtin_astype(codes, v16s), __builtin_astype(x, v16s)));
  __asm__("" : "+x"(sum));
  return sum;
}
#else
// int16 sums are widened after this many steps: a step adds up to 2 * 2 * 127 * (2^CODE_BITS - 1) to a lane.
#define STEPS_PER_SUM (CODE_BITS == 4 ? 4 : CODE_BITS == 5 ? 2 : 1)

static inline short16 multiply_add16(short16 sum, ushort16 codes, int8 x) {
  sum += __builtin_astype(__builtin_ia32_pmaddubsw256(__builtin_astype(codes, v32c), __builtin_astype(x, v32c)), short16);
  __asm__("" : "+x"(sum));
  return sum;
}

static inline int8 widen_add(int8 sum, short16 sum16) {
  short16 ones = (short16)(1);
  return sum + as_int8(__builtin_ia32_pmaddwd256(__builtin_astype(sum16, v16s), __builtin_astype(ones, v16s)));
}
#endif

// sums[g][t] += codes x activations over half `h` of block b of the segment.
static inline void add_products(int8 sums[][TOKENS], __global const uchar *const *blocks, const activations_t *x, int b,
                                int h, bool full) {
#ifdef STEPS_PER_SUM
  short16 sums16[ROW_GROUPS][TOKENS];
#endif
  FOR(i, STEPS / HALVES) {
    int s = h * STEPS / HALVES + i;
    ushort16 codes[ROW_GROUPS][2];
    EACH(g, ROW_GROUPS) load_codes(codes[g], blocks[g], s);
    FOR(j, 2) EACH(t, TOKENS) {
      int8 quad = (int8)(((const int *)x->codes[b][t])[WIDE ? 8 * j + s : 2 * s + j]);
      EACH(g, ROW_GROUPS) {
#ifdef STEPS_PER_SUM
        bool first = i % STEPS_PER_SUM == 0 && j == 0;
        sums16[g][t] = multiply_add16(first ? (short16)(0) : sums16[g][t], codes[g][j], quad);
#else
        sums[g][t] = multiply_add(sums[g][t], codes[g][j], quad);
#endif
      }
    }
#ifdef STEPS_PER_SUM
    if (i % STEPS_PER_SUM == STEPS_PER_SUM - 1) {
      EACH(t, TOKENS) EACH(g, ROW_GROUPS) sums[g][t] = widen_add(sums[g][t], sums16[g][t]);
    }
#endif
  }
}
#else
static inline void add_products(int8 sums[][TOKENS], __global const uchar *const *blocks, const activations_t *x, int b,
                                int h, bool full) {
  int tokens = full ? TOKENS : 1;
  for (int g = 0; g < (full ? ROW_GROUPS : 1); g++) {
    int lanes[TOKENS][8] = {{0}};
    for (int row = 0; row < 8; row++) {
      for (int k = h * 16; k < h * 16 + 32 / HALVES; k++) {
        int code = tile_code(blocks[g], row, k);
        for (int t = 0; t < tokens; t++) lanes[t][row] += code * ((const char *)x->codes[b][t])[k];
      }
    }
    for (int t = 0; t < tokens; t++) sums[g][t] += vload8(0, lanes[t]);
  }
}
#endif

// acc[g][t] takes the terms of block b of the segment, which is block `index` of its tiles.
static inline void add_block(v8f acc[][TOKENS], __global const uchar *const *tiles, int index, const activations_t *x, int b,
                             bool full) {
  __global const uchar *blocks[ROW_GROUPS];
  int8 sums[ROW_GROUPS][TOKENS];
  EACH(g, ROW_GROUPS) blocks[g] = tiles[g] + index * BLOCK_BYTES;
#if HALVES == 2
  FOR(h, 2) {
    int8 part[ROW_GROUPS][TOKENS];
    EACH(t, TOKENS) EACH(g, ROW_GROUPS) part[g][t] = (int8)(x->zero[t][2 * b + h]);
    add_products(part, blocks, x, b, h, full);
    EACH(g, ROW_GROUPS) {
      int8 scale = tile_half_scales(tiles[g], index, h);
      EACH(t, TOKENS) sums[g][t] = h ? sums[g][t] + part[g][t] * scale : part[g][t] * scale;
    }
  }
#else
  EACH(t, TOKENS) EACH(g, ROW_GROUPS) sums[g][t] = (int8)(CODE_ZERO ? x->zero[t][b] : 0);
  add_products(sums, blocks, x, b, 0, full);
#endif
  EACH(g, ROW_GROUPS) {
    v8f scale = tile_scale(tiles[g], index);
    EACH(t, TOKENS) acc[g][t] = clf_fma8(CLF_TO_FLOAT8(sums[g][t]), scale * x->scale[t][b], acc[g][t]);
#if HAS_MIN
    v8f minimum = tile_minimum(tiles[g], index);
    EACH(t, TOKENS) acc[g][t] = clf_fma8(minimum, (v8f)(x->sum[t][b]), acc[g][t]);
#endif
  }
}

#if CLF_VNNI_TILES
// The same for 2, 4 or 8 tokens.
static inline void add_block_of_tokens(v8f acc[][TOKENS], __global const uchar *const *tiles, int index,
                                       const activations_t *x, int b, int num_tokens) {
  vnni_block block = {.x = x->codes[b][0], .zero = &x->zero[0][b * HALVES], .xscale = &x->scale[0][b], .xsum = &x->sum[0][b]};
  FOR(g, 2) {
    block.codes[g] = tiles[g] + index * BLOCK_BYTES;
    block.scale[g] = tile_scale(tiles[g], index);
#if HAS_MIN
    block.minimum[g] = tile_minimum(tiles[g], index);
#endif
#if HALVES == 2
    FOR(h, 2) block.half_scale[h][g] = tile_half_scales(tiles[g], index, h);
#endif
  }
  vnni_add_block(acc[0], &block, num_tokens);
}
#endif

// acc[g][t] takes the terms of a tile, whose first block is block b of the segment, for as many tokens as `tile_width` says.
static inline void add_tile(v8f acc[][TOKENS], __global const uchar *const *tiles, const activations_t *x, int b,
                            int num_tokens) {
  for (int i = 0; i < TILE_BLOCKS; i++) {
#if CLF_VNNI_TILES
    if (num_tokens > 1)
      add_block_of_tokens(acc, tiles, i, x, b + i, num_tokens);
    else
      add_block(acc, tiles, i, x, b + i, false);
#else
    add_block(acc, tiles, i, x, b + i, num_tokens > 1);
#endif
  }
}

// How many tokens are worked on where `left` are left to do: at least as many, or a full tile.
static inline int tile_width(int left) {
#if CLF_VNNI_TILES
  return left > 4 ? 8 : left > 2 ? 4 : left;
#else
  return left > 1 ? TOKENS : 1;
#endif
}

// Row groups `group` to `end` - 1, at most ITEM_GROUPS, for the tile of tokens from m on; y points to column y_offset. The
// first tile prefetches the groups after next, since it is then that weights come from memory; a token alone needs no help.
static inline void matmul_tokens(__global const uchar *weights, __global const char *xq, __global const float *xd,
                                 __global const short *xsum, __global const float *bias, __global float *y, int y_stride,
                                 int N, int num_blocks, int group, int end, int m, int M, bool full) {
  activations_t x;
  v8f total[ITEM_GROUPS][TOKENS];
  size_t group_bytes = (size_t)(num_blocks / TILE_BLOCKS) * TILE_BYTES;
  int num_tokens = tile_width(M - m);
  for (int first = 0; first < num_blocks; first += SEGMENT) {
    int count = num_blocks - first < SEGMENT ? num_blocks - first : SEGMENT;
    for (int t = 0; t < num_tokens; t++) {
      size_t token = m + t < M ? m + t : M - 1;
      load_activations(&x, xq, xd, xsum, token * num_blocks + first, count, t);
    }
    __global const uchar *segment = weights + (size_t)(first / TILE_BLOCKS) * TILE_BYTES;
    for (int pair = group; pair < end; pair += ROW_GROUPS) {
      __global const uchar *tiles[ROW_GROUPS];
      v8f acc[ROW_GROUPS][TOKENS];
      EACH(g, ROW_GROUPS) {
        tiles[g] = segment + (pair + g < end ? pair + g : pair) * group_bytes;
        EACH(t, TOKENS) acc[g][t] = (v8f)(0.0f);
      }
      for (int b = 0; b < count; b += TILE_BLOCKS) {
        if (full && m == 0) EACH(g, ROW_GROUPS) prefetch_weights(tiles[g] + 2 * ROW_GROUPS * group_bytes, TILE_BYTES);
        add_tile(acc, tiles, &x, b, num_tokens);
        EACH(g, ROW_GROUPS) tiles[g] += TILE_BYTES;
      }
      EACH(g, ROW_GROUPS) EACH(t, TOKENS) {
        v8f before = first ? total[pair - group + g][t] : (v8f)(0.0f);
        total[pair - group + g][t] = before + acc[g][t];
      }
    }
  }
  for (int t = 0; t < num_tokens && m + t < M; t++) {
    for (int g = group; g < end; g++) store_rows(y + (size_t)(m + t) * y_stride, total[g - group][t], bias, g * 8, N);
  }
}

// weights          u8, a matrix of N rows and K columns (kernels/weight_tile.cl); K is a multiple of 32 * TILE_BLOCKS
// xq, xd, xsum     int8 [M][K], aligned to 32 bytes; f32 [M][K / 32]; int16 [M][K / 32][2]
// bias             f32 [N], where BIAS
// y                f32 [M][y_stride], of which columns y_offset .. y_offset + N - 1 are written
// counts           int32; M is counts[count_index]
CLF_OPERATION matmul_quant(__global const uchar *weights, __global const char *xq, __global const float *xd,
                           __global const short *xsum,
#ifdef BIAS
                           __global const float *bias,
#endif
                           __global float *y, __global const int *counts, int count_index, int K, int N, int y_stride,
                           int y_offset CLF_ITEM_PARAMS) {
#ifndef BIAS
  __global const float *bias = 0;
#endif
  int num_groups = (N + 7) / 8, share = groups_per_item(num_groups, NUM_ITEMS), M = counts[count_index];
  int start = ITEM * share, end = start + share < num_groups ? start + share : num_groups;
  for (int group = start; group < end; group += ITEM_GROUPS) {
    int stop = group + ITEM_GROUPS < end ? group + ITEM_GROUPS : end;
    for (int m = 0; m < M; m += TOKENS) {
      bool full = M - m > 1;
      for (int g = group; g < stop; g += full ? ITEM_GROUPS : 1) {
        matmul_tokens(weights, xq, xd, xsum, bias, y + y_offset, y_stride, N, K / 32, g, full ? stop : g + 1, m, M, full);
      }
    }
  }
}
