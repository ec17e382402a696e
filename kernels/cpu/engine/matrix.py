"""Matrices as kernels pass them on: a place, and how many values lie from row to row and from column to column.

The place is a pointer, or in the fields of records an address. A matrix without values (a start of sums that is zero) has a null place.
"""

from typing import NamedTuple

import numpy as np

from .compile import inline_function
from .intrinsics import address, advance, pointer


class Matrix(NamedTuple):
    """`at` is where element (0, 0) is; element (i, j) lies i * row + j * col values after it."""

    at: int
    row: int
    col: int


# the fields of a record that hold a matrix: an address, 0 where there is none
MATRIX = np.dtype([(name, "i8") for name in Matrix._fields])


@inline_function
def matrix_of(field, like):
    """The matrix of a record's field, with a pointer. Without one its strides are 0, so every part of it is null too."""
    if field.at:
        return Matrix(pointer(field.at, like), field.row, field.col)
    return Matrix(pointer(field.at, like), 0 * field.row, 0 * field.col)


@inline_function
def field_matrix(field):
    """The matrix of a record's field, with its address."""
    return Matrix(field.at, field.row, field.col)


@inline_function
def set_field(field, matrix):
    """Put a matrix, with an address, into a record's field."""
    field.at, field.row, field.col = matrix.at, matrix.row, matrix.col


@inline_function
def array_matrix(array):
    """The matrix of an array (rows, columns) of any strides, with its address."""
    return Matrix(address(array), array.strides[0] // array.itemsize, array.strides[1] // array.itemsize)


@inline_function
def null_matrix(like):
    """No matrix: zeros, where it is a start of sums."""
    return Matrix(pointer(0, like), 0, 0)


@inline_function
def rows_apart(at, row):
    """The matrix whose rows are contiguous and so many values apart; 0 apart is one row over and over."""
    return Matrix(at, row, 1)


@inline_function
def submatrix(matrix, i, j):
    """The matrix from its element (i, j) on."""
    return Matrix(advance(matrix.at, i * matrix.row + j * matrix.col), matrix.row, matrix.col)


@inline_function
def rows_from(matrix, i, itemsize):
    """The matrix, with an address, from its row i on."""
    return Matrix(matrix.at + i * matrix.row * itemsize, matrix.row, matrix.col)


@inline_function
def transposed(matrix):
    return Matrix(matrix.at, matrix.col, matrix.row)
