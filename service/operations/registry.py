"""The table of operations: every module of this package that defines ``OPERATION``, by name.

To add an operation, add a module with its form and handler, and its answer to service/schemas
(docs/how-to/add-an-endpoint.md).
"""

from __future__ import annotations

import importlib
import pkgutil

from service import operations
from service.operations.operation import Operation


def _discover() -> dict[str, Operation]:
    table = {}
    for module in sorted(pkgutil.iter_modules(operations.__path__), key=lambda item: item.name):
        operation = getattr(
            importlib.import_module(f"{operations.__name__}.{module.name}"), "OPERATION", None
        )
        if isinstance(operation, Operation):
            table[operation.name] = operation
    return table


OPERATIONS: dict[str, Operation] = _discover()
ROUTED = {name: operation for name, operation in OPERATIONS.items() if operation.route}
"""Operations with a route of their own."""
JOB_OPERATIONS = {name: operation for name, operation in OPERATIONS.items() if operation.answer is not None}
"""Operations that can be submitted as a job: those with a JSON answer."""
