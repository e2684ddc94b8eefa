"""What plays, draws and shows: the episode loop and its players, panel, film, window, the drawing of figures."""
