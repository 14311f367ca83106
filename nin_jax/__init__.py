"""Network In Network (Lin, Chen, Yan 2013; arXiv 1312.4400) in JAX and Flax NNX."""

__version__ = '0.1.0'
