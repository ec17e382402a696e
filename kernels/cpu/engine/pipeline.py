"""Numba's compiler with the passes that kernels and drivers need, and without machine code of inner functions.

Most of a compilation's time goes into Python: typing, lowering, the counting of references to arrays. So passes for what no kernel has are
left out, 1.3 of 18 s of a first training step; kernels count no references, 1.7 s, since they own no array; and Python's garbage
collector, which would search the compiler's graphs again and again, waits, 1.1 s.

A kernel that allocates is refused when it is compiled: it could tell nobody that memory ran out, and would free nothing.
"""

import contextlib
import functools
import gc

from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    PreLowerStripPhis,
    type_inference_stage,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)

from . import notice

# of a function that counts no references: it allocates nothing, and the arrays that it returns are views of memory that others own
UNCOUNTED = {"_nrt": False}


@register_pass(mutates_CFG=False, analysis_only=False)
class _TypeInference(FunctionPass):
    """Numba's own forbids functions that count no references to return arrays."""

    _name = "fastgrad_type_inference"

    def __init__(self):
        # abstract in FunctionPass
        pass

    def run_pass(self, state):
        state.typemap, state.return_type, state.calltypes, state.typing_errors = type_inference_stage(
            state.typingctx, state.targetctx, state.func_ir, state.args, state.return_type, state.locals
        )
        if not state.targetctx.enable_nrt and _holds_array(state.return_type) and any(map(_holds_array, state.args)):
            # what it returned would be freed twice
            name = state.func_id.func_qualname
            raise TypeError(f"{name} takes and returns arrays: it must be a driver_function, which counts references")
        return True


def _holds_array(kind):
    return isinstance(kind, types.Array) or (isinstance(kind, types.BaseTuple) and any(map(_holds_array, kind)))


# left out: closures, `with`, functions inlined as Numba's code, literals found at compile time, expressions of whole arrays
PASSES = (
    TranslateByteCode, FixupArgs, RewriteSemanticConstants, DeadBranchPrune, GenericRewrites, ReconstructSSA,
    _TypeInference, PreLowerStripPhis, IRLegalization, AnnotateTypes, NativeLowering, NoPythonBackend,
)  # fmt: skip


class _Passes(PassManager):
    """The passes, without the checks and the events with which Numba follows each of them."""

    def _runPass(self, index, step, state):
        step.analysis = self._analysis
        for run in step.run_initialization, step.run_pass, step.run_finalizer:
            run(state)


@functools.cache
def _size_of(kind):
    """Bytes of a value of LLVM's type. Numba compiles a module for each that is asked for, as it asks for each variable."""
    return kind.get_abi_size(cpu_target.target_context.target_data)


def _hide_inner_functions(module):
    """Keep the functions that a kernel calls and LLVM has not inlined to its own machine code.

    Numba names them by numbers of the process: of the function, and of the types of records. Where processes share files, the code of
    two kernels may so have functions of one name for records of two kinds, and the first to be loaded would be called by both.
    """
    for function in module.functions:
        if not function.is_declaration and function.linkage.name in ("linkonce_odr", "linkonce_any"):
            function.linkage = "internal"


class _Library(JITCodeLibrary):
    """The code of a kernel, which is optimised once, when all functions that it calls are linked in."""

    def _optimize_functions(self, module):
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        super()._optimize_final_module()
        _hide_inner_functions(self._final_module)
        if any(function.name.startswith("NRT_") for function in self._final_module.functions):
            raise TypeError(f"{self.name} allocates or counts references, which only drivers and routines can")


class _DriverLibrary(_Library):
    """The code of a driver, which runs once a call and has no loop over values."""

    def _optimize_final_module(self):
        passes, builder = self._codegen._module_pass_manager(opt=1)
        passes.run(self._final_module, builder)
        _hide_inner_functions(self._final_module)


class KernelCompiler(Compiler):
    """The compiler of kernels."""

    library = _Library

    def compile_extra(self, function):
        context = self.state.targetctx
        # a context of this compilation only; what is new in Numba's lists it has taken in a moment ago
        context.get_abi_sizeof, context.refresh = _size_of, lambda: None
        self.state.library = self.library(self.state.targetctx.codegen(), function.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(function)

    def define_pipelines(self):
        notice.update()
        passes = _Passes("fastgrad")
        for kind in PASSES:
            passes.add_pass(kind, kind.__name__)
        passes.finalize()
        return [passes]


class _Environments:
    """In place of a library's code generator, which knows no function of an inner library."""

    @staticmethod
    def set_env(name, environment):
        pass


class _InnerLibrary(JITCodeLibrary):
    """LLVM code of an inner function, which is optimised and becomes machine code in its callers only.

    Numba would do both for each function by itself, and again in each of its callers, whose code holds it.
    """

    codegen = _Environments()

    def add_linking_library(self, library):
        # the memory allocator, which the caller's code has too
        if library is not rtsys.library:
            super().add_linking_library(library)

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0

    def _optimize_functions(self, module):
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class DriverCompiler(KernelCompiler):
    """The compiler of drivers and routines."""

    library = _DriverLibrary


class InnerCompiler(KernelCompiler):
    """The compiler of functions that kernels and drivers call."""

    library = _InnerLibrary


@contextlib.contextmanager
def compilation(names, seconds=0.0):
    """What is compiled inside is told after a second, see notice.py; Python's garbage collector waits."""
    collects = gc.isenabled()
    gc.disable()
    notice.begin(names, seconds)
    try:
        yield
    finally:
        notice.end()
        if collects:
            gc.enable()
