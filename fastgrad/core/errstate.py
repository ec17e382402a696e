"""NumPy's arithmetic as that of the kernels: NaN and infinities go through, and nothing warns or raises."""

import numpy as np

# decorates what computes with NumPy outside of kernels, whatever the caller has set with np.seterr
silent = np.errstate(all="ignore")
