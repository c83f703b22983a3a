"""Llama 4 itself: its architecture, its weights, its checkpoints, the PyTorch form that exports."""
