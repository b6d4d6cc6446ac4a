"""From YAML files and command-line words to one checked, frozen configuration."""
