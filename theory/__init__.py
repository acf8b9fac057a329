"""What mathematics says about quantization: closed forms and bounds. Knows nothing of the benchmark's harness."""
