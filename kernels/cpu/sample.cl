// Chooses one token per row of logits: docs/numerics.md section 10.
//
// logits     [rows][vocab_size] f32. Unchanged afterwards; banned entries are -infinity while the row is worked on.
// params     [rows] row_params: how to choose.
// weights    [rows][vocab_size rounded up to 8] f32, scratch. A weight is an integer in 0..2^31 and exact in f32, since it is
//            2^31 times an f32 of at most 1; positive floats order like their bits, which the radix select uses.
// masks      [rows that have one][(vocab_size + 31) / 32] uint: bit i % 32 of word i / 32 allows token i; bits beyond are 0.
// token_ids  [rows] int32: the chosen tokens.
// reports    [rows] row_report: written where num_logprobs >= 0.
//
// A work-item does one row. Filters set what they drop to weight 0. All sums are exact, so lanes may add in any order. Logits
// that are NaN have weight 0; where the largest logit is not finite, the token is the lowest id that has it, or the lowest
// allowed id.
//
// MAX_BANNED_IDS   length of row_params.banned_ids
// MAX_LOGPROBS     length of row_report.top_ids
// ROW_PARAMS_BYTES, ROW_REPORT_BYTES   what the host takes for the sizes of the two structs

// Mirrored by row_params_dtype in engine_service/compute/sampler.py.
typedef struct {
  int is_greedy;              // take the largest logit; nothing below but the bans and num_logprobs is read
  float inverse_temperature;  // > 0
  uint top_k;                 // 0: off
  uint top_p_weight;          // ceil(top_p * 2^31); 2^31: off
  uint min_p_weight;          // ceil(min_p * 2^31); 0: off
  uint seed_low, seed_high;
  uint position, choice;      // counter of the draw
  int num_logprobs;           // top logits to report; 0: the chosen one alone, -1: no report
  int mask;  // index of the row's mask; -1: all tokens are allowed
  int num_banned;
  int banned_ids[MAX_BANNED_IDS];
} row_params;

// Mirrored by ROW_REPORT in engine_service/compute/sampler.py. All of it is over the raw row: nothing banned, temperature 1.
typedef struct {
  ulong weight_sum;     // S of section 10
  float largest_logit;  // M of section 10
  float chosen_logit;
  int top_ids[MAX_LOGPROBS];  // best first, ties by lowest id
  float top_logits[MAX_LOGPROBS];
} row_report;

typedef char row_params_size_matches_the_host[sizeof(row_params) == ROW_PARAMS_BYTES ? 1 : -1];
typedef char row_report_size_matches_the_host[sizeof(row_report) == ROW_REPORT_BYTES ? 1 : -1];

#define ONE 2147483648.0f  // the weight of the largest logit
#define TOP_P_OFF 0x80000000u
#define SUM_BLOCK 512  // weights summed at a time when looking for the drawn token

// A positive weight's key, its bits above those of 1.0f, has KEY_BITS bits: 5 of the exponent, 23 of the fraction.
#define KEY_BITS 28
#define KEY_ZERO 0x3F800000
#define FIRST_DIGIT_BITS 10
#define NEXT_DIGIT_BITS 9

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

// The last member of a prefix of the order "larger weight first, then lower id".
typedef struct {
  float weight;
  uint num_ties;  // members of the prefix that have this weight
} prefix_end;

// Adds up, per digit, the positive weights whose key has `prefix` above bit `high`; the digit is bits shift..high-1.
void histogram(__global const float *weights, int n, uint prefix, int high, int shift, bool count, ulong *bins) {
  uint mask = (1u << (high - shift)) - 1;
  for (uint b = 0; b <= mask; ++b) bins[b] = 0;
  for (int i = 0; i < n; i += 8) {
    int8 keys = as_int8(clf_load8(weights + i)) - KEY_ZERO;  // negative for weight 0
    for (int m = lane_bits(keys >> high == (int8)(prefix)); m; m &= m - 1) {
      float w = weights[i + lowest_lane(m)];
      bins[((as_uint(w) - KEY_ZERO) >> shift) & mask] += count ? 1 : to_ulong(w);
    }
  }
}

// The shortest prefix whose number of weights (`count`) or sum of weights reaches `need` > 0, by radix select over the keys;
// weight 0 stands for all, where no prefix does.
prefix_end find_prefix(__global const float *weights, int n, ulong need, bool count) {
  ulong bins[1 << FIRST_DIGIT_BITS];
  uint prefix = 0;
  int high = KEY_BITS;
  for (int shift = KEY_BITS - FIRST_DIGIT_BITS; shift >= 0; shift -= NEXT_DIGIT_BITS) {
    histogram(weights, n, prefix, high, shift, count, bins);
    int b = (1 << (high - shift)) - 1;
    for (; b >= 0 && bins[b] < need; --b) need -= bins[b];
    if (b < 0) return (prefix_end){0.0f, 0};
    prefix = prefix << (high - shift) | b;
    high = shift;
  }
  float weight = as_float(prefix + KEY_ZERO);
  ulong one = count ? 1 : to_ulong(weight);
  return (prefix_end){weight, (uint)((need + one - 1) / one)};
}

// Drops what is outside the shortest prefix that reaches `need`; returns the new sum, `sum` being the old one.
ulong keep_prefix(__global float *weights, int n, ulong sum, ulong need, bool count) {
  prefix_end end = find_prefix(weights, n, need, count);
  if (end.weight == 0.0f) return sum;
  ulong4 larger = (ulong4)(0);
  uint ties_left = end.num_ties;
  for (int i = 0; i < n; i += 8) {
    v8f w = clf_load8(weights + i);
    larger = add_weights(larger, where8(w > end.weight, w));
    clf_store8(weights + i, where8(w >= end.weight, w));
    for (int m = lane_bits(w == end.weight); m; m &= m - 1) {
      if (ties_left)
        --ties_left;
      else
        weights[i + lowest_lane(m)] = 0.0f;
    }
  }
  return lane_sum(larger) + end.num_ties * to_ulong(end.weight);
}

// Drops weights below `threshold`; returns the new sum.
ulong keep_at_least(__global float *weights, int n, float threshold) {
  ulong4 sums = (ulong4)(0);
  for (int i = 0; i < n; i += 8) {
    v8f w = clf_load8(weights + i);
    w = where8(w >= threshold, w);
    clf_store8(weights + i, w);
    sums = add_weights(sums, w);
  }
  return lane_sum(sums);
}

// The low 64 of the 128 bits of Philox4x32-10 (Salmon et al., SC11) for counter (position, choice, 0, 0).
ulong random_bits(__global const row_params *p) {
  uint4 c = (uint4)(p->position, p->choice, 0, 0);
  uint2 k = (uint2)(p->seed_low, p->seed_high);
  for (int round = 0; round < 10; ++round) {
    ulong a = 0xD2511F53ul * c.x, b = 0xCD9E8D57ul * c.z;
    c = (uint4)((uint)(b >> 32) ^ c.y ^ k.x, (uint)b, (uint)(a >> 32) ^ c.w ^ k.y, (uint)a);
    k += (uint2)(0x9E3779B9u, 0xBB67AE85u);
  }
  return upsample(c.y, c.x);
}

// The first id at which the running sum of weights exceeds `target`, which is below the sum of all n.
int find_running_sum(__global const float *weights, int n, ulong target) {
  int i = 0;
  for (;; i += SUM_BLOCK) {
    ulong4 sums = (ulong4)(0);
    int end = min(i + SUM_BLOCK, n);
    for (int j = i; j < end; j += 8) sums = add_weights(sums, clf_load8(weights + j));
    ulong block = lane_sum(sums);
    if (target < block) break;
    target -= block;
  }
  for (; target >= to_ulong(weights[i]); ++i) target -= to_ulong(weights[i]);
  return i;
}

// The token that the filters and the draw choose; `largest` is the row's largest logit and finite.
int draw(__global const row_params *p, __global const float *row, int n, float largest, __global float *weights) {
  ulong sum = weigh(row, n, largest, p->inverse_temperature, weights);
  if (p->top_k > 0) sum = keep_prefix(weights, n, sum, p->top_k, true);
  if (p->top_p_weight < TOP_P_OFF)  // (weight * sum) >> 31
    sum = keep_prefix(weights, n, sum, mul_hi((ulong)p->top_p_weight << 33, sum), false);
  if (p->min_p_weight > 0) sum = keep_at_least(weights, n, (float)p->min_p_weight);
  return find_running_sum(weights, n, mul_hi(random_bits(p), sum));
}

// The logits of the tokens that `mask` allows, -infinity for all others; what is beyond the end of the row is -infinity too.
void keep_allowed(__global const float *row, int n, __global const uint *mask, __global float *logits) {
  int8 lanes = (int8)(1, 2, 4, 8, 16, 32, 64, 128);
  for (int i = 0; i < n; i += 8) {
    int8 allowed = ((int8)(mask[i / 32] >> i % 32) & lanes) != 0;
    clf_store8(logits + i, allowed ? load_logits(row, n, i) : (v8f)(-INFINITY));
  }
}

// The lowest id that `mask` allows; one exists.
int lowest_allowed(__global const uint *mask) {
  int w = 0;
  while (!mask[w]) ++w;
  return 32 * w + lowest_lane(mask[w]);
}

// The `count` largest logits by insertion; a later equal logit stays behind, so ties are in id order.
void find_top(__global const float *row, int n, int count, __global row_report *report) {
  float top[MAX_LOGPROBS];
  int ids[MAX_LOGPROBS];
  int held = 0;
  for (int i = 0; i < n; i += 8) {
    v8f x = load_logits(row, n, i);
    int inside = n - i < 8 ? (1 << (n - i)) - 1 : 255;
    for (int m = held < count ? inside : lane_bits(x > top[count - 1]); m; m &= m - 1) {
      int id = i + lowest_lane(m);
      float logit = row[id] == row[id] ? row[id] : -INFINITY;
      int at = held < count ? held++ : logit > top[count - 1] ? count - 1 : count;
      if (at == count) continue;
      for (; at > 0 && top[at - 1] < logit; --at) {
        top[at] = top[at - 1];
        ids[at] = ids[at - 1];
      }
      top[at] = logit;
      ids[at] = id;
    }
  }
  for (int t = 0; t < held; ++t) {
    report->top_ids[t] = ids[t];
    report->top_logits[t] = top[t];
  }
}

__kernel void sample(__global float *logits, __global const row_params *params, __global float *weights,
                     __global const uint *masks, __global int *token_ids, __global row_report *reports, int vocab_size) {
  size_t r = get_global_id(0);
  int n = vocab_size;
  __global float *row = logits + r * n;
  __global float *row_weights = weights + r * ((n + 7) / 8 * 8);
  __global const row_params *p = params + r;
  __global row_report *report = reports + r;
  float largest;
  if (p->num_logprobs >= 0) {
    argmax(row, n, &largest);
    report->largest_logit = largest;
    report->weight_sum = isfinite(largest) ? weigh(row, n, largest, 1.0f, row_weights) : (ulong)ONE;
    if (p->num_logprobs > 0) find_top(row, n, p->num_logprobs, report);
  }

  __global float *logits_left = row;
  __global const uint *mask = masks + (size_t)max(p->mask, 0) * ((n + 31) / 32);
  if (p->mask >= 0) {
    logits_left = row_weights;  // `weigh` reads and writes in place
    keep_allowed(row, n, mask, logits_left);
  }

  float raw[MAX_BANNED_IDS];
  for (int b = 0; b < p->num_banned; ++b) raw[b] = logits_left[p->banned_ids[b]];
  for (int b = 0; b < p->num_banned; ++b) logits_left[p->banned_ids[b]] = -INFINITY;

  int token_id = argmax(logits_left, n, &largest);
  if (largest == -INFINITY && p->mask >= 0) token_id = lowest_allowed(mask);
  if (!p->is_greedy && isfinite(largest)) token_id = draw(p, logits_left, n, largest, row_weights);
  token_ids[r] = token_id;

  if (p->mask < 0)
    for (int b = 0; b < p->num_banned; ++b) row[p->banned_ids[b]] = raw[b];
  if (p->num_logprobs >= 0) report->chosen_logit = row[token_id];
}
