"""The compiled CPU kernels: plain C over raw pointers, built at installation if there is a C compiler.

They are not tied to PyTorch's C++ interface, whose ABI changes with every release, nor to Python's: a shared library
that ctypes loads. Without it everything works by plain PyTorch; ``mobilemamba backends`` says which it is.
"""
