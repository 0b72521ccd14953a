"""The claims of one paper each: a second paper is a second module."""
