"""What runs next: requests, sequences, KV blocks, steps. No OpenCL, no gRPC; tested without a device."""
