"""From files and drawn people to batches: the one record, its readers, augmentation, features kept on disk."""
