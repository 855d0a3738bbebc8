"""Passes over the weights, one a file, found by name: each fits one term of a layer to what the others leave."""

from vtc.registry import Registry
from vtc.weights.passes.base import Pass

registry: Registry[type[Pass]] = Registry("pass over weights", __name__, group="vtc.passes")
register = registry.register
