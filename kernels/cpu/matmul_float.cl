// y = weights x activations for f32, f16 and bf16 weights and f32 activations (docs/numerics.md section 4).
//
// Defines: the layout's (kernels/weight_tile.cl); BIAS adds bias[n]; RESIDUAL adds what y holds.
//
// Work is shared out as kernels/weight_tile.cl says: launch any number of items. Every sum follows K, so neither the share
// nor the tile changes a result. A tile of one token keeps all its row groups: each is a chain of dependent additions, and
// one alone would be slower than memory.
#define SEGMENT 512  // elements in a segment of docs/numerics.md section 4
#define STRIDE (8 * WEIGHT_BYTES)

// The tile at row group `group` and token m; y points to column y_offset.
static inline void matmul_tile(__global const uchar *weights, __global const float *x, __global const float *bias,
                               __global float *y, int y_stride, int N, int K, int group, int m, int M, bool full) {
  __global const uchar *w[ROW_GROUPS];
  v8f total[ROW_GROUPS][TOKENS];
  float segment[TOKENS][SEGMENT];  // rows whose distance in x is a multiple of 4 KiB would share cache sets
  size_t group_bytes = (size_t)K * STRIDE;
  FOR(g, ROW_GROUPS) {
    int clamped = group + g < (N + 7) / 8 ? group + g : group;
    w[g] = weights + clamped * group_bytes;
    EACH(t, TOKENS) total[g][t] = (v8f)(0.0f);
  }
  for (int first = 0; first < K; first += SEGMENT) {
    int count = K - first < SEGMENT ? K - first : SEGMENT;
    for (int t = 0; t < (full ? TOKENS : 1); t++) {
      size_t token = m + t < M ? m + t : M - 1;
      for (int k = 0; k < count; k++) segment[t][k] = x[token * K + first + k];
    }
    v8f acc[ROW_GROUPS][TOKENS];
    FOR(g, ROW_GROUPS) EACH(t, TOKENS) acc[g][t] = (v8f)(0.0f);
    for (int k = 0; k < count; k++) {
      if (m == 0 && k % (64 / STRIDE) == 0) {
        FOR(g, ROW_GROUPS) prefetch_weights(w[g] + k * STRIDE + ROW_GROUPS * group_bytes, 64);
      }
      v8f weight[ROW_GROUPS];
      FOR(g, ROW_GROUPS) weight[g] = load_weights(w[g] + k * STRIDE);
      EACH(t, TOKENS) {
        v8f value = (v8f)(segment[t][k]);
        FOR(g, ROW_GROUPS) acc[g][t] = clf_fma8(weight[g], value, acc[g][t]);
      }
    }
    FOR(g, ROW_GROUPS) {
      w[g] += count * STRIDE;
      EACH(t, TOKENS) total[g][t] += acc[g][t];
    }
  }
  EACH(t, TOKENS) {
    if (m + t >= M) continue;
    FOR(g, ROW_GROUPS) store_rows(y + (size_t)(m + t) * y_stride, total[g][t], bias, (group + g) * 8, N);
  }
}

// weights  u8, a matrix of N rows and K columns (kernels/weight_tile.cl)
// x        f32 [M][K]
// bias     f32 [N], where BIAS
// y        f32 [M][y_stride], of which columns y_offset .. y_offset + N - 1 are written
// counts   int32; M is counts[count_index]
CLF_OPERATION matmul_float(__global const uchar *weights, __global const float *x,
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
  for (int group = start; group < end; group += ROW_GROUPS) {
    for (int m = 0; m < M; m += TOKENS) matmul_tile(weights, x, bias, y + y_offset, y_stride, N, K, group, m, M, M - m > 1);
  }
}
