"""What is run: typed, frozen dataclasses (`schema`) and how YAML files and `key=value` words become one (`load`).

Imports nothing heavy, so that a config is checked, shown and refused in well under a second.
"""

from fedscale.config.load import load_config, load_recipe, overlaid, to_dict, to_yaml
from fedscale.config.schema import Config, RecipeConfig

__all__ = ["Config", "RecipeConfig", "load_config", "load_recipe", "overlaid", "to_dict", "to_yaml"]
