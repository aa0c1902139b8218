// Rotary position encoding, and the step's K and V into the paged cache (docs/numerics.md sections 7 and 8).
//
// Defines: NUM_HEADS, NUM_KV_HEADS, ROPE_DIM (even, <= HEAD_DIM; later dimensions pass unrotated); ROPE_ADJACENT where pairs
// are (2i, 2i + 1), otherwise (i, i + ROPE_DIM / 2); HEAD_DIM, BLOCK_SIZE and the cache's type as kv_block.cl has them.
// One work-item per row: rotates its q heads in place, writes its k heads rotated, and its v heads, to its slot.

#define NUM_PAIRS (ROPE_DIM / 2)

#ifndef KV_F32
// The comparisons are written so that NaN becomes finite: one row's NaN must not reach others through a masked product.
static inline float to_f16_range(float x) {
  float y = x > -65504.0f ? x : -65504.0f;
  return y < 65504.0f ? y : 65504.0f;
}
#endif

// head [first + d * stride] = x [d], for the token at `offset` in the block. x is [HDP], with zeros from HEAD_DIM on.
static inline void store_kv(__global kv_t *head, int offset, int first, int stride, __private float *x) {
#ifdef KV_F32
  for (int d = 0; d < HDP; d++) head[first + d * stride] = x[d];
#else
  for (int d = 0; d < HDP; d++) x[d] = to_f16_range(x[d]);
#ifdef KV_INT8
  v8f amax = (v8f)(0.0f);
  for (int d = 0; d < HDP; d += 8) amax = clf_max8(amax, clf_abs8(clf_load8(x + d)));
  ushort scale = clf_to_half(clf_hmax8(amax) / 127.0f);
  float s = clf_from_half(scale), r = s > 0.0f ? 1.0f / s : 0.0f;
  kv_scales(head)[offset] = scale;
  for (int d = 0; d < HDP; d += 8) {
    int8 q = clf_quantize8(clf_load8(x + d), r);
    char8 codes = CLF_TO_CHAR8(q > 127 ? 127 : q < -127 ? -127 : q);
    __private const char *code = (__private const char *)&codes;
    for (int i = 0; i < 8; i++) head[first + (d + i) * stride] = code[i];
  }
#else
  for (int d = 0; d < HDP; d++) head[first + d * stride] = clf_to_half(x[d]);
#endif
#endif
}

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
// k_cache      kv_t [num_blocks][NUM_KV_HEADS][KV_HEAD_SIZE]
// v_cache      kv_t [num_blocks][NUM_KV_HEADS][KV_HEAD_SIZE]
CLF_OPERATION rope_kv_write(__global float *qkv, __global const int *positions, __global const int *slot_mapping,
                            __global const float *cos_sin, __global kv_t *k_cache, __global kv_t *v_cache CLF_ITEM_PARAMS) {
  size_t row = ITEM;
  __global float *q = qkv + row * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM);
  __global const float *k = q + NUM_HEADS * HEAD_DIM, *v = k + NUM_KV_HEADS * HEAD_DIM;
  __global const float *angles = cos_sin + (size_t)positions[row] * ROPE_DIM;
  float x[HDP];
  for (int d = HEAD_DIM; d < HDP; d++) x[d] = 0.0f;
  for (int head = 0; head < NUM_HEADS; head++, q += HEAD_DIM) {
    rotate(x, q, angles);
    for (int d = 0; d < HEAD_DIM; d++) q[d] = x[d];
  }
  int slot = slot_mapping[row];
  if (slot < 0) return;
  int offset = slot % BLOCK_SIZE;
  size_t start = (size_t)(slot / BLOCK_SIZE) * NUM_KV_HEADS * KV_HEAD_SIZE;
  for (int head = 0; head < NUM_KV_HEADS; head++, start += KV_HEAD_SIZE, k += HEAD_DIM, v += HEAD_DIM) {
    rotate(x, k, angles);
    store_kv(k_cache + start, offset, offset, BLOCK_SIZE, x);
    for (int d = 0; d < HEAD_DIM; d++) x[d] = v[d];
    store_kv(v_cache + start, offset, offset * HDP, 1, x);
  }
}
