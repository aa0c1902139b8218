"""What runs on the device: buffers, kernels, the forward pass, sampling."""
