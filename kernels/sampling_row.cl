// What kernels/cpu/sample.cl works on: rows of logits, and of integer weights made of them (docs/numerics.md section 10).
//
// MAX_LOGPROBS     length of row_report.top_ids
// ROW_PARAMS_BYTES, ROW_REPORT_BYTES   what the host takes for the sizes of the two structs

#define NUM_STAGES 12

// Mirrored by ROW_PARAMS in engine_service/compute/row_params.py.
typedef struct {
  float inverse_temperature;  // > 0
  uint top_k;                 // > 1, as all that follow read only where their stage is in `stages`
  uint top_p_weight;          // ceil(top_p * 2^31), as all weights here
  uint min_p_weight;
  uint typical_p_weight;
  uint xtc_probability_weight;
  uint xtc_threshold_weight;
  float top_n_sigma;
  uint seed_low, seed_high;
  uchar stages[NUM_STAGES];  // numbers below, in the order in which they apply, then zeros
  uint position, choice;     // counter of the draw
  int max_surprise;          // of mirostat, in 2^-14 bits
  int num_logprobs;          // top logits to report; 0: the chosen one alone, -1: no report
  int mask;                  // index of the row's mask; -1: all tokens are allowed
  int first_adjustment;      // index of the row's first: those of no stage, of PENALTIES, then of DRY
  int num_biases, num_penalties, num_dry;
} row_params;

// Numbers as in engine_service/scheduling/sampling_params.py; up to GREEDY they change or read logits, then weights.
#define PENALTIES 1
#define DRY 2
#define TOP_N_SIGMA 3
#define TEMPERATURE 4
#define GREEDY 5
#define TOP_K 6
#define TYPICAL_P 7
#define TOP_P 8
#define MIN_P 9
#define XTC 10
#define MIROSTAT 11

// A token's logit x becomes (x > 0 ? x / divisor : x * divisor) - subtrahend. Mirrored by ADJUSTMENT on the host.
typedef struct {
  int token_id;
  float divisor;
  float subtrahend;
} adjustment;

// Mirrored by ROW_REPORT in engine_service/compute/row_params.py. All but `surprise` is over the raw row, at temperature 1.
typedef struct {
  ulong weight_sum;     // S of section 10
  float largest_logit;  // M of section 10
  float chosen_logit;
  int surprise;               // of the chosen token among those that mirostat left, in 2^-14 bits
  int top_ids[MAX_LOGPROBS];  // best first, ties by lowest id
  float top_logits[MAX_LOGPROBS];
} row_report;

typedef char row_params_size_matches_the_host[sizeof(row_params) == ROW_PARAMS_BYTES ? 1 : -1];
typedef char row_report_size_matches_the_host[sizeof(row_report) == ROW_REPORT_BYTES ? 1 : -1];

#define ONE 2147483648.0f  // the weight of the largest logit

#ifdef CLF_AVX2
// Bit l is set where lane l of a comparison holds.
inline int lane_bits(int8 holds) { return __builtin_ia32_movmskps256(__builtin_astype(holds, clf_m256)); }

// Round to nearest even, any magnitude.
inline v8f round_even8(v8f x) { return __builtin_astype(__builtin_ia32_roundps256(CLF_M256(x), 0), float8); }

// Exact for integers in 0..2^31: the conversion answers 0x80000000 for what does not fit int32, and 2^31 is just that.
inline uint8 to_uint8(v8f x) { return __builtin_astype(__builtin_ia32_cvtps2dq256(CLF_M256(x)), uint8); }
#else
inline int lane_bits(int8 holds) {
  int8 bit = holds & (int8)(1, 2, 4, 8, 16, 32, 64, 128);
  int4 a = bit.lo | bit.hi;
  int2 b = a.lo | a.hi;
  return b.x | b.y;
}
inline v8f round_even8(v8f x) { return rint(x); }
inline uint8 to_uint8(v8f x) { return convert_uint8(x); }
#endif

inline v8f where8(int8 holds, v8f x) { return as_float8(as_int8(x) & holds); }

inline int lowest_lane(int bits) { return popcount((bits & -bits) - 1); }

// Eight logits from `i` on; beyond the end of the row, -infinity.
inline v8f load_logits(__global const float *row, int n, int i) {
  if (i + 8 <= n) return clf_load8(row + i);
  float tail[8];
  for (int l = 0; l < 8; ++l) tail[l] = i + l < n ? row[i + l] : -INFINITY;
  return clf_load8(tail);
}

inline ulong4 add_weights(ulong4 sums, v8f weights) {
  ulong4 pairs = as_ulong4(to_uint8(weights));
  return sums + (pairs & 0xFFFFFFFFul) + (pairs >> 32);
}

// Exact; by way of uint, since a direct conversion to ulong takes a branch.
inline ulong to_ulong(float weight) { return (uint)weight; }

inline ulong lane_sum(ulong4 s) { return s.x + s.y + s.z + s.w; }

// The id of the largest logit, ties by lowest id; 0 where all are -infinity or NaN. `*largest` is that logit.
int argmax(__global const float *row, int n, float *largest) {
  v8f best[2] = {(v8f)(-INFINITY), (v8f)(-INFINITY)};
  int8 at[2] = {(int8)(0), (int8)(8)};
  for (int i = 0; i < n; i += 16)
    for (int h = 0; h < 2; ++h) {  // two chains of dependent comparisons instead of one
      v8f x = load_logits(row, n, i + 8 * h);
      int8 better = x > best[h];
      best[h] = better ? x : best[h];
      at[h] = better ? (int8)(i + 8 * h) : at[h];
    }
  float lane_best[16];
  int lane_at[16];
  clf_store8(lane_best, best[0]);
  clf_store8(lane_best + 8, best[1]);
  vstore8(at[0], 0, lane_at);
  vstore8(at[1], 1, lane_at);
  int id = lane_at[0];
  *largest = lane_best[0];
  for (int l = 1; l < 16; ++l) {
    int candidate = lane_at[l] + l % 8;
    if (lane_best[l] > *largest || (lane_best[l] == *largest && candidate < id)) {
      *largest = lane_best[l];
      id = candidate;
    }
  }
  return id;
}

// Writes the weights of a row whose largest logit is finite; returns their sum.
ulong weigh(__global const float *row, int n, float largest, float inverse_temperature, __global float *weights) {
  ulong4 sums = (ulong4)(0);
  for (int i = 0; i < n; i += 8) {
    v8f x = (load_logits(row, n, i) - largest) * inverse_temperature;
    int8 counts = x > -23.0f;  // exp(-23) * 2^31 = 0.22 rounds to 0; false for NaN
    v8f w = (v8f)(0.0f);
    if (lane_bits(counts)) {
      w = where8(counts, round_even8(clf_exp8(x) * ONE));
      sums = add_weights(sums, w);
    }
    clf_store8(weights + i, w);
  }
  return lane_sum(sums);
}

// The integer nearest to log2(x) * 2^14, for normal x > 0: section 10. Coefficients of Cephes logf.
inline int8 log2_fixed(v8f x) {
  int8 bits = as_int8(x);
  int8 exponent = (bits - 0x3F3504F3) >> 23;  // what is left of x is in [sqrt(1/2), sqrt(2))
  v8f f = as_float8(bits - (exponent << 23)) - 1.0f;
  v8f z = f * f;
  v8f p = (v8f)(7.0376836292e-2f);
  p = clf_fma8(p, f, (v8f)(-1.1514610310e-1f));
  p = clf_fma8(p, f, (v8f)(1.1676998740e-1f));
  p = clf_fma8(p, f, (v8f)(-1.2420140846e-1f));
  p = clf_fma8(p, f, (v8f)(1.4249322787e-1f));
  p = clf_fma8(p, f, (v8f)(-1.6668057665e-1f));
  p = clf_fma8(p, f, (v8f)(2.0000714765e-1f));
  p = clf_fma8(p, f, (v8f)(-2.4999993993e-1f));
  p = clf_fma8(p, f, (v8f)(3.3333331174e-1f));
  v8f log = f + clf_fma8((v8f)(-0.5f), z, p * f * z);
  v8f whole = as_float8(exponent + 0x4B400000) - 12582912.0f;
  return as_int8(clf_fma8(log, (v8f)(23637.1155f), whole * 16384.0f) + 12582912.0f) - 0x4B400000;
}
