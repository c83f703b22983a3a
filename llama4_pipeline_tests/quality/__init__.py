"""The quality of every method of quantization on trained models, held against its bounds."""
