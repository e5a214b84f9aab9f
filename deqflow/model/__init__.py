"""The flow estimator: from images to features, a lookup at the end of the flow, the update operator, and the flow.

Read :mod:`~deqflow.model.estimator` first, then what it makes of a pair, :mod:`~deqflow.model.problem` and its map f,
:mod:`~deqflow.model.flow_map`, then :mod:`~deqflow.model.updates`.
"""
