"""Callbacks for the trainers of other packages; each module imports one package.

`spectra.integrations.lightning.SpectraCallback` and `spectra.integrations.transformers.SpectraCallback` take model,
loss and data from the trainer, and record with `spectra.watch`.
"""
