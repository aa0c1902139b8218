// Chooses one token per row of logits: docs/numerics.md section 10.
//
// logits       [rows][vocab_size] f32.
// params       [rows] row_params: how to choose.
// adjustments  [their number in all] adjustment: what the host makes of a row's history.
// weights      [rows][vocab_size rounded up to 8] f32, scratch: changed logits, later weights. A weight is an integer in 0..2^31
//              and exact in f32, since it is 2^31 times an f32 of at most 1; positive floats order like their bits, which the
//              radix select uses.
// masks        [rows that have one][(vocab_size + 31) / 32] uint: bit i % 32 of word i / 32 allows token i; bits beyond are 0.
// token_ids    [rows] int32: the chosen tokens.
// reports      [rows] row_report: written where num_logprobs >= 0; of mirostat's rows, `surprise`.
//
// A work-item does one row. Sums of weights are exact, so lanes may add in any order. Logits that are NaN have weight 0; where
// the largest logit is not finite, the token is the lowest id that has it, or the lowest allowed id.

// A row on its way through the stages.
typedef struct {
  __global const row_params *params;
  __global const float *raw;
  __global const adjustment *adjustments;
  __global const uint *mask;  // 0: none
  __global float *scratch;
  int n;
  __global const float *logits;  // `raw` or, once something has changed, `scratch`
  float scale;                   // what the logits are still to be multiplied with
  ulong sum;                     // of the weights in `scratch`; 0 while there are none
  float best;                    // the largest of them
} row_state;

// The low 64 of the 128 bits of Philox4x32-10 (Salmon et al., SC11) for counter (position, choice, draw, 0).
ulong random_bits(__global const row_params *p, uint draw) {
  uint4 c = (uint4)(p->position, p->choice, draw, 0);
  uint2 k = (uint2)(p->seed_low, p->seed_high);
  for (int round = 0; round < 10; ++round) {
    ulong a = 0xD2511F53ul * c.x, b = 0xCD9E8D57ul * c.z;
    c = (uint4)((uint)(b >> 32) ^ c.y ^ k.x, (uint)b, (uint)(a >> 32) ^ c.w ^ k.y, (uint)a);
    k += (uint2)(0x9E3779B9u, 0xBB67AE85u);
  }
  return upsample(c.y, c.x);
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

void copy_logits(row_state *s) {
  if (s->logits == s->scratch) return;
  for (int i = 0; i < s->n; i += 8) clf_store8(s->scratch + i, load_logits(s->raw, s->n, i));
  s->logits = s->scratch;
}

void adjust(row_state *s, int first, int count) {
  if (!count) return;
  copy_logits(s);
  if (s->scale != 1.0f)
    for (int i = 0; i < s->n; i += 8) clf_store8(s->scratch + i, clf_load8(s->scratch + i) * s->scale);
  s->scale = 1.0f;
  __global const adjustment *a = s->adjustments + s->params->first_adjustment + first;
  for (int end = count; end > 0; --end, ++a) {
    float x = s->scratch[a->token_id];
    s->scratch[a->token_id] = (x > 0.0f ? x / a->divisor : x * a->divisor) - a->subtrahend;
  }
}

// Top-n-sigma (Tang et al., 2024): logits of at least the largest less so many standard deviations.
void keep_top_n_sigma(row_state *s) {
  float largest;
  argmax(s->logits, s->n, &largest);
  if (!isfinite(largest)) return;
  v8f sum = (v8f)(0.0f), squares = (v8f)(0.0f);
  int count = 0;
  for (int i = 0; i < s->n; i += 8) {
    v8f x = load_logits(s->logits, s->n, i);
    int8 left = x > -INFINITY;
    sum += where8(left, largest - x);
    count += popcount(lane_bits(left));
  }
  float mean = clf_sum8(sum) / (float)count;
  for (int i = 0; i < s->n; i += 8) {
    v8f x = load_logits(s->logits, s->n, i);
    v8f e = where8(x > -INFINITY, (largest - x) - mean);
    squares = clf_fma8(e, e, squares);
  }
  float width = s->params->top_n_sigma * sqrt(clf_sum8(squares) / (float)count);
  for (int i = 0; i < s->n; i += 8) {
    v8f x = load_logits(s->logits, s->n, i);
    clf_store8(s->scratch + i, largest - x > width ? (v8f)(-INFINITY) : x);
  }
  s->logits = s->scratch;
}

void change_logits(row_state *s, int stage) {
  __global const row_params *p = s->params;
  if (stage == TEMPERATURE) s->scale = p->inverse_temperature;
  if (stage == PENALTIES) adjust(s, p->num_biases, p->num_penalties);
  if (stage == DRY) adjust(s, p->num_biases + p->num_penalties, p->num_dry);
}

// Goes back from weights to logits: those that stages before number `end` made of what now has a weight.
void restore_logits(row_state *s, int end) {
  for (int i = 0; i < s->n; i += 8)
    clf_store8(s->scratch + i, clf_load8(s->scratch + i) > 0.0f ? load_logits(s->raw, s->n, i) : (v8f)(-INFINITY));
  s->sum = 0;
  s->scale = 1.0f;
  adjust(s, 0, s->params->num_biases);
  for (int t = 0; t < end; ++t) change_logits(s, s->params->stages[t]);
}

// Makes weights of logits; false where the largest logit is not finite.
bool weigh_logits(row_state *s) {
  if (s->sum) return true;
  float largest;
  argmax(s->logits, s->n, &largest);
  if (!isfinite(largest)) return false;
  s->sum = weigh(s->logits, s->n, largest, s->scale, s->scratch);
  s->best = ONE;
  s->logits = s->scratch;
  return true;
}

void filter(row_state *s, int stage) {
  __global const row_params *p = s->params;
  __global float *w = s->scratch;
  int n = s->n;
  if (stage == TOP_K) s->sum = keep_top_k(w, n, s->sum, p->top_k);
  if (stage == TOP_P) s->sum = keep_top_p(w, n, s->sum, p->top_p_weight);
  if (stage == MIN_P) s->sum = keep_min_p(w, n, s->best, p->min_p_weight);
  if (stage == MIROSTAT) s->sum = keep_unsurprising(w, n, s->sum, s->best, p->max_surprise);
  if (stage == TYPICAL_P) s->sum = keep_typical_p(w, n, s->sum, p->typical_p_weight);
  if (stage == XTC && random_bits(p, 1) >> 33 < p->xtc_probability_weight)
    s->sum = drop_top_choices(w, n, s->sum, p->xtc_threshold_weight);
  if (stage == TYPICAL_P || stage == XTC) s->best = largest_weight(w, n);
}

int best_token(row_state *s) {
  float largest;
  int id = argmax(s->logits, s->n, &largest);
  return largest == -INFINITY && s->mask ? lowest_allowed(s->mask) : id;
}

// The token that the stages and the draw choose; `*surprise` is its own among the weights that were left.
int choose(row_state *s, int *surprise) {
  *surprise = 0;
  for (int t = 0; t < NUM_STAGES && s->params->stages[t]; ++t) {
    int stage = s->params->stages[t];
    if (stage > GREEDY) {
      if (!weigh_logits(s)) return best_token(s);
      filter(s, stage);
      continue;
    }
    if (s->sum) restore_logits(s, t);
    if (stage == GREEDY) return best_token(s);
    if (stage == TOP_N_SIGMA) keep_top_n_sigma(s);
    change_logits(s, stage);
  }
  if (!weigh_logits(s)) return best_token(s);
  int id = find_running_sum(s->scratch, s->n, mul_hi(random_bits(s->params, 0), s->sum));
  *surprise = surprise8((v8f)(s->scratch[id]), s->sum).s0;
  return id;
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

__kernel void sample(__global const float *logits, __global const row_params *params,
                     __global const adjustment *adjustments, __global float *weights, __global const uint *masks,
                     __global int *token_ids, __global row_report *reports, int vocab_size) {
  size_t r = get_global_id(0);
  int n = vocab_size;
  __global const float *row = logits + r * n;
  __global float *scratch = weights + r * ((n + 7) / 8 * 8);
  __global const row_params *p = params + r;
  __global row_report *report = reports + r;
  if (p->num_logprobs >= 0) {
    float largest;
    argmax(row, n, &largest);
    report->largest_logit = largest;
    report->weight_sum = isfinite(largest) ? weigh(row, n, largest, 1.0f, scratch) : (ulong)ONE;
    if (p->num_logprobs > 0) find_top(row, n, p->num_logprobs, report);
  }

  row_state state = {p, row, adjustments, 0, scratch, n, row, 1.0f, 0, 0.0f};
  if (p->mask >= 0) {
    state.mask = masks + (size_t)p->mask * ((n + 31) / 32);
    keep_allowed(row, n, state.mask, scratch);
    state.logits = scratch;
  }
  adjust(&state, 0, p->num_biases);
  int surprise;
  int token_id = choose(&state, &surprise);
  token_ids[r] = token_id;
  report->surprise = surprise;
  if (p->num_logprobs >= 0) report->chosen_logit = row[token_id];
}
