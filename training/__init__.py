"""Scripts to make the data, train, evaluate and bake; the library they use is `deformer_core.training`."""
