"""A node as a process: from the command line to the end."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import rclpy
import rclpy.logging
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from deformer_core.errors import InputError


def run(name: str, make: Callable[[], Node], args: list[str] | None = None) -> None:
    """Make a node and spin it until it is told to end. `InputError` ends the process with 1 and its one line."""
    rclpy.init(args=args)
    node = None
    try:
        node = make()
        rclpy.spin(node)
    except InputError as error:
        rclpy.logging.get_logger(name).fatal(str(error))
        sys.exit(1)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        # Ctrl-C in the middle of publishing comes as an error of a context that is no more.
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            node.destroy_node()
        # A node and its callbacks hold each other. What is left of it when the process ends takes the middleware down
        # in an order that it does not survive.
        node = None
        gc.collect()
        rclpy.try_shutdown()
