"""Which places of a photo a prediction rests on.

The maps that a network computes before pooling are computed once for each photo.
Places are then left out of the pooling, and the fitted head predicts what is left: the
more its score falls, the more the prediction rests on these places.

- ``maps``: `activation_maps`
- ``features``: a feature step that does not pool
- ``masks``, ``squares``, ``random_cells``: which places are left out together
- ``pooling``: pools what is left
- ``scores``: what the head predicts, as a score for each class
"""
