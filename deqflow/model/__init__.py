"""The flow estimator: from images to features, a lookup at the end of the flow, the update operator, and the flow.

Read :mod:`~deqflow.model.estimator` first, then :mod:`~deqflow.model.updates`.
"""
