"""What tests, benches and docs share: simulated worlds, a lab of real middleboxes, watched targets, pictures of state.

Those three import from here and from the package, never from one another.
"""
