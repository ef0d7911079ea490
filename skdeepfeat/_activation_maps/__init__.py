"""Which places of a photo a prediction rests on.

The maps that a network computes before pooling are computed once for each photo
(``features``). Places are then left out of the pooling (``masks``, ``pooling``), and
the fitted head predicts what is left (``scores``): the more its score falls, the more
the prediction rests on these places (``maps``).
"""
