"""Every engine on the same weights, in turns, against each other and against what memory allows: `make benchmark`."""
