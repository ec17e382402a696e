"""The layout of a convolution's weights: PyTorch's (K, C, kh, kw), and (kh, kw, C, K) as kernels read them."""


def weights_to_taps(weight, w):
    """w (kh, kw, C, K) = weight (K, C, kh, kw)."""
    w[...] = weight.transpose(2, 3, 1, 0)


def weights_from_taps(w, weight):
    """weight (K, C, kh, kw) = w (kh, kw, C, K)."""
    weight[...] = w.transpose(3, 2, 0, 1)
