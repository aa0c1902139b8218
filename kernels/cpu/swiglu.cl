// SwiGLU (docs/numerics.md section 6), optionally quantised for a matmul (section 2).
//
// Defines: QUANTIZE: the result is quantised, never stored as f32. A work-item does up to CHUNK elements (a multiple of 32) of
// a row: launch M x ceil(n / CHUNK) items, the chunks of a row in succession. n >= 1 is any length, n_padded is n rounded up
// to 32.

#ifndef CHUNK
#define CHUNK 1024 // some microseconds of work, so that one row still occupies several threads
#endif

static inline v8f swiglu8(v8f g, v8f u) { return (g / (clf_exp8(-g) + 1.0f)) * u; }

// out [32] of gate and up; zeros after the first `count`.
static inline void swiglu_group(__private float *out, __global const float *gate, __global const float *up, int count) {
  float g[32], u[32];
  if (count >= 32) {
    for (int i = 0; i < 32; i += 8) clf_store8(out + i, swiglu8(clf_load8(gate + i), clf_load8(up + i)));
    return;
  }
  for (int i = 0; i < 32; i++) {
    g[i] = i < count ? gate[i] : 0.0f;
    u[i] = i < count ? up[i] : 0.0f;
  }
  for (int i = 0; i < 32; i += 8) clf_store8(out + i, swiglu8(clf_load8(g + i), clf_load8(u + i)));
}

// gate_up f32 [M][2 n]: gate, then up
// y       f32 [M][n]
// xq, xd, xsum  int8 [M][n_padded], f32 [M][n_padded / 32], int16 [M][n_padded / 32][2]
CLF_OPERATION swiglu(__global const float *gate_up,
#ifdef QUANTIZE
                     __global char *xq, __global float *xd, __global short *xsum,
#else
                     __global float *y,
#endif
                     int n CLF_ITEM_PARAMS) {
  int num_chunks = (n + CHUNK - 1) / CHUNK;
  size_t row = ITEM / num_chunks;
  int first = ITEM % num_chunks * CHUNK, end = min(n, first + CHUNK);
  __global const float *gate = gate_up + row * 2 * n;
  for (int k = first; k < end; k += 32) {
    float group[32];
    swiglu_group(group, gate + k, gate + n + k, n - k);
#ifdef QUANTIZE
    size_t g = row * ((n + 31) / 32) + k / 32;
    clf_quantize_row(group, 32, xq + g * 32, xd + g, xsum + g * 2);
#else
    for (int i = 0; i < min(32, n - k); i++) y[row * n + k + i] = group[i];
#endif
  }
}
