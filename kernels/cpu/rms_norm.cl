// Root-mean-square norm of rows (docs/numerics.md section 5), optionally quantised for a matmul (section 2).
//
// Defines: ROW_IDS: output row i is of input row row_ids[i], else of row i; QUANTIZE: the result is quantised, never stored
// as f32. One work-item per output row. n >= 1 is any length, n_padded is n rounded up to 32.

// group [32] = x[0 to count - 1], then zeros. Zeros change no lane's sum of squares.
static inline void load_group(__private float *group, __global const float *x, int count) {
  if (count >= 32) {
    for (int i = 0; i < 32; i += 8) clf_store8(group + i, clf_load8(x + i));
  } else {
    for (int i = 0; i < 32; i++) group[i] = i < count ? x[i] : 0.0f;
  }
}

static inline float sum_of_squares(__global const float *x, int n) {
  float group[32];
  v8f s0 = (v8f)(0.0f), s1 = s0, s2 = s0, s3 = s0;
  for (int k = 0; k < n; k += 32) {
    load_group(group, x + k, n - k);
    v8f a = clf_load8(group), b = clf_load8(group + 8), c = clf_load8(group + 16), d = clf_load8(group + 24);
    s0 = clf_fma8(a, a, s0);
    s1 = clf_fma8(b, b, s1);
    s2 = clf_fma8(c, c, s2);
    s3 = clf_fma8(d, d, s3);
  }
  return clf_sum8((s0 + s2) + (s1 + s3));
}

// x       f32 [][n]
// row_ids int32 [M]
// weight  f32 [n]
// y       f32 [M][n]
// xq, xd, xsum  int8 [M][n_padded], f32 [M][n_padded / 32], int16 [M][n_padded / 32][2]
CLF_OPERATION rms_norm(__global const float *x,
#ifdef ROW_IDS
                       __global const int *row_ids,
#endif
                       __global const float *weight,
#ifdef QUANTIZE
                       __global char *xq, __global float *xd, __global short *xsum,
#else
                       __global float *y,
#endif
                       int n, float eps CLF_ITEM_PARAMS) {
  size_t row = ITEM;
#ifdef ROW_IDS
  x += (size_t)row_ids[row] * n;
#else
  x += row * n;
#endif
  float r = 1.0f / sqrt(sum_of_squares(x, n) / (float)n + eps);
  for (int k = 0; k < n; k += 32) {
    float group[32], w[32];
    load_group(group, x + k, n - k);
    load_group(w, weight + k, n - k);
    for (int i = 0; i < 32; i += 8) clf_store8(group + i, (clf_load8(group + i) * r) * clf_load8(w + i));
#ifdef QUANTIZE
    size_t g = row * ((n + 31) / 32) + k / 32;
    clf_quantize_row(group, 32, xq + g * 32, xd + g, xsum + g * 2);
#else
    for (int i = 0; i < min(32, n - k); i++) y[row * n + k + i] = group[i];
#endif
  }
}
