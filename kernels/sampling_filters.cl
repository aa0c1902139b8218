// One function per filter of docs/numerics.md section 10, over a row's weights: what a filter drops gets weight 0.

// A positive weight's bits above those of 1.0f have KEY_BITS bits: 5 of the exponent, 23 of the fraction.
#define KEY_BITS 28
#define KEY_ZERO 0x3F800000
#define FIRST_DIGIT_BITS 10
#define NEXT_DIGIT_BITS 9

#define LOG2_ONE (31 << 14)  // log2_fixed(ONE)
#define SUM_BLOCK 512        // weights summed at a time when looking for the drawn token

// "Larger key first, then lower id": the key is the weight's bits or, where `is_typical`, nearness of the surprise to `centre`.
typedef struct {
  bool is_typical;
  int centre;
} token_order;

// Keys of eight weights, below 2^KEY_BITS; negative for weight 0.
inline int8 order_keys(token_order order, v8f weights) {
  int8 keys = as_int8(weights) - KEY_ZERO;
  if (!order.is_typical) return keys;
  int8 away = LOG2_ONE - log2_fixed(weights) - order.centre;
  return keys < 0 ? keys : 2 * LOG2_ONE - (away < 0 ? -away : away);
}

inline uint order_key(token_order order, float weight) {
  return order.is_typical ? (uint)order_keys(order, (v8f)(weight)).s0 : as_uint(weight) - KEY_ZERO;
}

// The last member of a prefix of an order.
typedef struct {
  int key;     // negative: no prefix reaches what is needed
  ulong need;  // > 0: what those of this key have to reach, by lowest id
} prefix_end;

// Adds up, per digit, the positive weights whose key has `prefix` above bit `high`; the digit is bits shift..high-1.
void histogram(__global const float *weights, int n, token_order order, uint prefix, int high, int shift, bool count,
               ulong *bins) {
  uint mask = (1u << (high - shift)) - 1;
  for (uint b = 0; b <= mask; ++b) bins[b] = 0;
  for (int i = 0; i < n; i += 8) {
    v8f eight = clf_load8(weights + i);
    if (order.is_typical && !lane_bits(eight > 0.0f)) continue;
    for (int m = lane_bits(order_keys(order, eight) >> high == (int8)(prefix)); m; m &= m - 1) {
      float w = weights[i + lowest_lane(m)];
      bins[(order_key(order, w) >> shift) & mask] += count ? 1 : to_ulong(w);
    }
  }
}

// The shortest prefix whose number of weights (`count`) or sum of weights reaches `need` > 0, by radix select over the keys.
prefix_end find_prefix(__global const float *weights, int n, token_order order, ulong need, bool count) {
  ulong bins[1 << FIRST_DIGIT_BITS];
  uint prefix = 0;
  int high = KEY_BITS;
  for (int shift = KEY_BITS - FIRST_DIGIT_BITS; shift >= 0; shift -= NEXT_DIGIT_BITS) {
    histogram(weights, n, order, prefix, high, shift, count, bins);
    int b = (1 << (high - shift)) - 1;
    for (; b >= 0 && bins[b] < need; --b) need -= bins[b];
    if (b < 0) return (prefix_end){-1, 0};
    prefix = prefix << (high - shift) | b;
    high = shift;
  }
  return (prefix_end){(int)prefix, need};
}

// Drops what is outside the shortest prefix that reaches `need`; returns the new sum, `sum` being the old one.
ulong keep_prefix(__global float *weights, int n, token_order order, ulong sum, ulong need, bool count) {
  prefix_end end = find_prefix(weights, n, order, need, count);
  if (end.key < 0) return sum;
  ulong4 before = (ulong4)(0);
  ulong ties = 0, num_ties = 0;
  for (int i = 0; i < n; i += 8) {
    v8f w = clf_load8(weights + i);
    int8 keys = order_keys(order, w);
    before = add_weights(before, where8(keys > end.key, w));
    clf_store8(weights + i, where8(keys >= end.key, w));
    for (int m = lane_bits(keys == end.key); m; m &= m - 1) {
      int id = i + lowest_lane(m);
      if ((count ? num_ties : ties) < end.need) {
        ties += to_ulong(weights[id]);
        ++num_ties;
      } else {
        weights[id] = 0.0f;
      }
    }
  }
  return lane_sum(before) + ties;
}

// (share * sum) >> 31, at least 1; `share` is at most 2^31.
inline ulong share_of(uint share, ulong sum) {
  return max((ulong)share == 0x80000000ul ? sum : mul_hi((ulong)share << 33, sum), 1ul);
}

ulong keep_top_k(__global float *weights, int n, ulong sum, uint k) {
  return keep_prefix(weights, n, (token_order){false, 0}, sum, k, true);
}

ulong keep_top_p(__global float *weights, int n, ulong sum, uint top_p_weight) {
  return keep_prefix(weights, n, (token_order){false, 0}, sum, share_of(top_p_weight, sum), false);
}

// Locally typical sampling (Meister et al., 2022): the weights whose surprise is nearest the mean.
ulong keep_typical_p(__global float *weights, int n, ulong sum, uint typical_p_weight) {
  ulong4 sums = (ulong4)(0);
  for (int i = 0; i < n; i += 8) {
    v8f w = clf_load8(weights + i);
    if (!lane_bits(w > 0.0f)) continue;
    ulong4 pairs = as_ulong4(to_uint8(w)), surprises = as_ulong4(LOG2_ONE - log2_fixed(w));
    sums += (pairs & 0xFFFFFFFFul) * (surprises & 0xFFFFFFFFul) + (pairs >> 32) * (surprises >> 32);
  }
  token_order order = {true, (int)(lane_sum(sums) / sum)};
  return keep_prefix(weights, n, order, sum, share_of(typical_p_weight, sum), false);
}

// Those of at least ceil(min_p_weight * best / 2^31), `best` being the largest weight; returns the new sum.
ulong keep_min_p(__global float *weights, int n, float best, uint min_p_weight) {
  uint threshold = (uint)((min_p_weight * to_ulong(best) + 0x7FFFFFFFul) >> 31);
  ulong4 sums = (ulong4)(0);
  for (int i = 0; i < n; i += 8) {
    v8f w = clf_load8(weights + i);
    w = where8(to_uint8(w) >= threshold, w);
    clf_store8(weights + i, w);
    sums = add_weights(sums, w);
  }
  return lane_sum(sums);
}

float largest_weight(__global const float *weights, int n) {
  v8f best = (v8f)(0.0f);
  for (int i = 0; i < n; i += 8) best = clf_max8(best, clf_load8(weights + i));
  return clf_hmax8(best);
}

// XTC (p-e-w, 2024): drops all weights of at least share `threshold_weight` but the least, of equals that of the highest id.
ulong drop_top_choices(__global float *weights, int n, ulong sum, uint threshold_weight) {
  ulong share = share_of(threshold_weight, sum);
  if (share > 0x80000000ul) return sum;  // more than any weight
  uint threshold = (uint)share;
  int least = -1;
  for (int i = 0; i < n; i += 8)
    for (int m = lane_bits(to_uint8(clf_load8(weights + i)) >= threshold); m; m &= m - 1) {
      int id = i + lowest_lane(m);
      if (least < 0 || weights[id] <= weights[least]) least = id;
    }
  for (int i = 0; i < n; i += 8)
    for (int m = lane_bits(to_uint8(clf_load8(weights + i)) >= threshold); m; m &= m - 1) {
      int id = i + lowest_lane(m);
      if (id == least) continue;
      sum -= to_ulong(weights[id]);
      weights[id] = 0.0f;
    }
  return sum;
}

// The surprise of weight(s) `w` among weights of this sum, in 2^-14 bits.
inline int8 surprise8(v8f w, ulong sum) { return log2_fixed((v8f)((float)sum)) - log2_fixed(w); }

// Mirostat v2 (Basu et al., 2021): those of at most this surprise, or the first of the largest.
ulong keep_unsurprising(__global float *weights, int n, ulong sum, float best, int max_surprise) {
  if (surprise8((v8f)(best), sum).s0 > max_surprise) return keep_top_k(weights, n, sum, 1);
  ulong4 sums = (ulong4)(0);
  for (int i = 0; i < n; i += 8) {
    v8f w = clf_load8(weights + i);
    w = where8(w > 0.0f && surprise8(w, sum) <= max_surprise, w);
    clf_store8(weights + i, w);
    sums = add_weights(sums, w);
  }
  return lane_sum(sums);
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
