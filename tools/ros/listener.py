"""Listens to topics and throws away what comes, undecoded: somebody to work for, for bench.py."""

import sys

import rclpy
from rclpy.executors import ExternalShutdownException
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from deformer_ros.msg import HumanMeshArray

KINDS = {"meshes": HumanMeshArray, "markers": MarkerArray, "tf": TFMessage}

rclpy.init()
node = rclpy.create_node("listener")
for topic in sys.argv[1:]:
    node.create_subscription(KINDS[topic.rsplit("/", 1)[-1]], topic, lambda raw: None, 10, raw=True)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
