"""`silent`: NumPy without floating-point warnings and errors, as in the kernels; NaN and infinities pass through."""

import numpy as np

# decorates what computes with NumPy outside of kernels, whatever the caller has set with np.seterr
silent = np.errstate(all="ignore")
