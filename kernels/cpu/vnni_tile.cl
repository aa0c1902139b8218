// Put before every source, for those that are built for a layout of quantised weights: a block of two row groups times two, four
// or eight tokens, by AVX-512's dot product of bytes.
//
// CLF_VNNI=1 (with AVX2): who sets it has seen that the processor has AVX512_VNNI and AVX512VL. This is assembly because PoCL does
// not target them, and in one piece because it keeps 16 sums in registers that the compiler then does not know of: codes are
// unpacked once for eight tokens, and no sum goes through memory.
//
// ymm(16 + 8g + t) is the sum of group g and token t. ymm0 to ymm3 are codes of an even and an odd quad, of either group; ymm4 and
// ymm5 quads of activations, and later terms; ymm6 and ymm7 the codes' upper bits.
#if defined(CLF_AVX2) && CLF_VNNI && defined(CODE_BITS)
#define CLF_VNNI_TILES 1

#define AND(mask, a) "vpand %[" #mask "], %%ymm" #a ", %%ymm" #a "\n"
#define OR(a, to) "vpor %%ymm" #a ", %%ymm" #to ", %%ymm" #to "\n"
#define LEFT(count, from, to) "vpslld $" #count ", %%ymm" #from ", %%ymm" #to "\n"
#define RIGHT(count, from, to) "vpsrld $" #count ", %%ymm" #from ", %%ymm" #to "\n"
#define CODES(offset, block, to) "vmovdqu " #offset "(%[" #block "]), %%ymm" #to "\n"
#define NIBBLES(offset, block, even, odd) CODES(offset, block, even) RIGHT(4, even, odd) AND(nibbles, even) AND(nibbles, odd)
// Shifts are of 32 bits: what they bring over from the next byte, the mask takes away.
#define UPPER(shift, count, codes) shift(count, 6, 7) AND(upper, 7) OR(7, codes)

// UNPACK_s: quads 2s and 2s + 1 of a block (kernels/weight_tile.cl).
#if CODE_BITS == 8
#define UPPER_BITS 0
#define UNPACK_0(block, even, odd) CODES(0, block, even) CODES(32, block, odd)
#define UNPACK_1(block, even, odd) CODES(64, block, even) CODES(96, block, odd)
#define UNPACK_2(block, even, odd) CODES(128, block, even) CODES(160, block, odd)
#define UNPACK_3(block, even, odd) CODES(192, block, even) CODES(224, block, odd)
#elif CODE_BITS == 6
#define UPPER_BITS 0x30303030
#define UNPACK_0(block, even, odd) \
  NIBBLES(0, block, even, odd) CODES(128, block, 6) UPPER(LEFT, 4, even) UPPER(LEFT, 2, odd)
#define UNPACK_1(block, even, odd) \
  NIBBLES(32, block, even, odd) CODES(128, block, 6) UPPER(RIGHT, 0, even) UPPER(RIGHT, 2, odd)
#define UNPACK_2(block, even, odd) \
  NIBBLES(64, block, even, odd) CODES(160, block, 6) UPPER(LEFT, 4, even) UPPER(LEFT, 2, odd)
#define UNPACK_3(block, even, odd) \
  NIBBLES(96, block, even, odd) CODES(160, block, 6) UPPER(RIGHT, 0, even) UPPER(RIGHT, 2, odd)
#elif CODE_BITS == 5
#define UPPER_BITS 0x10101010
#define UNPACK_0(block, even, odd) \
  NIBBLES(0, block, even, odd) CODES(128, block, 6) UPPER(LEFT, 4, even) UPPER(LEFT, 3, odd)
#define UNPACK_1(block, even, odd) \
  NIBBLES(32, block, even, odd) CODES(128, block, 6) UPPER(LEFT, 2, even) UPPER(LEFT, 1, odd)
#define UNPACK_2(block, even, odd) \
  NIBBLES(64, block, even, odd) CODES(128, block, 6) UPPER(RIGHT, 0, even) UPPER(RIGHT, 1, odd)
#define UNPACK_3(block, even, odd) \
  NIBBLES(96, block, even, odd) CODES(128, block, 6) UPPER(RIGHT, 2, even) UPPER(RIGHT, 3, odd)
#else
#define UPPER_BITS 0
#define UNPACK_0(block, even, odd) NIBBLES(0, block, even, odd)
#define UNPACK_1(block, even, odd) NIBBLES(32, block, even, odd)
#define UNPACK_2(block, even, odd) NIBBLES(64, block, even, odd)
#define UNPACK_3(block, even, odd) NIBBLES(96, block, even, odd)
#endif

#define DOT(quad, codes, sum) "vpdpbusd %%ymm" #quad ", %%ymm" #codes ", %%ymm" #sum "\n"
#define TOKEN(t, ymm, quad, codes0, codes1, sum0, sum1) \
  "vpbroadcastd 32*" #t "+4*" #quad "(%[x]), %%ymm" #ymm "\n" DOT(ymm, codes0, sum0) DOT(ymm, codes1, sum1)
#define TOKENS_2(quad, codes0, codes1) \
  TOKEN(0, 4, quad, codes0, codes1, 16, 24) TOKEN(1, 5, quad, codes0, codes1, 17, 25)
#define TOKENS_4(quad, codes0, codes1)                                                \
  TOKENS_2(quad, codes0, codes1)                                                      \
  TOKEN(2, 4, quad, codes0, codes1, 18, 26) TOKEN(3, 5, quad, codes0, codes1, 19, 27)
#define TOKENS_8(quad, codes0, codes1)                                                \
  TOKENS_4(quad, codes0, codes1)                                                      \
  TOKEN(4, 4, quad, codes0, codes1, 20, 28) TOKEN(5, 5, quad, codes0, codes1, 21, 29) \
  TOKEN(6, 4, quad, codes0, codes1, 22, 30) TOKEN(7, 5, quad, codes0, codes1, 23, 31)
#define STEP(step, even, odd, TOKENS_N) \
  UNPACK_##step(block0, 0, 1) UNPACK_##step(block1, 2, 3) TOKENS_N(even, 0, 2) TOKENS_N(odd, 1, 3)
#define FIRST_HALF(TOKENS_N) STEP(0, 0, 1, TOKENS_N) STEP(1, 2, 3, TOKENS_N)
#define SECOND_HALF(TOKENS_N) STEP(2, 4, 5, TOKENS_N) STEP(3, 6, 7, TOKENS_N)

// Of each sum: DO(t, g, ymm).
#define SUMS_2(DO) DO(0, 0, 16) DO(1, 0, 17) DO(0, 1, 24) DO(1, 1, 25)
#define SUMS_4(DO) SUMS_2(DO) DO(2, 0, 18) DO(3, 0, 19) DO(2, 1, 26) DO(3, 1, 27)
#define SUMS_8(DO)                                                         \
  SUMS_4(DO) DO(4, 0, 20) DO(5, 0, 21) DO(6, 0, 22) DO(7, 0, 23)           \
  DO(4, 1, 28) DO(5, 1, 29) DO(6, 1, 30) DO(7, 1, 31)

#if CODE_ZERO && GROUP == 16
#define START(t, g, sum) "vpbroadcastd 128*" #t "(%[zero]), %%ymm" #sum "\n"
#elif CODE_ZERO
#define START(t, g, sum) "vpbroadcastd 64*" #t "(%[zero]), %%ymm" #sum "\n"
#else
#define START(t, g, sum) "vpxord %%ymm" #sum ", %%ymm" #sum ", %%ymm" #sum "\n"
#endif
#define SCALE_PART(g, sum) "vpmulld %[half_scale" #g "], %%ymm" #sum ", %%ymm" #sum "\n"
#define STORE_PART(t, g, sum) SCALE_PART(g, sum) "vmovdqu32 %%ymm" #sum ", 32*" #t "+256*" #g "(%[parts])\n"
#define ADD_PART(t, g, sum) SCALE_PART(g, sum) "vpaddd 32*" #t "+256*" #g "(%[parts]), %%ymm" #sum ", %%ymm" #sum "\n"
#if HAS_MIN
#define ADD_MINIMUM(t, g) "vfmadd231ps 64*" #t "(%[xsum])%{1to8%}, %[minimum" #g "], %%ymm5\n"
#else
#define ADD_MINIMUM(t, g)
#endif
#define FINISH(t, g, sum)                                                                                            \
  "vcvtdq2ps %%ymm" #sum ", %%ymm" #sum "\nvmulps 64*" #t "(%[xscale])%{1to8%}, %[scale" #g "], %%ymm4\n"            \
  "vmovups 32*" #t "+256*" #g "(%[acc]), %%ymm5\nvfmadd231ps %%ymm4, %%ymm" #sum ", %%ymm5\n" ADD_MINIMUM(t, g)      \
  "vmovups %%ymm5, 32*" #t "+256*" #g "(%[acc])\n"

#ifdef __AVX512VL__
#define HIGH_REGISTERS \
  , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", \
      "xmm30", "xmm31"
#else
#define HIGH_REGISTERS
#endif
#define CLOBBERED "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7" HIGH_REGISTERS

#if CODE_BITS == 8
#define MASKS
#else
#define MASKS , [nibbles] "x"((int8)(0x0f0f0f0f)), [upper] "x"((int8)(UPPER_BITS))
#endif
#define SOURCES(h) [block0] "r"(b->codes[0]), [block1] "r"(b->codes[1]), [x] "r"(b->x), [zero] "r"(b->zero + (h)) MASKS
#if HAS_MIN
#define MINIMA , [xsum] "r"(b->xsum), [minimum0] "x"(b->minimum[0]), [minimum1] "x"(b->minimum[1])
#else
#define MINIMA
#endif
#define TERMS [acc] "r"(acc), [xscale] "r"(b->xscale), [scale0] "x"(b->scale[0]), [scale1] "x"(b->scale[1]) MINIMA

// A block of two row groups, and what its tokens have for it. What is a token's is 64 bytes from what is the next one's, but for `x`,
// whose tokens follow one another; of `zero`, which is there once for each half of a block with two scales, it is 128 bytes.
typedef struct {
  __global const uchar *codes[2];
  v8f scale[2], minimum[2];
  int8 half_scale[2][2];  // [half][group]
  const int8 *x;
  const int *zero;
  const float *xscale, *xsum;
} vnni_block;

#if GROUP == 16
#define HALF_SCALES(h) \
  [parts] "r"(parts), [half_scale0] "x"(b->half_scale[h][0]), [half_scale1] "x"(b->half_scale[h][1])
#define ADD_BLOCK(num)                                                                                                    \
  __asm__ volatile(SUMS_##num(START) FIRST_HALF(TOKENS_##num) SUMS_##num(STORE_PART)::SOURCES(0), HALF_SCALES(0)            \
                   : CLOBBERED);                                                                                          \
  __asm__ volatile(SUMS_##num(START) SECOND_HALF(TOKENS_##num) SUMS_##num(ADD_PART) SUMS_##num(FINISH)::SOURCES(1),         \
                   HALF_SCALES(1), TERMS                                                                                  \
                   : CLOBBERED)
#else
#define ADD_BLOCK(num)                                                                                                    \
  __asm__ volatile(SUMS_##num(START) FIRST_HALF(TOKENS_##num) SECOND_HALF(TOKENS_##num) SUMS_##num(FINISH)::SOURCES(0),     \
                   TERMS                                                                                                  \
                   : CLOBBERED)
#endif

// acc [2][8] takes the block's terms for 2, 4 or 8 tokens.
static inline void vnni_add_block(v8f *acc, const vnni_block *b, int num_tokens) {
#if GROUP == 16
  int8 parts[16];
#endif
  if (num_tokens == 8) {
    ADD_BLOCK(8);
  } else if (num_tokens == 4) {
    ADD_BLOCK(4);
  } else {
    ADD_BLOCK(2);
  }
}
#endif
