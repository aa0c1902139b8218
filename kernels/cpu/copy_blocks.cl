// Blocks of one layer's K and V to other blocks, before a step writes to these: copy-on-write, forks.
//
// Defines: NUM_KV_HEADS; HEAD_DIM, BLOCK_SIZE and the cache's type as kv_block.cl has them.
// Launch num_copies x NUM_KV_HEADS x 2 items: each copies one kv head of K or of V. No target is a source or another copy's
// target, so items need no order.

// copies  int32 [num_copies][2]: source and target block
// k_cache kv_t [num_blocks][NUM_KV_HEADS][KV_HEAD_SIZE]
// v_cache kv_t [num_blocks][NUM_KV_HEADS][KV_HEAD_SIZE]
CLF_OPERATION copy_blocks(__global const int *copies, __global kv_t *k_cache, __global kv_t *v_cache CLF_ITEM_PARAMS) {
  size_t item = ITEM;
  __global kv_t *cache = item % 2 ? v_cache : k_cache;
  size_t head = item / 2 % NUM_KV_HEADS;
  __global const int *copy = copies + item / (2 * NUM_KV_HEADS) * 2;
  __global const uint4 *source = (__global const uint4 *)(cache + (copy[0] * (size_t)NUM_KV_HEADS + head) * KV_HEAD_SIZE);
  __global uint4 *target = (__global uint4 *)(cache + (copy[1] * (size_t)NUM_KV_HEADS + head) * KV_HEAD_SIZE);
  for (int i = 0; i < KV_HEAD_SIZE * (int)sizeof(kv_t) / 16; i++) target[i] = source[i];
}
