"""The compiled CPU kernels: plain C on raw pointers, built at installation if there is a C compiler.

They depend neither on PyTorch's C++ interface, whose ABI changes with every release, nor on Python's: ctypes loads them
as a shared library. Without it, plain PyTorch computes everything; ``mobilemamba backends`` says which of them runs.
"""
