"""Callbacks for the trainers of other packages: a module for each, which alone imports its package.

`spectra.integrations.lightning.SpectraCallback` and `spectra.integrations.transformers.SpectraCallback` find model,
loss and data in the trainer, and record by `spectra.watch`.
"""
