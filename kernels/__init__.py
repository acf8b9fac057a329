"""GPU kernels beside plain references; knows tensors only. So far the packing of fixed-width codes."""
