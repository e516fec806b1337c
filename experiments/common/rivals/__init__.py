"""The study of dynamic sparse training methods: settings, cells, and their report."""
