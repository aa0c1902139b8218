// Put before every kernel source. Types and arithmetic of docs/numerics.md sections 1 and 3.
//
// CLF_AVX2   1 where the compiler targets AVX2, FMA and F16C and -DCLF_PORTABLE is absent. The builtins exist because PoCL's
//            vloadN, fma and convert_* are calls that are not inlined; plain operators on vectors are fine in both paths.
// portable   OpenCL C 1.2 only. Both paths give the same bits.
#pragma OPENCL FP_CONTRACT OFF

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(CLF_PORTABLE)
#define CLF_AVX2 1
#endif

// An operation is a kernel whose work-items do one item of its work each. In a fused program (forward.cl), which CLF_FUSED
// tells, it is a function that does the item that it is called for.
#ifdef CLF_FUSED
#define CLF_OPERATION static void
#define CLF_ITEM_PARAMS , int clf_item, int clf_num_items
#define ITEM clf_item
#define NUM_ITEMS clf_num_items
#else
#define CLF_OPERATION __kernel void
#define CLF_ITEM_PARAMS
#define ITEM ((int)get_global_id(0))
#define NUM_ITEMS ((int)get_global_size(0))
#endif

#define CLF_OVERLOAD __attribute__((overloadable))

// Eight f32 lanes; `.s0` to `.s7`, `.lo` and `.hi` work in both paths.
typedef float8 v8f;

#ifdef CLF_AVX2
typedef float clf_m256 __attribute__((__vector_size__(32)));
typedef float clf_m128 __attribute__((__vector_size__(16)));
typedef float clf_v8f_unaligned __attribute__((ext_vector_type(8), aligned(4)));
typedef short clf_m128i_unaligned __attribute__((__vector_size__(16), aligned(2)));

#define CLF_M256(x) __builtin_astype(x, clf_m256)

static inline float clf_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

static inline v8f clf_fma8(v8f a, v8f b, v8f c) {
  return as_float8(__builtin_ia32_vfmaddps256(CLF_M256(a), CLF_M256(b), CLF_M256(c)));
}

static inline v8f clf_max8(v8f a, v8f b) { return as_float8(__builtin_ia32_maxps256(CLF_M256(a), CLF_M256(b))); }

static inline v8f CLF_OVERLOAD clf_load8(__global const float *p) { return *(__global const clf_v8f_unaligned *)p; }
static inline v8f CLF_OVERLOAD clf_load8(__private const float *p) { return *(__private const clf_v8f_unaligned *)p; }
static inline void CLF_OVERLOAD clf_store8(__global float *p, v8f x) { *(__global clf_v8f_unaligned *)p = x; }
static inline void CLF_OVERLOAD clf_store8(__private float *p, v8f x) { *(__private clf_v8f_unaligned *)p = x; }

// Halves are raw bits. To f32, exact.
static inline v8f clf_load8h(__global const ushort *p) {
  return as_float8(__builtin_ia32_vcvtph2ps256(*(__global const clf_m128i_unaligned *)p));
}

// f32 to halves, round to nearest even.
static inline void clf_store8h(__global ushort *p, v8f x) {
  *(__global clf_m128i_unaligned *)p = __builtin_ia32_vcvtps2ph256(CLF_M256(x), 0);
}

static inline ushort clf_to_half(float x) {
  clf_m128 lanes = {x, 0.0f, 0.0f, 0.0f};
  return __builtin_ia32_vcvtps2ph(lanes, 0)[0];
}

static inline float clf_from_half(ushort h) {
  clf_m128i_unaligned lanes = {(short)h, 0, 0, 0, 0, 0, 0, 0};
  return __builtin_ia32_vcvtph2ps(lanes)[0];
}
#else
static inline float clf_fma(float a, float b, float c) { return fma(a, b, c); }
static inline v8f clf_fma8(v8f a, v8f b, v8f c) { return fma(a, b, c); }
static inline v8f clf_max8(v8f a, v8f b) { return a > b ? a : b; }
static inline v8f CLF_OVERLOAD clf_load8(__global const float *p) { return vload8(0, p); }
static inline v8f CLF_OVERLOAD clf_load8(__private const float *p) { return vload8(0, p); }
static inline void CLF_OVERLOAD clf_store8(__global float *p, v8f x) { vstore8(x, 0, p); }
static inline void CLF_OVERLOAD clf_store8(__private float *p, v8f x) { vstore8(x, 0, p); }
static inline v8f clf_load8h(__global const ushort *p) { return vload_half8(0, (__global const half *)p); }
static inline void clf_store8h(__global ushort *p, v8f x) { vstore_half8_rte(x, 0, (__global half *)p); }
static inline float clf_from_half(ushort h) { return vload_half(0, (__private const half *)&h); }

static inline ushort clf_to_half(float x) {
  ushort h;
  vstore_half_rte(x, 0, (__private half *)&h);
  return h;
}
#endif

// Round to the nearest integer, ties to even, for |x| <= 2^22.
static inline float clf_rint(float x) { return (x + 12582912.0f) - 12582912.0f; }
static inline v8f clf_rint8(v8f x) { return (x + 12582912.0f) - 12582912.0f; }

// Lane sum in the fixed order of docs/numerics.md sections 5 and 9: s[l] + s[l + w] for w = 4, 2, 1.
static inline float clf_sum8(v8f s) {
  float4 a = s.lo + s.hi;
  float2 b = a.lo + a.hi;
  return b.x + b.y;
}

static inline float clf_hmax8(v8f s) {
  float4 a = s.lo > s.hi ? s.lo : s.hi;
  float2 b = a.lo > a.hi ? a.lo : a.hi;
  return b.x > b.y ? b.x : b.y;
}

// exp(x) of docs/numerics.md section 3. `t`'s low mantissa bits are the integer n, so `t`'s bits << 23 are n << 23.
static inline v8f clf_exp8(v8f x) {
  v8f z = x > 88.0f ? (v8f)(88.0f) : x;
  v8f t = clf_fma8(z, (v8f)(1.44269504f), (v8f)(12582912.0f));
  v8f n = t - 12582912.0f;
  v8f r = clf_fma8(n, (v8f)(-0.693359375f), z);
  r = clf_fma8(n, (v8f)(2.12194440e-4f), r);
  v8f p = (v8f)(1.9875691500e-4f);
  p = clf_fma8(p, r, (v8f)(1.3981999507e-3f));
  p = clf_fma8(p, r, (v8f)(8.3334519073e-3f));
  p = clf_fma8(p, r, (v8f)(4.1665795894e-2f));
  p = clf_fma8(p, r, (v8f)(1.6666665459e-1f));
  p = clf_fma8(p, r, (v8f)(5.0000001201e-1f));
  v8f y = clf_fma8(p, r * r, r) + 1.0f;
  int8 bits = as_int8(y) + (as_int8(t) << 23);
  return as_float8(bits & ~(x < -87.0f));
}

static inline float clf_exp(float x) {
  float z = x > 88.0f ? 88.0f : x;
  float t = clf_fma(z, 1.44269504f, 12582912.0f);
  float n = t - 12582912.0f;
  float r = clf_fma(n, -0.693359375f, z);
  r = clf_fma(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = clf_fma(p, r, 1.3981999507e-3f);
  p = clf_fma(p, r, 8.3334519073e-3f);
  p = clf_fma(p, r, 4.1665795894e-2f);
  p = clf_fma(p, r, 1.6666665459e-1f);
  p = clf_fma(p, r, 5.0000001201e-1f);
  float y = clf_fma(p, r * r, r) + 1.0f;
  return x < -87.0f ? 0.0f : as_float(as_int(y) + (as_int(t) << 23));
}
