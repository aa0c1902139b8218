// Rows of f32 activations to int8 codes with a scale per 32 (docs/numerics.md section 2). One work-item per row.
//
// x     f32 [M][K], any K >= 1; Kp is K rounded up to 32
// xq    int8 [M][Kp], the padding 0
// xd    f32 [M][Kp / 32]
// xsum  int16 [M][Kp / 32][2]: sums of the codes of each half group
CLF_OPERATION quantize_rows(__global const float *x, __global char *xq, __global float *xd, __global short *xsum, int K CLF_ITEM_PARAMS) {
  size_t row = ITEM, groups = (K + 31) / 32;
  clf_quantize_row(x + row * K, K, xq + row * groups * 32, xd + row * groups, xsum + row * groups * 2);
}
