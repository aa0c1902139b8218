// Rows of a model file to the tiles of kernels/weight_tile.cl: the bytes that quant_layouts.pack makes of them. A start waits for it,
// so each byte is read and written once, by all threads; numpy's passes over every field take several times as long.
//
// Defines: the layout's, and FILE_<its GGUF type>. Launch one item per 8 rows. Lanes are rows.
//
// A file's row is blocks (ggml-common.h), of an even number of bytes: a scale, f16 at FILE_SCALE; a minimum, f16 at 2, where HAS_MIN;
// scales of groups from FILE_GROUPS; the high bits of 5 and 6-bit codes from FILE_HIGH; codes, or their low 4 bits, from FILE_CODES.
#define FILE_SCALE 0
#if defined(FILE_Q8_0)
#define FILE_BLOCK_BYTES 34
#define FILE_CODES 2
#elif defined(FILE_Q4_0)
#define FILE_BLOCK_BYTES 18
#define FILE_CODES 2
#elif defined(FILE_Q4_1)
#define FILE_BLOCK_BYTES 20
#define FILE_CODES 4
#elif defined(FILE_Q5_0)
#define FILE_BLOCK_BYTES 22
#define FILE_HIGH 2
#define FILE_CODES 6
#elif defined(FILE_Q5_1)
#define FILE_BLOCK_BYTES 24
#define FILE_HIGH 4
#define FILE_CODES 8
#elif defined(FILE_Q4_K)
#define FILE_BLOCK_BYTES 144
#define FILE_GROUPS 4
#define FILE_CODES 16
#elif defined(FILE_Q5_K)
#define FILE_BLOCK_BYTES 176
#define FILE_GROUPS 4
#define FILE_HIGH 16
#define FILE_CODES 48
#elif defined(FILE_Q6_K)
#define FILE_BLOCK_BYTES 210
#define FILE_CODES 0
#define FILE_HIGH 128
#define FILE_GROUPS 192
#undef FILE_SCALE
#define FILE_SCALE 208
#else
#define FILE_BLOCK_BYTES WEIGHT_BYTES
#define TILE_BYTES (8 * WEIGHT_BYTES)
#endif

// What lies at p in each of 8 rows, `stride` bytes apart.
#define OF_ROWS(get, p, stride)                                                                                  \
  (get(p), get(p + stride), get(p + 2 * stride), get(p + 3 * stride), get(p + 4 * stride), get(p + 5 * stride),  \
   get(p + 6 * stride), get(p + 7 * stride))

static inline ushort half_at(__global const uchar *p) { return *(__global const ushort *)p; }
static inline uint word_at(__global const uchar *p) { return half_at(p) | (uint)half_at(p + 2) << 16; }
static inline ushort8 halves(__global const uchar *p, size_t stride) { return (ushort8)OF_ROWS(half_at, p, stride); }
static inline uint8 words(__global const uchar *p, size_t stride) { return (uint8)OF_ROWS(word_at, p, stride); }

static inline void store_halves(__global uchar *p, ushort8 x) { *(__global ushort8 *)p = x; }

// Tiles are aligned to 16 bytes only.
static inline void store_words(__global uchar *p, uint8 x) {
  ((__global uint4 *)p)[0] = x.lo;
  ((__global uint4 *)p)[1] = x.hi;
}

#ifdef CODE_BITS
// Codes 4p .. 4p + 3 of the `b`-th 32 of a block, a byte each.
static inline uint8 file_quad(__global const uchar *block, size_t stride, int b, int p) {
#if CODE_BITS == 8
  return words(block + FILE_CODES + 4 * p, stride) ^ 0x80808080;
#elif GROUP == 0
  uint8 code = (words(block + FILE_CODES + p % 4 * 4, stride) >> (p / 4 * 4)) & 0x0f0f0f0f;
#if CODE_BITS == 5
  uint8 high = (words(block + FILE_HIGH, stride) >> (4 * p)) & 0xf;
  code |= ((high * 0x00204081) & 0x01010101) << 4;  // bit i of the four to byte i
#endif
  return code;
#elif GROUP == 32
  uint8 code = (words(block + FILE_CODES + b / 2 * 32 + 4 * p, stride) >> (b % 2 * 4)) & 0x0f0f0f0f;
#if CODE_BITS == 5
  code |= ((words(block + FILE_HIGH + 4 * p, stride) >> b) & 0x01010101) << 4;
#endif
  return code;
#else
  uint8 code = (words(block + FILE_CODES + b / 4 * 64 + b % 2 * 32 + 4 * p, stride) >> (b % 4 / 2 * 4)) & 0x0f0f0f0f;
  return code | ((words(block + FILE_HIGH + b / 4 * 32 + 4 * p, stride) >> (b % 4 * 2)) & 0x03030303) << 4;
#endif
}

// 32 codes of each row as planes.
static inline void store_codes(__global uchar *out, __global const uchar *block, size_t stride, int b) {
  uint8 q[8];
  FOR(p, 8) q[p] = file_quad(block, stride, b, p);
#if CODE_BITS == 8
  FOR(p, 8) store_words(out + 32 * p, q[p]);
#else
  FOR(v, 4) store_words(out + 32 * v, (q[2 * v] & 0x0f0f0f0f) | (q[2 * v + 1] & 0x0f0f0f0f) << 4);
#endif
#if CODE_BITS == 5
  uint8 plane = 0;
  FOR(p, 8) plane |= ((q[p] >> 4) & 0x01010101) << p;
  store_words(out + 128, plane);
#elif CODE_BITS == 6
  FOR(u, 2) {
    uint8 plane = 0;
    FOR(f, 4) plane |= ((q[4 * u + f] >> 4) & 0x03030303) << (2 * f);
    store_words(out + 128 + 32 * u, plane);
  }
#endif
}

#if GROUP == 32
// [8 rows][4 groups] bytes to [4 groups][8 rows].
static inline void store_group_bytes(__global uchar *out, uint8 x) {
  FOR(g, 4) ((__global uchar8 *)out)[g] = convert_uchar8((x >> (8 * g)) & 0xff);
}

// Scales and minimums of 6 bits (ggml's get_scale_min_k4).
static inline void store_group_scales(__global uchar *out, __global const uchar *groups, size_t stride) {
  uint8 scale = words(groups, stride), minimum = words(groups + 4, stride), low = words(groups + 8, stride);
  store_group_bytes(out, scale & 0x3f3f3f3f);
  store_group_bytes(out + 32, (low & 0x0f0f0f0f) | ((scale >> 6) & 0x03030303) << 4);
  store_group_bytes(out + 64, minimum & 0x3f3f3f3f);
  store_group_bytes(out + 96, ((low >> 4) & 0x0f0f0f0f) | ((minimum >> 6) & 0x03030303) << 4);
}
#elif GROUP == 16
static inline void store_group_scales(__global uchar *out, __global const uchar *groups, size_t stride) {
  FOR(b, 8) store_halves(out + 16 * b, halves(groups + 2 * b, stride));
}
#endif

static inline void store_tile(__global uchar *tile, __global const uchar *block, size_t stride) {
  for (int b = 0; b < TILE_BLOCKS; b++) store_codes(tile + b * BLOCK_BYTES, block, stride, b);
#if GROUP
  store_group_scales(tile + GROUP_OFFSET, block + FILE_GROUPS, stride);
#endif
  store_halves(tile + SCALE_OFFSET, halves(block + FILE_SCALE, stride));
#if HAS_MIN
  store_halves(tile + SCALE_OFFSET + 16, halves(block + 2, stride));
#endif
}
#else
static inline void store_tile(__global uchar *tile, __global const uchar *element, size_t stride) {
#if WEIGHT_BYTES == 4
  store_words(tile, words(element, stride));
#else
  store_halves(tile, halves(element, stride));
#endif
}
#endif

// rows         [8 x items][num_blocks] file blocks
// tiles        a matrix of rows of num_blocks tiles
// first_group  where in it the first 8 rows go
__kernel void repack(__global const uchar *rows, __global uchar *tiles, int num_blocks, int first_group) {
  size_t group = get_global_id(0), stride = (size_t)num_blocks * FILE_BLOCK_BYTES;
  __global const uchar *block = rows + group * 8 * stride;
  __global uchar *tile = tiles + (first_group + group) * num_blocks * TILE_BYTES;
  for (int i = 0; i < num_blocks; i++) store_tile(tile + (size_t)i * TILE_BYTES, block + i * FILE_BLOCK_BYTES, stride);
}
