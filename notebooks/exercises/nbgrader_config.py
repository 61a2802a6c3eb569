"""Configuration of nbgrader for the exercises of this course; nbgrader reads it when started in this folder."""

c = get_config()  # noqa: F821  nbgrader provides it
c.CourseDirectory.course_id = "fetalseg"
c.ClearSolutions.code_stub = {"python": "..."}  # in place of an error: a notebook with open tasks runs to its end
c.ClearSolutions.text_stub = "*Your answer here.*"
c.ExecutePreprocessor.timeout = 120  # seconds for a cell; a hand-in that never ends is stopped
