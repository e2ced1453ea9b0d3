"""The register of methods: the import path for each name on the command line. It loads no torch.

Every function of EIG takes (operator, k, which=, tolerance=, generator=, max_products=, progress=) and returns
Eigenpairs; every function of TRACE takes (operator, rtol=, probes=, known=, generator=, max_products=, progress=)
and returns a TraceEstimate of the trace plus `known`, to which its tolerance is relative. `gram` needs an operator
with a factor. `spectra.run.trace.usual_method` takes it for the trace if it costs no more than the first stage of
XTrace.

Functions of EIG_BLOCKS and TRACE_BLOCKS also take blocks=, the number of equal diagonal blocks, and return
BlockEigenpairs and BlockTraces.
"""

EIG = {
    "lanczos": "spectra.krylov.eigenpairs:eigenpairs",
    "power": "spectra.krylov.power:power_iteration",
    "dense": "spectra.krylov.dense:dense_eigenpairs",
    "gram": "spectra.krylov.gram:gram_eigenpairs",
}

POLISHED = ("lanczos",)  # methods that polish pairs from products of lower precision; others use full precision only

TRACE = {
    "xtrace": "spectra.krylov.xtrace:xtrace",
    "hutch++": "spectra.krylov.hutch_plus_plus:hutch_plus_plus",
    "hutchinson": "spectra.krylov.hutchinson:hutchinson",
    "dense": "spectra.krylov.dense:dense_trace",
    "gram": "spectra.krylov.gram:gram_trace",
}

KERNEL_EIG = "spectra.krylov.kernel:kernel_eigenpairs"  # method gram for matrices over examples

EIG_BLOCKS = {
    "lanczos": "spectra.krylov.equal_blocks:lanczos_blocks",
    "dense": "spectra.krylov.equal_blocks:dense_blocks",
}
TRACE_BLOCKS = {
    "hutchinson": "spectra.krylov.equal_blocks:hutchinson_blocks",
    "dense": "spectra.krylov.equal_blocks:dense_block_traces",
}
CHEAPEST_TRACE_BLOCKS = "spectra.krylov.equal_blocks:cheapest_block_traces"  # the default, if no method is named

BASIS_SHARES = {"xtrace": 1 / 2, "hutch++": 1 / 3}  # shares of products that multiply an orthonormal basis
