"""Activations y = f(z) and their derivatives.

    identity      z                              1
    relu          max(z, 0)                      1 if y > 0 else 0                        (Nair & Hinton 2010)
    leaky_relu    z if z > 0 else p z            1 if y > 0 else p                        (Maas et al. 2013)
    clipped_relu  min(max(z, 0), p)              1 if 0 < y < p else 0                    (Krizhevsky 2010 for p = 6)
    sigmoid       1 / (1 + exp(-z))              y (1 - y)
    tanh          tanh z                         1 - y^2
    elu           z if z > 0 else p (exp(z) - 1)       1 if y > 0 else y + p              (Clevert et al. 2016, eq. 15)
    selu          s elu(z) with p = 1.6733, s = 1.0507  s if y > 0 else y + s p           (Klambauer et al. 2017, eq. 2)
    gelu          z Phi(z)                       Phi(z) + z phi(z), the normal law        (Hendrycks & Gimpel 2016)
    gelu_tanh     z sigmoid(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3), which is z (1 + tanh u) / 2
    silu          z sigmoid(z)                   g + z g (1 - g) with g = sigmoid(z)
    softplus      log(1 + exp(z))                sigmoid(z) = 1 - exp(-y)
    softmax       exp(z_i) / sum_j exp(z_j)      dz_i = y_i (dy_i - sum_j dy_j y_j), j over the last axis

p is the activation's parameter. z and y have any equal shape. Backward needs the output y; for gelu, gelu_tanh and
silu, whose outputs do not determine the derivative, the input z in its place. At a kink the derivative is PyTorch's:
that of the lower side, and 0 at a cap. NaN gives NaN; infinities give the limits: silu and gelu are 0 at -inf.
softmax of a row with +inf in it, or of -inf alone, is NaN.
"""

import math

import numpy as np

from .. import types

SELU_SCALE = 1.0507009873554805
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def activation_forward(z, y, activation):
    """y = f(z); y may be z."""
    p = activation.parameter
    match activation.code:
        case types.IDENTITY:
            y[...] = z
        case types.RELU:
            y[...] = np.maximum(z, 0)
        case types.LEAKY_RELU:
            y[...] = np.where(z > 0, z, p * z)
        case types.CLIPPED_RELU:
            y[...] = np.minimum(np.maximum(z, 0), p)
        case types.SIGMOID:
            y[...] = sigmoid(z)
        case types.TANH:
            y[...] = np.tanh(z)
        case types.ELU:
            y[...] = np.where(z > 0, z, p * np.expm1(np.minimum(z, 0)))
        case types.SELU:
            y[...] = SELU_SCALE * np.where(z > 0, z, p * np.expm1(np.minimum(z, 0)))
        case types.GELU:
            y[...] = _times(z, _normal_cdf(z))
        case types.GELU_TANH:
            y[...] = _times(z, sigmoid(_gelu_2u(z)))
        case types.SILU:
            y[...] = _times(z, sigmoid(z))
        case types.SOFTPLUS:
            y[...] = softplus(z)
        case types.SOFTMAX:
            e = np.exp(z - z.max(axis=-1, keepdims=True, initial=-np.inf))
            y[...] = e / e.sum(axis=-1, keepdims=True)


def activation_backward(dy, z, y, dz, activation):
    """dz = dy f'(z), from z where activation.needs_input, else from y; the other may be None. dz may be dy."""
    p = activation.parameter
    match activation.code:
        case types.IDENTITY:
            dz[...] = dy
        case types.RELU:
            dz[...] = dy * np.heaviside(y, 0)
        case types.LEAKY_RELU:
            dz[...] = dy * np.where(y > 0, y.dtype.type(1), y.dtype.type(p))
        case types.CLIPPED_RELU:
            dz[...] = dy * np.heaviside(y, 0) * np.heaviside(p - y, 0)
        case types.SIGMOID:
            dz[...] = dy * y * (1 - y)
        case types.TANH:
            dz[...] = dy * (1 - y * y)
        case types.ELU:
            dz[...] = dy * np.where(y > 0, y.dtype.type(1), y + p)
        case types.SELU:
            dz[...] = dy * np.where(y > 0, y.dtype.type(SELU_SCALE), y + SELU_SCALE * p)
        case types.GELU:
            dz[...] = dy * (_normal_cdf(z) + _times(z, np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)))
        case types.GELU_TANH:
            g, one_minus_g = sigmoid(_gelu_2u(z)), sigmoid(-_gelu_2u(z))
            z_d2u = 2 * math.sqrt(2 / math.pi) * z * (1 + 3 * 0.044715 * z * z)
            dz[...] = dy * (g + _times(z_d2u, g * one_minus_g))
        case types.SILU:
            dz[...] = dy * (sigmoid(z) + _times(z, sigmoid(z) * sigmoid(-z)))
        case types.SOFTPLUS:
            dz[...] = dy * -np.expm1(-y)
        case types.SOFTMAX:
            dz[...] = y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def sigmoid(z):
    """1 / (1 + exp(-z)), from the exponential that does not overflow."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + e), e / (1 + e))


def softplus(z):
    """log(1 + exp(z)), from the exponential that does not overflow."""
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def _normal_cdf(z):
    return (0.5 * _erfc(-z / math.sqrt(2))).astype(z.dtype)


def _gelu_2u(z):
    return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)


def _times(z, gate):
    # z gate -> 0 as z grows where the gate has closed: the limit in place of inf * 0
    return np.where(gate == 0, z.dtype.type(0), z * gate)
