"""The course with papermill, sweeps, a training in several processes, downloads, widgets: the core needs none of it."""
