// Put before every kernel source, after quantize_row.cl: what a block of the KV cache holds of one kv head, for kernels
// that define BLOCK_SIZE (docs/numerics.md section 8).
//
// Defines: HEAD_DIM, BLOCK_SIZE (a multiple of 8); KV_INT8 for an int8 cache, KV_F32 for an f32 one, otherwise f16. HDP is
// HEAD_DIM rounded up to 8.
//
// K            kv_t [HDP][BLOCK_SIZE], then scales
// V            kv_t [BLOCK_SIZE][HDP], then scales
// scales       with int8 only: f16 [BLOCK_SIZE], one a token
// KV_HEAD_SIZE elements of all that, a multiple of 16 bytes; a block is NUM_KV_HEADS of it
#ifdef BLOCK_SIZE
#define HDP ((HEAD_DIM + 7) / 8 * 8)

#ifdef KV_INT8
typedef char kv_t;
#define KV_HEAD_SIZE (HDP * BLOCK_SIZE + BLOCK_SIZE * 2)

static inline __global ushort *kv_scales(__global kv_t *head) { return (__global ushort *)(head + HDP * BLOCK_SIZE); }

static inline v8f load_kv8(__global const kv_t *p) {
  char8 codes = *(__global const char8 *)p;
#ifdef CLF_AVX2
  return __builtin_convertvector(codes, v8f);
#else
  return convert_float8(codes);
#endif
}

// Scales of eight tokens, the first of them at `offset` in the block.
static inline v8f kv_scales8(__global const kv_t *head, int offset) {
  return clf_load8h((__global const ushort *)(head + HDP * BLOCK_SIZE) + offset);
}
#else
#ifdef KV_F32
typedef float kv_t;
#define load_kv8 clf_load8
#else
typedef ushort kv_t;
#define load_kv8 clf_load8h
#endif
#define KV_HEAD_SIZE (HDP * BLOCK_SIZE)

// Multiplying by 1 changes no bit, and compilers leave it out.
static inline v8f kv_scales8(__global const kv_t *head, int offset) { return (v8f)(1.0f); }
#endif
#endif
