// Causal attention of a ragged batch over paged K and V (docs/numerics.md section 9).
//
// Defines: NUM_HEADS, NUM_KV_HEADS, TILE_ROWS; HEAD_DIM, BLOCK_SIZE and the cache's type as kv_block.cl has them.
// A work-item serves one tile (up to TILE_ROWS rows of one sequence) and one kv head, so that K and V are fetched once for
// GROUP x rows queries. Launch num_tiles x NUM_KV_HEADS items; tiles vary fastest, since the later tiles of a prompt cost
// more and a runtime that hands each thread a run of items then gives all threads some of each.
//
// Queries are numbered row x GROUP + head and worked on in blocks of four: four queries times two vectors are the eight
// independent chains of fma that hide its latency. Lanes are tokens for scores and head dimensions for values, so that each
// element's own chain keeps the order of its definition whatever shares the block.

#define PARTITION 256
#define GROUP (NUM_HEADS / NUM_KV_HEADS)
#define QKV_WIDTH ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
#define MAX_QUERIES ((TILE_ROWS * GROUP + 3) / 4 * 4)

// A work-item's queries. `score` turns into p times V's scales in place; o, m and l are of the present partition.
typedef struct {
  int num_queries;                     // a multiple of 4: the last block is filled up with copies of the last query
  int num_visible[MAX_QUERIES];        // query i sees positions 0 to num_visible[i] - 1
  float q[MAX_QUERIES * HEAD_DIM];     // [MAX_QUERIES / 4][HEAD_DIM][4]
  float score[MAX_QUERIES * PARTITION];
  float o[MAX_QUERIES * HDP], m[MAX_QUERIES], l[MAX_QUERIES];
  float total_o[MAX_QUERIES * HDP], total_m[MAX_QUERIES], total_l[MAX_QUERIES];
} query_set;

// One kv head of one sequence in the K or V cache.
typedef struct {
  __global const kv_t *cache;
  __global const int *block_table;
  int kv_head;
} paged;

static inline __global const kv_t *block_of(paged pages, int position) {
  size_t block = pages.block_table[position / BLOCK_SIZE];
  return pages.cache + (block * NUM_KV_HEADS + pages.kv_head) * KV_HEAD_SIZE;
}

// Scales of the eight tokens from `position`, a multiple of 8, on.
static inline v8f scales_at(paged pages, int position) {
  return kv_scales8(block_of(pages, position), position % BLOCK_SIZE);
}

static inline __global const kv_t *key_at(paged keys, int position) { return block_of(keys, position) + position % BLOCK_SIZE; }

static inline __global const kv_t *value_at(paged values, int position) {
  return block_of(values, position) + position % BLOCK_SIZE * HDP;
}

// score [4][PARTITION], 16 tokens: q [HEAD_DIM][4] times eight tokens' K at k0 and eight at k1, both
// [HEAD_DIM][BLOCK_SIZE], times their scales.
static inline void score_block(__private float *score, __private const float *q, __global const kv_t *k0,
                               __global const kv_t *k1, v8f scales0, v8f scales1) {
  v8f acc[4][2];
#pragma unroll
  for (int i = 0; i < 4; i++) acc[i][0] = acc[i][1] = (v8f)(0.0f);
  for (int d = 0; d < HEAD_DIM; d++) {
    v8f a = load_kv8(k0 + d * BLOCK_SIZE), b = load_kv8(k1 + d * BLOCK_SIZE);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v8f qd = (v8f)(q[d * 4 + i]);
      acc[i][0] = clf_fma8(qd, a, acc[i][0]);
      acc[i][1] = clf_fma8(qd, b, acc[i][1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    clf_store8(score + i * PARTITION, acc[i][0] * scales0);
    clf_store8(score + i * PARTITION + 8, acc[i][1] * scales1);
  }
}

// Two vectors of o [4][HDP] += p [4][PARTITION] times v [num_tokens][HDP]. The bounds of the inner loops are literals: PoCL
// unrolls before it inlines, and would keep `acc` in memory.
static inline void value_block(__private float *o, __private const float *p, __global const kv_t *v, int num_tokens) {
  v8f acc[4][2];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    acc[i][0] = clf_load8(o + i * HDP);
    acc[i][1] = clf_load8(o + i * HDP + 8);
  }
  for (int t = 0; t < num_tokens; t++) {
    v8f a = load_kv8(v + t * HDP), b = load_kv8(v + t * HDP + 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v8f pt = (v8f)(p[i * PARTITION + t]);
      acc[i][0] = clf_fma8(pt, a, acc[i][0]);
      acc[i][1] = clf_fma8(pt, b, acc[i][1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    clf_store8(o + i * HDP, acc[i][0]);
    clf_store8(o + i * HDP + 8, acc[i][1]);
  }
}

// One query's share of the same, for the dimensions from `first_dim` on.
static inline void value_single(__private float *o, __private const float *p, __global const kv_t *v, int num_tokens,
                                int first_dim) {
  for (int d = first_dim; d < HDP; d += 8) {
    v8f acc = clf_load8(o + d);
    for (int t = 0; t < num_tokens; t++) acc = clf_fma8((v8f)(p[t]), load_kv8(v + t * HDP + d), acc);
    clf_store8(o + d, acc);
  }
}

// Scores of the `count` tokens from position `start` on. Eights are read whole: what a query does not see is masked later.
static inline void score_partition(__private query_set *s, paged keys, int start, int count) {
  for (int t = 0; t < count; t += 16) {
    int first = start + t, second = t + 8 < count ? first + 8 : first;
    __global const kv_t *k0 = key_at(keys, first), *k1 = key_at(keys, second);
    v8f scales0 = scales_at(keys, first), scales1 = scales_at(keys, second);
    for (int i = 0; i < s->num_queries; i += 4)
      score_block(s->score + i * PARTITION + t, s->q + i * HEAD_DIM, k0, k1, scales0, scales1);
  }
}

// Turns the scores of the `count` tokens that a query sees into p times V's scales, and sets m and l.
static inline void softmax_partition(__private float *score, paged values, int start, int count, __private float *m,
                                     __private float *l) {
  for (int j = count; j % 8; j++) score[j] = -FLT_MAX;
  v8f top = (v8f)(-FLT_MAX);
  for (int j = 0; j < count; j += 8) top = clf_max8(top, clf_load8(score + j));
  *m = clf_hmax8(top);
  v8f sum = (v8f)(0.0f);
  for (int j = 0; j < count; j += 8) {
    v8f p = clf_exp8(clf_load8(score + j) - *m);
    sum += p;
    clf_store8(score + j, p * scales_at(values, start + j));
  }
  *l = clf_sum8(sum);
}

// o of the `count` tokens from position `start` on, in runs that lie in one block. A query takes no token that it does not
// see, not even with p = 0: the cache may hold anything there, and 0 x NaN is NaN.
static inline void value_partition(__private query_set *s, paged values, int start, int count) {
  for (int d = 0; d < s->num_queries * HDP; d += 8) clf_store8(s->o + d, (v8f)(0.0f));
  for (int t = 0, run; t < count; t += run) {
    run = min(count - t, BLOCK_SIZE - (start + t) % BLOCK_SIZE);
    __global const kv_t *v = value_at(values, start + t);
    for (int i = 0; i < s->num_queries; i += 4) {
      int end[4], shared = run;
#pragma unroll
      for (int n = 0; n < 4; n++) {
        end[n] = clamp(s->num_visible[i + n] - start - t, 0, run);
        shared = min(shared, end[n]);
      }
      __private float *o = s->o + i * HDP;
      __private const float *p = s->score + i * PARTITION + t;
      for (int d = 0; d + 16 <= HDP; d += 16) value_block(o + d, p, v + d, shared);
      for (int n = 0; n < 4; n++, o += HDP, p += PARTITION) {
        value_single(o, p, v, shared, HDP / 16 * 16);
        value_single(o, p + shared, v + shared * HDP, end[n] - shared, 0);
      }
    }
  }
}

static inline void merge_partition(__private query_set *s, int i, bool is_first) {
  float m = is_first || s->m[i] > s->total_m[i] ? s->m[i] : s->total_m[i];
  float a = is_first ? 0.0f : clf_exp(s->total_m[i] - m), b = clf_exp(s->m[i] - m);
  for (int d = 0; d < HDP; d += 8) {
    v8f part = clf_load8(s->o + i * HDP + d);
    v8f total = is_first ? part : clf_fma8(clf_load8(s->total_o + i * HDP + d), (v8f)(a), part * b);
    clf_store8(s->total_o + i * HDP + d, total);
  }
  s->total_l[i] = is_first ? s->l[i] : clf_fma(s->total_l[i], a, s->l[i] * b);
  s->total_m[i] = m;
}

// qkv          f32 [M][QKV_WIDTH], q heads first, rotated
// k_cache      kv_t [num_blocks][NUM_KV_HEADS][KV_HEAD_SIZE]
// v_cache      kv_t [num_blocks][NUM_KV_HEADS][KV_HEAD_SIZE]
// positions    int32 [M], absolute; row r sees positions 0 to positions[r] of its sequence
// block_tables int32 [num_seqs][max_blocks]
// tiles        int32 [num_tiles][4]: row of block_tables, first row, number of rows (1 to TILE_ROWS), unused
// out          f32 [M][NUM_HEADS * HEAD_DIM]
// scale        1 / sqrt(head_dim), or the model's own
CLF_OPERATION attention(__global const float *qkv, __global const kv_t *k_cache, __global const kv_t *v_cache,
                        __global const int *positions, __global const int *block_tables, __global const int *tiles,
                        __global float *out, int max_blocks, float scale CLF_ITEM_PARAMS) {
  int num_tiles = NUM_ITEMS / NUM_KV_HEADS;
  int kv_head = ITEM / num_tiles;
  __global const int *tile = tiles + ITEM % num_tiles * 4;
  __global const int *block_table = block_tables + (size_t)tile[0] * max_blocks;
  paged keys = {k_cache, block_table, kv_head}, values = {v_cache, block_table, kv_head};
  size_t first_row = tile[1];
  int num_live = tile[2] * GROUP, num_tokens = 0;

  query_set s;
  s.num_queries = (num_live + 3) / 4 * 4;
  for (int i = 0; i < s.num_queries; i++) {
    int live = min(i, num_live - 1);
    size_t row = first_row + live / GROUP;
    __global const float *q = qkv + row * QKV_WIDTH + (kv_head * GROUP + live % GROUP) * HEAD_DIM;
    for (int d = 0; d < HEAD_DIM; d++) s.q[(i / 4 * HEAD_DIM + d) * 4 + i % 4] = q[d] * scale;
    s.num_visible[i] = positions[row] + 1;
    num_tokens = max(num_tokens, s.num_visible[i]);
  }
  for (int start = 0; start < num_tokens; start += PARTITION) {
    int count = min(PARTITION, num_tokens - start);
    score_partition(&s, keys, start, count);
    for (int i = 0; i < num_live; i++) {
      int num_seen = min(PARTITION, s.num_visible[i] - start);
      if (num_seen > 0) softmax_partition(s.score + i * PARTITION, values, start, num_seen, &s.m[i], &s.l[i]);
    }
    value_partition(&s, values, start, count);
    for (int i = 0; i < num_live; i++)
      if (s.num_visible[i] > start) merge_partition(&s, i, start == 0);
  }
  for (int i = 0; i < num_live; i++) {
    __global float *o = out + ((first_row + i / GROUP) * NUM_HEADS + kv_head * GROUP + i % GROUP) * HEAD_DIM;
    float r = 1.0f / s.total_l[i];
    for (int d = 0; d < HEAD_DIM; d++) o[d] = s.total_o[i * HDP + d] * r;
  }
}
