"""The neural model: backbone, initial regressor, mesh decoder, dense recovery."""
