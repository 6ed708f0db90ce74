"""A folder per operation: public function, autograd Function, kernels and plain reference.

The engines, which launch the kernels or call BLAS, serve both.
"""
