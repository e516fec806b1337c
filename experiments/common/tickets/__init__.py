"""The study of lottery tickets: settings, cells, the study in its folder, and its report."""
