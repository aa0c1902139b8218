// What this machine can do at best, for the bench to hold kernels against: `clforge bench --profile`.
//
// Both kernels share their work out among any number of items and touch nothing else.

#ifdef __has_builtin
#if __has_builtin(__builtin_nontemporal_store)
#define STORE_PAST_CACHE(p, x) __builtin_nontemporal_store(x, p)
#endif
#endif
#ifndef STORE_PAST_CACHE
#define STORE_PAST_CACHE(p, x) (*(p) = (x))
#endif

// to = from, n vectors each. What is written goes past the caches where the compiler can say so: else each line would be read
// before it is written, and the bytes that are counted, read and written, would be two thirds of those that moved.
__kernel void copy(__global const float8 *from, __global float8 *to, int n) {
  long item = get_global_id(0), items = get_global_size(0);
  int end = (int)(n * (item + 1) / items);
  for (int i = (int)(n * item / items); i < end; i++) STORE_PAST_CACHE(to + i, from[i]);
}

// Each item does CHAINS x 8 lanes x `rounds` fused multiply-adds, two operations each. Chains are enough to hide the
// instruction's latency; x and y come as arguments, so that nothing is known when this is compiled. out[item] keeps the work
// from being left out.
#define CHAINS 12
__kernel void multiply_add(__global float *out, int rounds, float x, float y) {
  v8f sums[CHAINS];
  for (int c = 0; c < CHAINS; c++) sums[c] = (v8f)(x + c);
  for (int r = 0; r < rounds; r++) {
#pragma unroll
    for (int c = 0; c < CHAINS; c++) sums[c] = clf_fma8(sums[c], (v8f)(x), (v8f)(y));
  }
  v8f total = sums[0];
  for (int c = 1; c < CHAINS; c++) total += sums[c];
  out[get_global_id(0)] = total.s0 + total.s1 + total.s2 + total.s3 + total.s4 + total.s5 + total.s6 + total.s7;
}
