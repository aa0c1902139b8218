"""How fast the engine is, beside llama.cpp and what the machine can do: for `clforge bench`, and for `benchmarks/`."""
