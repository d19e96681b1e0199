"""The training library: losses, metrics, engines, sources of batches and the loop that joins them."""
