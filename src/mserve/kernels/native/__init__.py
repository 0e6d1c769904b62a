"""CPU kernels in C++: decode at the speed of memory, with the reference's results."""
