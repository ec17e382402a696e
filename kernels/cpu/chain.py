"""The records of a chain of dense layers, CHAIN and LAYER, and how they are filled: of one layer's arrays, of flat arrays by a table, or
of lists of arrays, which are read from the memory of the Python objects (engine/object_memory.py).
"""

import numpy as np

from .. import types
from .activation import FORWARD
from .engine.compile import device_function
from .engine.intrinsics import address, carray, void_pointer
from .engine.matrix import MATRIX, Matrix, rows_apart, set_field
from .engine.object_memory import DATA, FLAGS, HEAD, ITEMS, SHAPE, STRIDES, low_word, word

# addresses of a layer's arrays, 0 where there is none; z is y but where the activation keeps both; dw is C-contiguous, or its transpose;
# code: of the activation; activate, differentiate: addresses of its kernels, 0 for the identity
LAYER = np.dtype(
    [(name, "i8") for name in "n_in n_out b z y dz dw dw_turned db code activate differentiate".split()]
    + [("w", MATRIX), ("parameter", "f8")]
)
# layers: address of the LAYER records; norms: of one float64 a row of every dw, its sum of squares, or 0; squares: of one a row of every
# contiguous w, its sum of squares, and then decay w is added to dw; or 0; gemm: of gemm_part;
# watch: of a WATCH of health.py, or 0, and then output_health and gradient_health: of kernels of health.py; nonzeros: of a NONZEROS of
# sparse.py in place of x, or 0, and then sparse_forward and sparse_gradient: of kernels of sparse.py
CHAIN = np.dtype(
    [(name, "i8") for name in "rows depth layers residual dy dx norms squares panels itemsize".split()]
    + [
        (name, "i8")
        for name in "gemm watch output_health gradient_health nonzeros sparse_forward sparse_gradient".split()
    ]
    + [("x", MATRIX), ("decay", "f8")]
)
LAYER_BYTES = LAYER.itemsize
needs_input = device_function(types.needs_input)
N_ACTIVATIONS = len(FORWARD)


@device_function
def layers_of(chain):
    return carray(void_pointer(chain.layers), chain.depth, LAYER)


@device_function
def describe_chain(chain, layers, rows, x, x_row, size, panels, gemm):
    """Fill the record of a chain of dense rows x, which has no gradients, health and nonzeros yet."""
    chain.depth, chain.layers, chain.rows, chain.itemsize = len(layers), address(layers), rows, size
    chain.panels, chain.gemm = panels, gemm
    set_field(chain.x, rows_apart(x, x_row))


@device_function
def describe_layer(layer, n_in, n_out, w, b, dw, db):
    """Fill the record of a layer of contiguous w."""
    layer.n_in, layer.n_out, layer.b, layer.dw, layer.dw_turned, layer.db = n_in, n_out, b, dw, 0, db
    set_field(layer.w, rows_apart(w, n_out))


@device_function
def describe_activation(layer, functions, parameter, z, y, dz):
    """functions: addresses of the activation's two kernels."""
    layer.activate, layer.differentiate, layer.parameter = functions[0], functions[1], parameter
    layer.z, layer.y, layer.dz = z, y, dz


@device_function
def flat_layers(layers, table, parameters, params, grads, size):
    """Fill LAYER records from a table of offsets into params and grads (their addresses; grads 0: none)."""
    for l in range(len(table)):
        n_in, n_out, w, b = table[l, 0], table[l, 1], table[l, 2], table[l, 3]
        dw, db = grads + w * size if grads else 0, grads + b * size if grads and b >= 0 else 0
        describe_layer(layers[l], n_in, n_out, params + w * size, params + b * size if b >= 0 else 0, dw, db)
        layers[l].code, layers[l].parameter = table[l, 4], parameters[l]


@device_function
def place_tensors(layers, tensors):
    """Let filled records read weights where PyTorch has them, each w as an array (n_out, n_in), and turn their dw likewise.

    tensors: address of the addresses of every w and b in order.
    """
    n, at = 0, carray(void_pointer(tensors), 2 * len(layers), np.int64)
    for l in range(len(layers)):
        layer = layers[l]
        set_field(layer.w, Matrix(at[n], 1, layer.n_in))
        layer.dw_turned = 1
        n += 1
        if layer.b:
            layer.b = at[n]
            n += 1


@device_function
def find_activations(layers, kernels, first, backward):
    """Put the addresses of the activations' kernels into the records of layers; returns False where one is missing.

    kernels: from `first` on the ones of FORWARD and then, with `backward`, of BACKWARD.
    """
    for l in range(len(layers)):
        layer = layers[l]
        layer.activate = kernels[first + layer.code]
        layer.differentiate = kernels[first + N_ACTIVATIONS + layer.code] if backward else 0
        if layer.code != types.IDENTITY and (layer.activate == 0 or (backward and layer.differentiate == 0)):
            return False
    return True


@device_function
def fields_of(items, l, none):
    """Address of the fields of a list's array number l: see object_memory.py. items: of the list, or 0. 0 for None and without a list."""
    array = word(items, l) if items else none
    return array + HEAD if array != none else 0


@device_function
def data_of(items, l, none):
    """Address of the array's values, or 0."""
    fields = fields_of(items, l, none)
    return word(fields, DATA) if fields else 0


@device_function
def items_of(array_list, none):
    """Address of a list's items; 0 for None."""
    return word(array_list + HEAD, ITEMS) if array_list != none else 0


@device_function
def read_chain(record, layers, x, lists, functions, parameters, none, size, panels, gemm):
    """Fill the records of a chain from the objects themselves: x and the seven lists as below.

    functions (L, 3): of every layer the addresses of the activation's kernels, and whether it keeps z.
    """
    weights, biases, zs = items_of(lists[0], none), items_of(lists[1], none), items_of(lists[2], none)
    outputs, dzs = items_of(lists[3], none), items_of(lists[4], none)
    dweights, dbiases = items_of(lists[5], none), items_of(lists[6], none)
    strides, chain = word(x + HEAD, STRIDES), record[0]
    rows = word(word(x + HEAD, SHAPE), 0)
    describe_chain(chain, layers, rows, word(x + HEAD, DATA), word(strides, 0) // size, size, panels, gemm)
    chain.x.col = word(strides, 1) // size
    for l in range(len(layers)):
        layer, w, dw = layers[l], fields_of(weights, l, none), fields_of(dweights, l, none)
        shape, strides = word(w, SHAPE), word(w, STRIDES)
        b, db = data_of(biases, l, none), data_of(dbiases, l, none)
        describe_layer(layer, word(shape, 0), word(shape, 1), word(w, DATA), b, data_of(dweights, l, none), db)
        layer.w.row, layer.w.col = word(strides, 0) // size, word(strides, 1) // size
        layer.dw_turned = 1 - (low_word(dw, FLAGS) & 1) if dw else 0
        y = data_of(outputs, l, none)
        z = data_of(zs, l, none) if functions[l, 2] else y
        describe_activation(layer, functions[l], parameters[l], z, y, data_of(dzs, l, none))
