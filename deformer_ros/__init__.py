"""DeFormer for ROS 2: the node, its messages and the bag processor."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # the generated `deformer_ros.msg` lives in the install space
