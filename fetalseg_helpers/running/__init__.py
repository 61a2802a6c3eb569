"""Running things: the course with papermill, sweeps over parameters, one training in several processes, downloads, and
the sliders and curves of the notebooks. The core needs nothing of this; read it when you want to know how `run` works.
"""
