// Rotary position encoding, and the step's K and V into the paged cache (docs/numerics.md sections 7 and 8).
//
// Defines: HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE, ROPE_DIM (even, <= HEAD_DIM; later dimensions pass unrotated);
// ROPE_ADJACENT where pairs are (2i, 2i + 1), otherwise (i, i + ROPE_DIM / 2); KV_F32 for an f32 cache.
// One work-item per row: rotates its q heads in place, writes its k heads rotated, and its v heads, to its slot.

#define HDP ((HEAD_DIM + 7) / 8 * 8)
#define NUM_PAIRS (ROPE_DIM / 2)

#ifdef KV_F32
typedef float kv_t;
static inline void store_kv(__global kv_t *p, float x) { *p = x; }
#else
typedef ushort kv_t;
// The comparisons are written so that NaN becomes finite: one row's NaN must not reach others through a masked product.
static inline void store_kv(__global kv_t *p, float x) {
  float y = x > -65504.0f ? x : -65504.0f;
  clf_store_half(p, y < 65504.0f ? y : 65504.0f);
}
#endif

// y [HEAD_DIM] = x [HEAD_DIM] rotated by cos_sin [NUM_PAIRS][2].
static inline void rotate(__private float *y, __global const float *x, __global const float *cos_sin) {
  for (int i = 0; i < NUM_PAIRS; i++) {
#ifdef ROPE_ADJACENT
    int ia = 2 * i, ib = 2 * i + 1;
#else
    int ia = i, ib = i + NUM_PAIRS;
#endif
    float a = x[ia], b = x[ib], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
    y[ia] = clf_fma(a, c, -(b * s));
    y[ib] = clf_fma(b, c, a * s);
  }
  for (int d = ROPE_DIM; d < HEAD_DIM; d++) y[d] = x[d];
}

// qkv          f32 [M][(NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM]: q heads, k heads, v heads
// positions    int32 [M], absolute
// slot_mapping int32 [M]: block * BLOCK_SIZE + offset in the block, or -1 for a row that is not kept
// cos_sin      f32 [num_positions][NUM_PAIRS][2]
// k_cache      kv_t [num_blocks][NUM_KV_HEADS][HDP][BLOCK_SIZE]
// v_cache      kv_t [num_blocks][NUM_KV_HEADS][BLOCK_SIZE][HDP]
__kernel void rope_kv_write(__global float *qkv, __global const int *positions, __global const int *slot_mapping,
                            __global const float *cos_sin, __global kv_t *k_cache, __global kv_t *v_cache) {
  size_t row = get_global_id(0);
  __global float *q = qkv + row * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM);
  __global const float *k = q + NUM_HEADS * HEAD_DIM, *v = k + NUM_KV_HEADS * HEAD_DIM;
  __global const float *angles = cos_sin + (size_t)positions[row] * ROPE_DIM;
  float rotated[HEAD_DIM];
  for (int head = 0; head < NUM_HEADS; head++, q += HEAD_DIM) {
    rotate(rotated, q, angles);
    for (int d = 0; d < HEAD_DIM; d++) q[d] = rotated[d];
  }
  int slot = slot_mapping[row];
  if (slot < 0) return;
  int offset = slot % BLOCK_SIZE;
  for (int head = 0; head < NUM_KV_HEADS; head++) {
    size_t plane = ((size_t)(slot / BLOCK_SIZE) * NUM_KV_HEADS + head) * (HDP * BLOCK_SIZE);
    rotate(rotated, k + head * HEAD_DIM, angles);
    for (int d = 0; d < HEAD_DIM; d++) {
      store_kv(k_cache + plane + d * BLOCK_SIZE + offset, rotated[d]);
      store_kv(v_cache + plane + offset * HDP + d, v[head * HEAD_DIM + d]);
    }
    for (int d = HEAD_DIM; d < HDP; d++) store_kv(v_cache + plane + offset * HDP + d, 0.0f);
  }
}
