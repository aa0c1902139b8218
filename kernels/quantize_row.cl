// Put before every kernel source, after common.cl: activation quantisation of docs/numerics.md section 2, for kernels that
// quantise what they compute.
//
// K    elements of the row; Kp is K rounded up to 32
// xq   int8 [Kp], aligned to 8 bytes      xd   f32 [Kp / 32]      xsum   int16 [Kp / 32][2]
#ifdef CLF_AVX2
#define CLF_TO_CHAR8(n) __builtin_convertvector(n, char8)
#else
#define CLF_TO_CHAR8(n) convert_char8(n)
#endif

static inline v8f clf_abs8(v8f x) { return as_float8(as_int8(x) & 0x7fffffff); }

static inline int clf_sum8i(int8 s) {
  int4 a = s.lo + s.hi;
  int2 b = a.lo + a.hi;
  return b.x + b.y;
}

// q of eight elements. With 1.5 * 2^23 added, a float's low mantissa bits are the rounded integer.
static inline int8 clf_quantize8(v8f x, float r) { return as_int8(x * r + 12582912.0f) - 0x4b400000; }

// The private x is whole groups: K is a multiple of 32.
static inline void CLF_OVERLOAD clf_quantize_row(__private const float *x, int K, __global char *xq, __global float *xd,
                                                 __global short *xsum) {
  for (int g = 0; g < K / 32; g++, x += 32, xq += 32) {
    v8f a = clf_load8(x), b = clf_load8(x + 8), c = clf_load8(x + 16), d = clf_load8(x + 24);
    float amax = clf_hmax8(clf_max8(clf_max8(clf_abs8(a), clf_abs8(b)), clf_max8(clf_abs8(c), clf_abs8(d))));
    bool live = amax >= 0x1p-60f;
    float r = live ? 127.0f / amax : 0.0f;
    int8 qa = clf_quantize8(a, r), qb = clf_quantize8(b, r), qc = clf_quantize8(c, r), qd = clf_quantize8(d, r);
    __global char8 *q = (__global char8 *)xq;
    q[0] = CLF_TO_CHAR8(qa);
    q[1] = CLF_TO_CHAR8(qb);
    q[2] = CLF_TO_CHAR8(qc);
    q[3] = CLF_TO_CHAR8(qd);
    xd[g] = live ? amax / 127.0f : 0.0f;
    xsum[2 * g] = (short)clf_sum8i(qa + qb);
    xsum[2 * g + 1] = (short)clf_sum8i(qc + qd);
  }
}

static inline void CLF_OVERLOAD clf_quantize_row(__global const float *x, int K, __global char *xq, __global float *xd,
                                                 __global short *xsum) {
  for (int k = 0; k < K; k += 32) {
    float group[32];
    if (K - k >= 32) {
      for (int i = 0; i < 32; i += 8) clf_store8(group + i, clf_load8(x + k + i));
    } else {
      for (int i = 0; i < 32; i++) group[i] = k + i < K ? x[k + i] : 0.0f;
    }
    clf_quantize_row(group, 32, xq + k, xd + k / 32, xsum + k / 16);
  }
}
