// Rows of a matrix as f32: the token embedding (docs/numerics.md section 4, last paragraph).
//
// Defines: the layout's (kernels/weight_tile.cl). One work-item per id.

#ifdef CODE_BITS
// out [32] = row `lane` of block `b` of a tile.
static inline void gather_block(__global float *out, __global const uchar *tile, int b, int lane) {
  float scales[8];
  clf_store8(scales, tile_scale(tile, b));
#if HAS_MIN
  float minimums[8];
  clf_store8(minimums, tile_minimum(tile, b));
#endif
  for (int k = 0; k < 32; k++) {
    int code = tile_code(tile + b * BLOCK_BYTES, lane, k) - CODE_ZERO;
#if HAS_MIN
    out[k] = clf_fma((float)code, scales[lane], minimums[lane]);
#elif GROUP == 16
    out[k] = scales[lane] * (float)(tile_half_scale(tile, b, lane, k / 16) * code);
#else
    out[k] = (float)code * scales[lane];
#endif
  }
}
#endif

// weights  u8, a matrix of K columns
// ids      int32 [M], each a row of the matrix: the host has checked them
// out      f32 [M][K]
CLF_OPERATION gather_rows(__global const uchar *weights, __global const int *ids, __global float *out, int K CLF_ITEM_PARAMS) {
  size_t item = ITEM;
  int lane = ids[item] % 8;
  size_t group = ids[item] / 8;
  out += item * K;
#ifdef CODE_BITS
  __global const uchar *tile = weights + group * (K / (32 * TILE_BLOCKS)) * TILE_BYTES;
  for (int k = 0; k < K; k += 32 * TILE_BLOCKS, tile += TILE_BYTES) {
    for (int b = 0; b < TILE_BLOCKS; b++, out += 32) gather_block(out, tile, b, lane);
  }
#else
  weights += group * K * 8 * WEIGHT_BYTES;
  for (int k = 0; k < K; k++) {
    float lanes[8];
    clf_store8(lanes, load_weights(weights + (size_t)k * 8 * WEIGHT_BYTES));
    out[k] = lanes[lane];
  }
#endif
}
