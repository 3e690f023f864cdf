"""How generated images are measured: protocol, feature extractors, tasks that workers share, search of settings."""
