"""Engines that run a Llama 4 behind one protocol, and the loop that generates with any of them."""
