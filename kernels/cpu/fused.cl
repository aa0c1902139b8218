// A list of operations as one kernel. Put after the operations themselves, which are functions here; CASES, of a switch, call
// them with their arguments.
//
// Launch as many work-items as there are threads. They go through the operations in order and share out each one's items. An
// operation starts when all before it have ended, unless it says that it may run beside the one before it. Nobody waits for a
// work-item that has not begun: whoever comes late, or never, leaves its share to the others.
//
// Between two kernels a driver puts its threads to sleep and wakes them, which takes longer than most operations of a step
// with few tokens; here they spin instead.
typedef struct {
  ulong arguments[MAX_ARGUMENTS];  // addresses of buffers, bits of numbers
  int function;                    // which operation: its number in CASES
  int unit, factor;                // it has counts[unit] * factor items
  int is_beside;                   // may run beside the operation before it
} operation;

// Operations that run beside each other count what has ended with the first of them.
typedef struct {
  int next;   // the first item that nobody has taken
  int ended;  // items
} progress;

typedef struct {
  int first, end;
} run;

#ifdef __x86_64__
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE()
#endif

// CASES take `a`, `item` and `num_items`.
static void do_item(__global const operation *op, int item, int num_items) {
  __global const ulong *a = op->arguments;
  switch (op->function) { CASES }
}

// The next items that nobody has taken, none where all are: neighbours, whose weights lie in a row, and fewer towards the end, so
// that all work-items end together.
static run take_items(__global int *next, int num_items) {
  int first = __atomic_load_n(next, __ATOMIC_RELAXED), end, parts = 2 * get_global_size(0);
  do {
    if (first >= num_items) return (run){num_items, num_items};
    end = first + (num_items - first + parts - 1) / parts;
  } while (!__atomic_compare_exchange_n(next, &first, end, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return (run){first, end};
}

// Does what is to be had of an operation; returns the number of items.
static int do_share(__global const operation *op, __global int *next, int num_items) {
  int done = 0;
  for (run taken; (taken = take_items(next, num_items)).first < taken.end; done += taken.end - taken.first) {
    for (int item = taken.first; item < taken.end; item++) do_item(op, item, num_items);
  }
  return done;
}

// operations [num_operations]
// state      [num_operations + 1], all zero, as it is again afterwards; the last one counts the work-items that have ended
// counts     int32 [], of the step
__kernel void fused(__global const operation *operations, int num_operations, __global progress *state,
                    __global const int *counts) {
  for (int first = 0, i = 0; first < num_operations; first = i) {
    int total = 0, done = 0;
    do {
      int num_items = counts[operations[i].unit] * operations[i].factor;
      total += num_items;
      done += do_share(operations + i, &state[i].next, num_items);
      i++;
    } while (i < num_operations && operations[i].is_beside);
    if (done) __atomic_fetch_add(&state[first].ended, done, __ATOMIC_RELEASE);
    while (__atomic_load_n(&state[first].ended, __ATOMIC_ACQUIRE) < total) PAUSE();
  }
  bool is_last = __atomic_fetch_add(&state[num_operations].ended, 1, __ATOMIC_ACQ_REL) == (int)get_global_size(0) - 1;
  for (int i = 0; is_last && i <= num_operations; i++) state[i].next = state[i].ended = 0;
}

// addresses[index] = where `buffer` lies.
__kernel void address_of(__global const uchar *buffer, __global ulong *addresses, int index) {
  addresses[index] = (ulong)buffer;
}
