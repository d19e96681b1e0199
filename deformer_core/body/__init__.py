"""The body: its mesh at named levels, skeleton, regressors, connectivity pattern and posing."""
