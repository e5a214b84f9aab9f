"""The flow estimator: images, features, what is found at the end of the flow, the update operator, the flow.

Read :mod:`~deqflow.model.estimator` first, then :mod:`~deqflow.model.updates`.
"""
