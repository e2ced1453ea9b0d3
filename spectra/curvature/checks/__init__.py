"""What is looked at before the first product: the model, the loss, and the derivatives that PyTorch gives."""
