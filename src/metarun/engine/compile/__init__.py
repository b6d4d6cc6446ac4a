"""Ways to execute a function of tensors faster: PyTorch's inductor, CUDA graphs."""
